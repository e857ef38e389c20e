//! `throughline-ingest`: accepts requests over HTTP and publishes them to Kafka.

use std::process::ExitCode;

use clap::Parser;
use throughline_clock::Clock;
use throughline_ingest::Broker;
use throughline_lifecycle::Shutdown;
use throughline_settings::Flags;
use throughline_telemetry::Service;

/// Accepts requests over HTTP, stores them in the database and publishes them to Kafka.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Probe the instance already running on this host and exit 1 unless it is ready (for container health checks).
    #[arg(long)]
    healthcheck: bool,
}

const NAME: &str = "throughline-ingest";

#[tokio::main]
async fn main() -> ExitCode {
    throughline_lifecycle::exit_code(NAME, run(&Arguments::parse()).await)
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let settings = throughline_settings::load(&arguments.flags)?.settings;
    if arguments.healthcheck {
        return Ok(throughline_lifecycle::healthcheck(settings.http.health_address).await?);
    }
    let telemetry = throughline_telemetry::init(Service {
        name: NAME,
        version: env!("CARGO_PKG_VERSION"),
        environment: settings.environment.as_deref(),
    })?;
    let shutdown = Shutdown::on_signals(settings.shutdown_deadline)?;
    let meter = telemetry.meter(NAME);
    let ended = async {
        let ingest =
            throughline_ingest::start(settings, Broker::Durable, Clock::system(), shutdown, &meter).await?;
        ingest.join().await.map_err(anyhow::Error::from)
    };
    let ended = ended.await;
    telemetry.shutdown().await;
    ended
}
