//! `throughline`: the whole pipeline in one process, and the operators' commands.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    throughline_lifecycle::exit_code("throughline", throughline::Command::parse().run().await)
}
