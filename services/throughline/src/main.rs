//! `throughline`: the whole pipeline in one process, and the operators' commands.

use std::process::ExitCode;

use clap::Parser;

/// Filters run under a memory limit, which this allocator measures.
#[global_allocator]
static ALLOCATOR: throughline_transform::Allocator = throughline_transform::Allocator;

#[tokio::main]
async fn main() -> ExitCode {
    throughline_lifecycle::exit_code("throughline", throughline::Command::parse().run().await)
}
