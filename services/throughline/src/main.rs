//! `throughline`: the whole pipeline in one process, and what operators run.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    match throughline::Command::parse().run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error),
    }
}

#[expect(clippy::print_stderr, reason = "a command's user reads its errors there")]
fn complain(error: &anyhow::Error) -> ExitCode {
    eprintln!("throughline: {}", throughline_lifecycle::in_words(error.as_ref()));
    ExitCode::FAILURE
}
