//! A process, and what it does when it is sent signals.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic like these")]

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use throughline_lifecycle::{Shutdown, Tasks};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// What starts the process, which is this very program again.
const PROCESS: &str = "the_process";

/// Longer than any of this may take.
const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
#[ignore = "it is started by the other tests"]
#[expect(clippy::print_stdout, reason = "that is how it tells the other tests")]
async fn the_process() {
    let shutdown = Shutdown::on_signals(LONG).unwrap();
    let mut tasks = Tasks::new(shutdown.clone());
    tasks.spawn("worker", async move {
        println!("\nready");
        shutdown.soft().cancelled().await;
        println!("soft");
        shutdown.hard().cancelled().await;
        println!("hard");
        Ok::<_, std::io::Error>(())
    });
    tasks.join().await.unwrap();
}

struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([PROCESS, "--exact", "--ignored", "--nocapture"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    async fn send(&self, signal: &str) {
        let id = self.child.id().unwrap().to_string();
        // The shell's own `kill`: a bare machine has no other.
        let command = r#"kill -s "$0" "$1""#;
        let sent = Command::new("sh").args(["-c", command, signal, &id]).status().await.unwrap();
        assert!(sent.success());
    }

    async fn says(&mut self, expected: &str) {
        let said = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if line == expected {
                    return;
                }
            }
            panic!("it ended without saying {expected}");
        };
        timeout(LONG, said).await.unwrap();
    }

    async fn ends(mut self) -> ExitStatus {
        timeout(LONG, self.child.wait()).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn the_first_signal_is_soft_and_the_second_is_hard() {
    for (first, second) in [("TERM", "INT"), ("INT", "TERM")] {
        let mut process = Process::start();
        process.says("ready").await;
        process.send(first).await;
        process.says("soft").await;
        process.send(second).await;
        process.says("hard").await;
        assert!(process.ends().await.success());
    }
}
