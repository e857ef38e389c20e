use std::fmt::Write as _;
use std::fs::read_to_string;
use std::process::Command;

use super::markdown::project;

/// Runs a script without any program, and records each call of one: Bash calls this function instead.
const RECORDER: &str = r#"
set -euo pipefail
PATH=/nowhere
record() { printf '%s\0' "$#" "$@" >> "$RECORD"; }
command_not_found_handle() { record "$@"; }
cd() { :; }
"#;

/// The programs of the project that documents call by their paths.
const SCRIPTS: [&str; 4] =
    ["deploy/smoke", "deploy/image-sizes", "deploy/startup-time", "deploy/helm/verify"];

/// Returns the arguments of each command that a script runs, beginning with the program.
///
/// # Errors
/// If Bash does not parse the script, or it fails.
pub(super) fn commands(script: &str) -> Result<Vec<Vec<String>>, String> {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("record");
    std::fs::write(&record, "").unwrap();
    let mut text = RECORDER.to_owned();
    for script in SCRIPTS {
        assert!(project().join(script).exists(), "{script}");
        writeln!(text, "function {script} {{ record {script} \"$@\"; }}").unwrap();
    }
    text.push_str(script);
    let mut bash = Command::new("bash");
    bash.args(["--noprofile", "--norc", "-c", &text]).env("RECORD", &record).current_dir(&folder);
    let output = bash.output().unwrap();
    if !output.status.success() {
        return Err(format!("the script fails: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let recorded = read_to_string(record).unwrap();
    let mut words = recorded.split_terminator('\0').map(str::to_owned);
    let mut commands = Vec::new();
    while let Some(count) = words.next() {
        commands.push(words.by_ref().take(count.parse().unwrap()).collect());
    }
    Ok(commands)
}
