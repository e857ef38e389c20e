//! `throughline-dispatch`: takes requests from Kafka and sees them through to third-party APIs.

use std::process::ExitCode;

use clap::Parser;
use throughline_clock::Clock;
use throughline_config::Flags;
use throughline_lifecycle::Shutdown;

/// Takes requests from Kafka, delivers them to third-party APIs, reports every attempt.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
}

#[tokio::main]
async fn main() -> ExitCode {
    throughline_lifecycle::exit_code("throughline-dispatch", run(&Arguments::parse().flags).await)
}

async fn run(flags: &Flags) -> anyhow::Result<()> {
    let settings = throughline_config::load(flags)?.settings;
    let telemetry = throughline_telemetry::init("throughline-dispatch", env!("CARGO_PKG_VERSION"))?;
    let shutdown = Shutdown::on_signals(settings.shutdown_deadline)?;
    let meter = telemetry.meter("throughline-dispatch");
    let ended = async {
        let dispatch = throughline_dispatch::start(settings, Clock::system(), shutdown, &meter).await?;
        dispatch.join().await.map_err(anyhow::Error::from)
    };
    let ended = ended.await;
    telemetry.shutdown().await;
    ended
}
