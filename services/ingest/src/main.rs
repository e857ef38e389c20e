//! `throughline-ingest`: accepts requests over HTTP and sees them into Kafka.

use std::process::ExitCode;

use clap::Parser;
use throughline_clock::Clock;
use throughline_config::Flags;
use throughline_ingest::Broker;
use throughline_lifecycle::Shutdown;

/// Accepts requests over HTTP, keeps them in the database, publishes them to Kafka.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
}

#[tokio::main]
async fn main() -> ExitCode {
    throughline_lifecycle::exit_code("throughline-ingest", run(&Arguments::parse().flags).await)
}

async fn run(flags: &Flags) -> anyhow::Result<()> {
    let settings = throughline_config::load(flags)?.settings;
    let telemetry = throughline_telemetry::init("throughline-ingest", env!("CARGO_PKG_VERSION"))?;
    let shutdown = Shutdown::on_signals(settings.shutdown_deadline)?;
    let meter = telemetry.meter("throughline-ingest");
    let ended = async {
        let ingest =
            throughline_ingest::start(settings, Broker::Durable, Clock::system(), shutdown, &meter).await?;
        ingest.join().await.map_err(anyhow::Error::from)
    };
    let ended = ended.await;
    telemetry.shutdown().await;
    ended
}
