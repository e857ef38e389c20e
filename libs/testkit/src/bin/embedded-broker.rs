//! librdkafka's mock cluster as a program. It prints the address that it listens on. Then it executes the commands
//! from its input, one per line (`topics <name> <name> …`, `go away`, `come back`), and prints `done` after each. It
//! exits at the end of its input.
//!
//! A test that starts other programs must not have the cluster in its own process: those programs would inherit the
//! sockets, which librdkafka does not mark as close-on-exec, and keep connections open that the cluster has closed. A
//! client that waits for a response on one of those waits for ever.

use std::io::{Write, stdin, stdout};

use anyhow::{Context as _, bail};
use throughline_kafka::EmbeddedBroker;

/// Partitions of each topic.
const PARTITIONS: u32 = 3;

fn main() -> anyhow::Result<()> {
    let broker = EmbeddedBroker::start(PARTITIONS)?;
    say(&broker.bootstrap_servers())?;
    for line in stdin().lines() {
        obey(&broker, &line?)?;
        say("done")?;
    }
    Ok(())
}

fn obey(broker: &EmbeddedBroker, line: &str) -> anyhow::Result<()> {
    match line {
        "go away" => Ok(broker.down()?),
        "come back" => Ok(broker.up()?),
        _ => match line.strip_prefix("topics ") {
            Some(names) => Ok(broker.create_topics(&names.split(' ').collect::<Vec<_>>())?),
            None => bail!("cannot `{line}`"),
        },
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("no program reads the address")
}
