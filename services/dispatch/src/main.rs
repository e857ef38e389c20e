//! `throughline-dispatch`: consumes requests from Kafka and delivers them to third-party APIs.

use std::process::ExitCode;

use clap::Parser;
use throughline_clock::Clock;
use throughline_lifecycle::Shutdown;
use throughline_settings::Flags;
use throughline_telemetry::Service;

/// Consumes requests from Kafka, delivers them to third-party APIs, and reports every attempt.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Probe the instance already running on this host and exit 1 unless it is ready (for container health checks).
    #[arg(long)]
    healthcheck: bool,
}

/// Filters run under a memory limit, which this allocator measures.
#[global_allocator]
static ALLOCATOR: throughline_transform::Allocator = throughline_transform::Allocator;

const NAME: &str = "throughline-dispatch";

#[tokio::main]
async fn main() -> ExitCode {
    throughline_lifecycle::exit_code(NAME, run(&Arguments::parse()).await)
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let settings = throughline_settings::load(&arguments.flags)?.settings;
    if arguments.healthcheck {
        return Ok(throughline_lifecycle::healthcheck(settings.dispatch.address).await?);
    }
    let telemetry = throughline_telemetry::init(Service {
        name: NAME,
        version: env!("CARGO_PKG_VERSION"),
        environment: settings.environment.as_deref(),
    })?;
    let shutdown = Shutdown::on_signals(settings.shutdown_deadline)?;
    let meter = telemetry.meter(NAME);
    let ended = async {
        let dispatch = throughline_dispatch::start(settings, Clock::system(), shutdown, &meter).await?;
        dispatch.join().await.map_err(anyhow::Error::from)
    };
    let ended = ended.await;
    telemetry.shutdown().await;
    ended
}
