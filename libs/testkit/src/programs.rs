use std::env::{consts::EXE_SUFFIX, current_exe, var_os, vars_os};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Names the folder of programs that are built already, to be tested as they are.
const READY: &str = "THROUGHLINE_PROGRAMS";

/// Beginnings of the variables that Cargo gives a test it runs. Build scripts look at them (ring's does), and
/// would begin anew each time they differ.
const OF_THE_TEST: [&str; 4] = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_CRATE_", "CARGO_BIN_"];

/// Where the real programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Builds the programs, as the running test was built and into the same folder.
    ///
    /// Cargo builds only what has changed; without asking it, a test might praise the program of
    /// yesterday. If the variable `THROUGHLINE_PROGRAMS` names a folder, those in it are taken as they are.
    ///
    /// # Errors
    /// If they do not build.
    pub fn build() -> anyhow::Result<Self> {
        if let Some(folder) = var_os(READY) {
            return Ok(Self { folder: folder.into() });
        }
        // target/<profile>/deps/<the test>
        let test = current_exe()?;
        let folder = test.ancestors().nth(2).context("a test outside of a target folder")?;
        let target = folder.parent().context("a target folder without a name")?;
        cargo_build(target, folder.ends_with("release"))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The path of a program.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}{EXE_SUFFIX}"))
    }
}

fn cargo_build(target: &Path, release: bool) -> anyhow::Result<()> {
    // As `cargo test --workspace` does, of which this test is a part: for other packages, or without any
    // test, Cargo would choose other features of their dependencies, and build all of those again.
    let mut cargo = Command::new(var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in vars_os() {
        if OF_THE_TEST.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            cargo.env_remove(name);
        }
    }
    let status = cargo
        .args(["build", "--workspace", "--bins", "--test", "acceptance"])
        .args(release.then_some("--release"))
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the programs do not build: {status}");
    Ok(())
}
