//! `sqlx::migrate!` sees changes of the files it has embedded, and no new ones.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
