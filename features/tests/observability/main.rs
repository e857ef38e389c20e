//! Verifies the telemetry that the real services export to the real backends.
//!
//! Sends requests that end in every possible way, and interrupts the Collector under load. Then queries Tempo,
//! Prometheus and Loki: the trace of a request, span by span; each query of each panel, variable, recording rule and
//! alert; the log lines of a request. No query may fail or return an empty result.
//!
//! ```text
//! make test-observability                     # with the backends of `make up PROFILES=observability`
//! make test-observability ARGS='--tempo http://…'
//! ```
#![expect(clippy::indexing_slicing, reason = "a missing JSON value is null")]

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

/// Set in CI, where a test that cannot run counts as failed.
const REQUIRE: &str = "REQUIRE_CONTAINERS";

/// Verifies the telemetry that the real services export to the real backends.
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
            say("all telemetry is complete");
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
        "*** {word}: the observability test needs PostgreSQL, Kafka and the Grafana stack: {why:#} ***"
    ));
    if is_required { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Returns all violations.
async fn run(backends: &Backends) -> anyhow::Result<Vec<String>> {
    let mut scene = Scene::set(Programs::build()?, backends).await?;
    say(format_args!("the services export telemetry of the environment {}", scene.environment()));
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
