//! The whole pipeline in one process, with an embedded broker and database.

mod sandbox;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;

use anyhow::Context as _;
use clap::Args;
use throughline_clock::Clock;
use throughline_ingest::{Broker, Ingest};
use throughline_kafka::EmbeddedBroker;
use throughline_lifecycle::{Shutdown, TaskFailed, Tasks};
use throughline_messages::Topics;
use throughline_settings::{Flags, Settings, load_over};
use throughline_telemetry::{Service, Telemetry};
use tokio_util::sync::CancellationToken;

use self::sandbox::Sandbox;
use crate::command::say;

/// Partitions of each topic of the embedded broker: enough to see keys spread over them.
const PARTITIONS: u32 = 3;

/// Run the whole pipeline in this process, with an embedded broker and database.
#[derive(Debug, Args)]
pub(crate) struct DevFlags {
    #[command(flatten)]
    flags: Flags,
    /// Folder of the database file.
    #[arg(long, value_name = "FOLDER", default_value = ".throughline")]
    data: PathBuf,
    /// Address on which the sandbox third party listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8097")]
    sandbox: SocketAddr,
}

pub(crate) async fn run(dev: DevFlags) -> anyhow::Result<()> {
    let folder = dev.data.display();
    std::fs::create_dir_all(&dev.data)
        .with_context(|| format!("cannot create {folder}; set --data to a writable folder"))?;
    // Validates the configuration before any socket opens. The addresses of the embedded parts are not known yet, and
    // do not affect the result.
    load_over(&defaults(&dev, "localhost:0", dev.sandbox), &dev.flags)?;
    let broker = EmbeddedBroker::start(PARTITIONS)?;
    let sandbox = Sandbox::bind(dev.sandbox).await?;
    let defaults = defaults(&dev, &broker.bootstrap_servers(), sandbox.address());
    let settings = load_over(&defaults, &dev.flags)?.settings;
    let topics = Topics::new(&settings.kafka.prefix);
    let routes = settings.routes.values().map(|route| route.topic.as_str());
    broker.create_topics(&routes.chain(topics.all()).collect::<Vec<_>>())?;
    let telemetry = throughline_telemetry::init_quiet(Service {
        name: "throughline",
        version: env!("CARGO_PKG_VERSION"),
        environment: settings.environment.as_deref(),
    })?;
    let ended = pipeline(settings, &broker, sandbox, &telemetry).await;
    telemetry.shutdown().await;
    // The process exits now. Clients that end in the background until then would log that the broker is gone.
    std::mem::forget(broker);
    ended
}

async fn pipeline(
    settings: Settings,
    broker: &EmbeddedBroker,
    sandbox: Sandbox,
    telemetry: &Telemetry,
) -> anyhow::Result<()> {
    let shutdown = Shutdown::on_signals(settings.shutdown_deadline)?;
    let clock = Clock::system();
    let (kind, watched) = if settings.kafka.bootstrap_servers == broker.bootstrap_servers() {
        (Broker::Forgetful, "embedded; its records are lost on exit")
    } else {
        (Broker::Durable, "external")
    };
    let third_party = sandbox.address();
    // Ingest ends after dispatch: it records the last outcomes of dispatch, which the embedded broker would forget.
    let ingest_shutdown = Shutdown::new();
    let meter = telemetry.meter("throughline-ingest");
    let ingest =
        throughline_ingest::start(settings.clone(), kind, clock.clone(), ingest_shutdown.clone(), &meter);
    let ingest = ingest.await?;
    let meter = telemetry.meter("throughline-dispatch");
    let dispatch =
        throughline_dispatch::start(settings.clone(), clock.clone(), shutdown.clone(), &meter).await?;
    greet(&settings, watched, ingest.address(), dispatch.address(), third_party);

    let mut tasks = Tasks::new(shutdown.clone());
    tasks.spawn("sandbox", sandbox.serve(shutdown.soft().clone()));
    tasks.spawn("watch", watch::run(settings, clock, shutdown.clone(), telemetry.meter("throughline")));
    tasks.spawn("ingest", end_with(ingest, shutdown.hard().clone(), ingest_shutdown.clone()));
    tasks.spawn("dispatch", async move {
        let _then_ingest = ingest_shutdown.soft().clone().drop_guard();
        dispatch.join().await
    });
    Ok(tasks.join().await?)
}

/// Waits for ingest to end, and forces it to end when the process is forced to.
async fn end_with(ingest: Ingest, forced: CancellationToken, shutdown: Shutdown) -> Result<(), TaskFailed> {
    let mut ended = pin!(ingest.join());
    tokio::select! {
        ended = &mut ended => return ended,
        () = forced.cancelled() => shutdown.force(),
    }
    ended.await
}

/// Returns the default settings of `dev`; a file, the environment and flags override them.
fn defaults(dev: &DevFlags, broker: &str, sandbox: SocketAddr) -> String {
    let database = dev.data.join("throughline.db");
    include_str!("dev.yaml")
        .replace("{database}", &format!("sqlite://{}", database.display()))
        .replace("{broker}", broker)
        .replace("{sandbox}", &format!("http://{sandbox}"))
}

fn greet(settings: &Settings, broker: &str, ingest: SocketAddr, dispatch: SocketAddr, sandbox: SocketAddr) {
    let paths: Vec<_> = settings.routes.values().filter_map(|route| route.path.as_deref()).collect();
    let mut endpoints: Vec<_> = paths.iter().map(|path| format!("POST {path}")).collect();
    endpoints.extend(["/v1/requests/<id>", "/docs"].map(str::to_owned));
    let path = paths.first().copied().unwrap_or("/one");
    say(&format!(
        "\
Throughline is running.

  ingest     http://{ingest}   {endpoints}
  dispatch   http://{dispatch}   /readyz
  sandbox    http://{sandbox}   third party: POST /token, POST /three; GET /three lists the calls received
  broker     {bootstrap}   {broker}
  database   {database}

Try:

  curl -i {ingest}{path} -H 'content-type: application/json' \\
    -d '{{\"user_id\":\"u-1\",\"prompt\":\"What is the value of k1?\",\"data\":[{{\"key\":\"k1\",\"value\":\"15\"}}]}}'

The outcome of each attempt appears below. Press Ctrl-C to stop.
",
        endpoints = endpoints.join(", "),
        bootstrap = settings.kafka.bootstrap_servers,
        database = settings.database.display_url(),
    ));
}
