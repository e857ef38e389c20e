use std::fmt::Write as _;
use std::fs::read_to_string;
use std::process::Command;

use super::markdown::project;

/// Runs a script in which a function takes the place of each program, and records its calls.
const RECORDER: &str = r#"
set -euo pipefail
PATH=/nowhere
record() { printf '%s\0' "$#" "$@" >> "$RECORD"; }
cd() { :; }
"#;

/// The programs that documents may call; those of this project have a path. Another one ends the script.
const PROGRAMS: [&str; 18] = [
    "cargo",
    "curl",
    "deploy/helm/verify",
    "deploy/image-sizes",
    "deploy/smoke",
    "deploy/startup-time",
    "docker",
    "git",
    "helm",
    "kafka-configs.sh",
    "kafka-consumer-groups.sh",
    "kafka-topics.sh",
    "kind",
    "kubectl",
    "make",
    "openssl",
    "sqlx",
    "throughline",
];

/// Returns the arguments of each command that a script runs, beginning with the program.
///
/// # Errors
/// If Bash does not parse the script, or it fails, for example because it calls an unknown program.
pub(super) fn commands(script: &str) -> Result<Vec<Vec<String>>, String> {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("record");
    std::fs::write(&record, "").unwrap();
    let mut text = RECORDER.to_owned();
    for program in PROGRAMS {
        assert!(!program.contains('/') || project().join(program).exists(), "{program}");
        writeln!(text, "function {program} {{ record {program} \"$@\"; }}").unwrap();
    }
    text.push_str(script);
    let mut bash = Command::new("bash");
    bash.args(["--noprofile", "--norc", "-c", &text]).env("RECORD", &record).current_dir(&folder);
    let output = bash.output().unwrap();
    // The status alone does not show that a program in the middle of a list is unknown.
    if !output.status.success() || !output.stderr.is_empty() {
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
