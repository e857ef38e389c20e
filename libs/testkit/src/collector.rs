mod received;
mod server;
mod tls;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, ensure};
use axum::http::HeaderMap;
use tokio::runtime;
use tokio::sync::{oneshot, watch};

pub use self::received::{Attributes, Link, LogRecord, Metric, Span};
pub use self::tls::Credentials;
use crate::measured::{Number, Point};

/// An OpenTelemetry collector in this process, which keeps everything that it receives: OTLP over gRPC and over HTTP,
/// on one port. It closes when dropped.
///
/// It has its own thread and runtime, so that it responds whatever a test does with the test's runtime.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    is_secure: bool,
    kept: Arc<Kept>,
    is_hanging: watch::Sender<bool>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    close: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// A received export request.
#[derive(Debug, Clone)]
pub struct Export {
    /// Its path; over gRPC it is `/<service>/<method>`.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
}

/// Everything that a collector has received.
#[derive(Debug, Default)]
struct Kept {
    exports: Mutex<Vec<Export>>,
    spans: Mutex<Vec<Span>>,
    logs: Mutex<Vec<LogRecord>>,
    /// The newest metric of each name and resource.
    metrics: Mutex<Vec<Metric>>,
}

impl Collector {
    /// Opens a collector on a free port.
    ///
    /// # Errors
    /// If no port is free.
    pub fn open() -> anyhow::Result<Self> {
        Self::start(None)
    }

    /// Opens a collector on a free port, for TLS only.
    ///
    /// # Errors
    /// If no port is free, or the credentials are invalid.
    pub fn open_secured(credentials: &Credentials) -> anyhow::Result<Self> {
        Self::start(Some(credentials))
    }

    fn start(credentials: Option<&Credentials>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut collector = Self {
            address: listener.local_addr()?,
            is_secure: credentials.is_some(),
            kept: Arc::default(),
            is_hanging: watch::Sender::new(false),
            open: None,
        };
        let tls = credentials.map(Credentials::acceptor).transpose()?;
        collector.serve(listener, tls)?;
        Ok(collector)
    }

    /// Returns the endpoint, `http://…` or `https://…`: used unchanged for gRPC, with the signal's path for HTTP.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Returns the environment variables that make a program export to this collector without delay.
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        const SOON: &str = "50";
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.endpoint()),
            ("OTEL_BSP_SCHEDULE_DELAY", SOON.to_owned()),
            ("OTEL_BLRP_SCHEDULE_DELAY", SOON.to_owned()),
            ("OTEL_METRIC_EXPORT_INTERVAL", SOON.to_owned()),
        ]
    }

    /// Closes the collector: connections end, new ones are refused.
    pub fn close(&mut self) {
        let Some(Open { close, thread }) = self.open.take() else { return };
        // Neither can fail unless the thread has panicked, which the panic message has reported.
        let _ = close.send(());
        let _ = thread.join();
    }

    /// Reopens a closed collector on the same port, without TLS.
    ///
    /// # Errors
    /// If another process uses the port.
    pub fn reopen(&mut self) -> anyhow::Result<()> {
        let listener = TcpListener::bind(self.address).context("cannot come back")?;
        self.serve(listener, None)
    }

    /// From now on accepts requests without answering them.
    pub fn hang(&self) {
        self.is_hanging.send_replace(true);
    }

    /// Answers requests again, including those that are still waiting.
    pub fn answer(&self) {
        self.is_hanging.send_replace(false);
    }

    /// Returns all requests so far.
    #[must_use]
    pub fn exports(&self) -> Vec<Export> {
        lock(&self.kept.exports).clone()
    }

    /// Returns all spans so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        lock(&self.kept.spans).clone()
    }

    /// Returns all log records so far.
    #[must_use]
    pub fn logs(&self) -> Vec<LogRecord> {
        lock(&self.kept.logs).clone()
    }

    /// Returns the latest metrics of each exporting process.
    #[must_use]
    pub fn metrics(&self) -> Vec<Metric> {
        lock(&self.kept.metrics).clone()
    }

    /// Returns the latest value of a metric: the sum of all points with at least these attributes.
    ///
    /// # Errors
    /// If the metric has not been received.
    pub fn value(&self, name: &str, attributes: &[(&str, &str)]) -> anyhow::Result<Number> {
        let metrics = self.metrics();
        let points: Vec<&Point> = metrics
            .iter()
            .filter(|metric| metric.name == name)
            .flat_map(|metric| &metric.points)
            .filter(|point| point.has(attributes))
            .collect();
        ensure!(!points.is_empty(), "no {name} with {attributes:?} among {metrics:?}");
        Ok(Point::sum(points))
    }

    fn serve(&mut self, listener: TcpListener, tls: Option<tokio_rustls::TlsAcceptor>) -> anyhow::Result<()> {
        listener.set_nonblocking(true)?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (close, closed) = oneshot::channel();
        let router = server::router(Arc::clone(&self.kept), self.is_hanging.subscribe());
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    ended = server::run(listener, tls, router) => ended,
                    _ = closed => Ok(()),
                }
            })
        };
        let thread = thread::Builder::new().name("collector".to_owned()).spawn(move || {
            let ended: io::Result<()> = serve();
            if let Err(error) = ended {
                panic!("the collector has broken down: {error}");
            }
        })?;
        self.open = Some(Open { close, thread });
        Ok(())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.close();
    }
}

impl Kept {
    fn keep_metrics(&self, metrics: Vec<Metric>) {
        let mut kept = lock(&self.metrics);
        for metric in metrics {
            kept.retain(|old| old.name != metric.name || old.resource != metric.resource);
            kept.push(metric);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
