use std::env::{consts::EXE_SUFFIX, current_exe, var_os, vars_os};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// The variable with the folder of programs that are already built, for testing them as they are.
const READY: &str = "THROUGHLINE_PROGRAMS";

/// Prefixes of the variables that Cargo sets for a running test. Build scripts depend on them (that of ring does),
/// and would run again whenever they differ.
const OF_THE_TEST: [&str; 4] = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_CRATE_", "CARGO_BIN_"];

/// The folder of the real programs.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Builds the programs with the profile and into the folder of the running test.
    ///
    /// Cargo builds only changed code; without this build, a test might run outdated programs. If the variable
    /// `THROUGHLINE_PROGRAMS` names a folder, the programs in it are used as they are.
    ///
    /// # Errors
    /// If the programs do not build.
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

    /// Returns the path of a program.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}{EXE_SUFFIX}"))
    }
}

fn cargo_build(target: &Path, release: bool) -> anyhow::Result<()> {
    // The arguments match `cargo test --workspace`, which this test is part of: for other packages, or without any
    // test, Cargo would choose other features of the dependencies and rebuild all of them.
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
