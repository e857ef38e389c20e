//! Clients of Prometheus, Tempo and Loki.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use clap::Args;
use reqwest::{Client, Url};
use serde_json::Value;
use throughline_testkit::eventually;

const TIMEOUT: Duration = Duration::from_secs(20);
const READY: Duration = Duration::from_mins(1);

/// The step of range queries, in seconds.
const STEP: &str = "5";

/// The addresses of the backends (default: those of docker-compose.yml).
#[derive(Debug, Args)]
pub(crate) struct Addresses {
    /// The Collector's endpoint for OTLP over HTTP.
    #[arg(long, env = "OTLP_URL", default_value = "http://127.0.0.1:4318")]
    pub(crate) otlp: Url,
    /// Prometheus.
    #[arg(long, env = "PROMETHEUS_URL", default_value = "http://127.0.0.1:9090")]
    prometheus: Url,
    /// Tempo.
    #[arg(long, env = "TEMPO_URL", default_value = "http://127.0.0.1:3200")]
    tempo: Url,
    /// Loki.
    #[arg(long, env = "LOKI_URL", default_value = "http://127.0.0.1:3100")]
    loki: Url,
}

/// Queries the backends.
pub(crate) struct Backends {
    http: Client,
    pub(crate) addresses: Addresses,
}

/// A time range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Time {
    pub(crate) from: DateTime<Utc>,
    pub(crate) to: DateTime<Utc>,
}

impl Backends {
    pub(crate) fn new(addresses: Addresses) -> anyhow::Result<Self> {
        Ok(Self { http: Client::builder().no_proxy().timeout(TIMEOUT).build()?, addresses })
    }

    /// Waits until all backends are ready.
    pub(crate) async fn are_ready(&self) -> anyhow::Result<()> {
        let Addresses { prometheus, tempo, loki, .. } = &self.addresses;
        for (base, path) in [(prometheus, "/-/ready"), (tempo, "/ready"), (loki, "/ready")] {
            let url = base.join(path)?;
            eventually(url.as_str(), READY, async || {
                Ok(self.http.get(url.clone()).send().await?.error_for_status().map(drop)?)
            })
            .await?;
        }
        Ok(())
    }

    /// The series of a PromQL expression at a time.
    pub(crate) async fn now(&self, expression: &str, at: DateTime<Utc>) -> anyhow::Result<Vec<Value>> {
        let parameters = [("query", expression), ("time", &seconds(at))];
        let answer = self.prometheus("/api/v1/query", &parameters).await?;
        answer["result"].as_array().cloned().with_context(|| format!("no series: {answer}"))
    }

    /// The series of a PromQL expression in a time range.
    pub(crate) async fn over(&self, expression: &str, time: Time) -> anyhow::Result<Vec<Value>> {
        let (from, to) = (seconds(time.from), seconds(time.to));
        let parameters = [("query", expression), ("start", &from), ("end", &to), ("step", STEP)];
        let answer = self.prometheus("/api/v1/query_range", &parameters).await?;
        answer["result"].as_array().cloned().with_context(|| format!("no series: {answer}"))
    }

    /// Queries an endpoint of Prometheus under `/api/v1`.
    pub(crate) async fn prometheus(&self, path: &str, parameters: &[(&str, &str)]) -> anyhow::Result<Value> {
        Ok(self.get(&self.addresses.prometheus, path, parameters).await?["data"].take())
    }

    /// Queries an endpoint of Loki under `/loki/api/v1`.
    pub(crate) async fn loki(&self, path: &str, parameters: &[(&str, &str)]) -> anyhow::Result<Value> {
        Ok(self.get(&self.addresses.loki, path, parameters).await?["data"].take())
    }

    /// The results of a LogQL expression in a time range: streams of lines, or series.
    pub(crate) async fn logs(&self, expression: &str, time: Time) -> anyhow::Result<Vec<Value>> {
        let (from, to) = (nanoseconds(time.from), nanoseconds(time.to));
        let parameters = [("query", expression), ("start", &from), ("end", &to), ("limit", "1000")];
        let answer = self.loki("/loki/api/v1/query_range", &parameters).await?;
        answer["result"].as_array().cloned().with_context(|| format!("no lines: {answer}"))
    }

    /// The series of a LogQL expression at a time.
    pub(crate) async fn logs_now(&self, expression: &str, at: DateTime<Utc>) -> anyhow::Result<Vec<Value>> {
        let parameters = [("query", expression), ("time", &nanoseconds(at))];
        let answer = self.loki("/loki/api/v1/query", &parameters).await?;
        answer["result"].as_array().cloned().with_context(|| format!("no series: {answer}"))
    }

    /// The traces that a TraceQL expression finds.
    pub(crate) async fn traces(&self, expression: &str, time: Time) -> anyhow::Result<Vec<Value>> {
        let (from, to) = (time.from.timestamp().to_string(), (time.to.timestamp() + 1).to_string());
        let parameters = [("q", expression), ("start", &from), ("end", &to), ("limit", "50")];
        let answer = self.get(&self.addresses.tempo, "/api/search", &parameters).await?;
        answer["traces"].as_array().cloned().with_context(|| format!("no traces: {answer}"))
    }

    /// One trace, as OTLP.
    pub(crate) async fn trace(&self, id: &str) -> anyhow::Result<Value> {
        self.get(&self.addresses.tempo, &format!("/api/traces/{id}"), &[]).await
    }

    async fn get(&self, base: &Url, path: &str, parameters: &[(&str, &str)]) -> anyhow::Result<Value> {
        let answer = self.http.get(base.join(path)?).query(parameters).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{status}: {text}");
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }
}

fn seconds(time: DateTime<Utc>) -> String {
    format!("{}.{:03}", time.timestamp(), time.timestamp_subsec_millis())
}

fn nanoseconds(time: DateTime<Utc>) -> String {
    time.timestamp_nanos_opt().unwrap_or_default().to_string()
}
