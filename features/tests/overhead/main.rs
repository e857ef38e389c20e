//! Measures the overhead of telemetry: the same load on the real programs, Apache Kafka and PostgreSQL, alternately with
//! nothing exported and with everything exported (each trace, all logs, all metrics).
//!
//! ```text
//! make bench-telemetry                                # three rounds of 20,000 requests in each mode
//! make bench-telemetry ARGS='--rounds 5 --requests 50000'
//! ```
//!
//! The results are requests per second from the client to the third party, and the processor time of ingest and dispatch
//! per thousand requests. Client, third party and collector share the machine.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use throughline_testkit::{Collector, Environment, Programs, Service, Stage, eventually};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Number of concurrent clients; each posts one request after the other.
const CLIENTS: usize = 64;
/// Deadline for all requests of a round to reach the third party.
const DEADLINE: Duration = Duration::from_mins(5);
/// About the size of a request of the reference architecture.
const BODY: &str = r#"{"user_id":"u-1","prompt":"What is the value of k1?","data":[{"key":"k1","value":"15"},{"key":"k2","value":"a value that is somewhat longer than the others are"}]}"#;

/// Measures the overhead of telemetry.
#[derive(Debug, Parser)]
struct Options {
    /// Number of measurements in each mode.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Number of requests per measurement.
    #[arg(long, default_value_t = 20_000)]
    requests: usize,
}

/// The result of a measurement.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// Requests per second.
    rate: f64,
    /// Seconds of processor time per thousand requests.
    ingest: f64,
    dispatch: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("*** FAILED: {error:#} ***"));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> anyhow::Result<()> {
    Environment::engine().await.context("the bench needs PostgreSQL and Kafka")?;
    let environment = Environment::containers(Programs::build()?).await?;
    // Warms the caches of the servers.
    measure(&environment, None, options.requests / 4).await?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let nothing = measure(&environment, None, options.requests).await?;
        say(format_args!("{round}  nothing exported     {nothing}"));
        let collector = Collector::open()?;
        let everything = measure(&environment, Some(&collector), options.requests).await?;
        say(format_args!("{round}  everything exported  {everything}"));
        without.push(nothing);
        with.push(everything);
    }
    let (without, with) = (median(&without), median(&with));
    say(format_args!("median, nothing exported     {without}"));
    say(format_args!("median, everything exported  {with}"));
    say(format_args!(
        "exporting everything costs {:+.0} % processor time; the rate is {:.2} times that without export",
        (with.total() / without.total() - 1.0) * 100.0,
        with.rate / without.rate
    ));
    Ok(())
}

/// Posts the requests, and waits until the third party has received all.
async fn measure(
    environment: &Environment,
    collector: Option<&Collector>,
    requests: usize,
) -> anyhow::Result<Cost> {
    let third_party = ThirdParty::open().await?;
    let mut stage = Stage::set(environment).await?;
    let receiver = format!("{}/receiver", stage.third_party().url());
    let ours = format!("http://{}/receiver", third_party.address);
    stage.configure(&stage.configuration()?.replace(&receiver, &ours))?;
    if let Some(collector) = collector {
        stage.export_all_to(collector)?;
    }
    stage.start(Service::Ingest).await?;
    stage.start(Service::Dispatch).await?;
    // The first request includes the start of the consumer group.
    post(&stage, 1).await?;
    third_party.has(1).await?;

    let before = [stage.cpu_time(Service::Ingest)?, stage.cpu_time(Service::Dispatch)?];
    let began = Instant::now();
    post(&stage, requests).await?;
    third_party.has(1 + requests).await?;
    let took = began.elapsed();
    // Late exports also count, so the time is read after the programs have exited.
    let after = [stage.cpu_time(Service::Ingest)?, stage.cpu_time(Service::Dispatch)?];
    stage.stop(Service::Dispatch).await?;
    stage.stop(Service::Ingest).await?;
    #[expect(clippy::cast_precision_loss, reason = "far fewer requests than 2^52")]
    let count = requests as f64;
    let of_a_thousand =
        |index: usize| after[index].saturating_sub(before[index]).as_secs_f64() / count * 1000.0;
    Ok(Cost { rate: count / took.as_secs_f64(), ingest: of_a_thousand(0), dispatch: of_a_thousand(1) })
}

async fn post(stage: &Stage, requests: usize) -> anyhow::Result<()> {
    let url = format!("http://{}/github", stage.address(Service::Ingest)?);
    let http = reqwest::Client::builder().no_proxy().build()?;
    let left = Arc::new(AtomicUsize::new(requests));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS.min(requests) {
        let (http, url, left) = (http.clone(), url.clone(), Arc::clone(&left));
        clients.spawn(async move {
            let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            while take().is_ok() {
                let posted = http.post(&url).header("content-type", "application/json").body(BODY).send();
                posted.await?.error_for_status()?.bytes().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}

fn median(costs: &[Cost]) -> Cost {
    let of = |value: fn(&Cost) -> f64| {
        let mut values: Vec<_> = costs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Cost { rate: of(|cost| cost.rate), ingest: of(|cost| cost.ingest), dispatch: of(|cost| cost.dispatch) }
}

impl Cost {
    fn total(&self) -> f64 {
        self.ingest + self.dispatch
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, ingest, dispatch } = self;
        write!(f, "{rate:7.0} requests/s; processor s per 1,000: ingest {ingest:.3}, dispatch {dispatch:.3}")
    }
}

/// A server that answers 200 to everything and counts the calls.
struct ThirdParty {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
    _connections: JoinSet<()>,
}

impl ThirdParty {
    async fn open() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let calls = Arc::<AtomicUsize>::default();
        let mut connections = JoinSet::new();
        let counted = Arc::clone(&calls);
        connections.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                connections.spawn(answer(connection, Arc::clone(&counted)));
            }
        });
        Ok(Self { address, calls, _connections: connections })
    }

    /// Waits until it has received `calls` calls.
    async fn has(&self, calls: usize) -> anyhow::Result<()> {
        eventually("all requests to reach the third party", DEADLINE, async || {
            let came = self.calls.load(Ordering::Relaxed);
            anyhow::ensure!(came >= calls, "{came} of {calls}");
            Ok(())
        })
        .await
    }
}

async fn answer(connection: TcpStream, calls: Arc<AtomicUsize>) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let calls = Arc::clone(&calls);
        async move {
            // A truncated body does not count as a call.
            if request.into_body().collect().await.is_ok() {
                calls.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }
    });
    // Errors are ignored: the client closes the connection.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), answer).await;
}

#[expect(clippy::print_stdout, reason = "the report of a benchmark is for its stdout")]
fn say(what: impl fmt::Display) {
    println!("{what}");
}
