//! Reads back from the real backends what the real services export.
//!
//! Drives requests through everything that may become of one, and has the Collector go away under load. Then asks
//! Tempo, Prometheus and Loki: for the trace of a request, span by span; for each query of each panel, variable,
//! recording rule and alert; for the log lines of a request. No query may fail, and none may find nothing.
//!
//! ```text
//! make test-observability                     # with the backends of `make up PROFILES=observability`
//! make test-observability ARGS='--tempo http://…'
//! ```
#![expect(clippy::indexing_slicing, reason = "what JSON has not is null")]

mod backends;
mod dashboards;
mod door;
mod outage;
mod reading;
mod rules;
mod scene;
mod script;

use std::env::var_os;
use std::fmt::Display;
use std::process::ExitCode;

use clap::Parser;
use throughline_testkit::{Environment, Programs};

use crate::backends::{Addresses, Backends};
use crate::scene::Scene;

/// Set in CI: there, what cannot run has failed.
const REQUIRE: &str = "REQUIRE_CONTAINERS";

/// Reads back from the real backends what the real services export.
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    addresses: Addresses,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let backends = match prepare(options.addresses).await {
        Ok(backends) => backends,
        Err(why) => return cannot_run(&why),
    };
    match run(&backends).await {
        Ok(wrong) if wrong.is_empty() => {
            say("all of it is there");
            ExitCode::SUCCESS
        }
        Ok(wrong) => {
            for wrong in wrong {
                say(format_args!("*** WRONG: {wrong} ***"));
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            say(format_args!("*** FAILED: {error:#} ***"));
            ExitCode::FAILURE
        }
    }
}

async fn prepare(addresses: Addresses) -> anyhow::Result<Backends> {
    Environment::engine().await?;
    let backends = Backends::new(addresses)?;
    backends.are_ready().await?;
    Ok(backends)
}

fn cannot_run(why: &anyhow::Error) -> ExitCode {
    let is_required = var_os(REQUIRE).is_some_and(|value| value == "1");
    let word = if is_required { "FAILED" } else { "SKIPPED" };
    say(format_args!(
        "*** {word}: the observability test, which needs PostgreSQL, Kafka and the Grafana stack, because {why:#} ***"
    ));
    if is_required { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// All that is wrong.
async fn run(backends: &Backends) -> anyhow::Result<Vec<String>> {
    let mut scene = Scene::set(Programs::build()?, backends).await?;
    say(format_args!("the services export as environment {}", scene.environment()));
    let played = script::play(&mut scene).await?;
    let outage = outage::play(&scene).await?;
    let mut wrong = reading::read(backends, &scene, &played, outage.unseen).await;
    wrong.extend(outage.wrong);
    Ok(wrong)
}

#[expect(clippy::print_stdout, reason = "the report of a test is for its stdout")]
fn say(what: impl Display) {
    println!("{what}");
}
