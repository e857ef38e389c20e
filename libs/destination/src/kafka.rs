//! Kafka topics of others: a call produces a record and waits until all in-sync replicas have it.
//!
//! The record's headers are those of the `CloudEvents` Kafka binding in binary mode, like those of a route's topic:
//! `ce_id` is the request's id, the same in every attempt, so that consumers recognise a repeated record. The key is
//! the request's ordering key, or else its id.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use throughline_config::{Findings, Path, Property, Secret};
use throughline_kafka::{Outgoing, Position, Producer, SendError, is_topic_name};
use throughline_messages::{ErrorClass, Failure, RequestRecord};
use throughline_resilience::Cause;
use tokio::time::{Instant, timeout_at};
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use crate::{BuildError, CallFailure, Called, Context, Deferral, Destination, KindSettings, OutgoingRequest};

/// The settings of a Kafka topic.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The topic that requests are produced to. It must exist.
    pub topic: String,
    /// `host:port` of the cluster that has the topic; several are separated by commas. Default: the cluster of the
    /// section `kafka`, with all its properties.
    #[serde(default)]
    pub bootstrap_servers: Option<String>,
    /// librdkafka settings for that cluster, by their own names; a value may be a secret. They require
    /// `bootstrap_servers`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Property>")]
    pub properties: BTreeMap<String, Secret>,
    /// Headers of each record, by name; a value may be a secret.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
}

impl Settings {
    /// Returns the connection to the cluster that has the topic.
    fn cluster(&self, own: &throughline_kafka::Settings) -> throughline_kafka::Settings {
        match &self.bootstrap_servers {
            None => own.clone(),
            Some(servers) => throughline_kafka::Settings {
                bootstrap_servers: servers.clone(),
                prefix: own.prefix.clone(),
                properties: self.properties.clone(),
                ..throughline_kafka::Settings::default()
            },
        }
    }
}

impl KindSettings for Settings {
    fn check(&self, path: &Path, findings: &mut Findings) {
        // The names of topics of our own cluster are checked with those of the routes.
        findings.expect(
            self.bootstrap_servers.is_none() || is_topic_name(&self.topic),
            || path.key("topic"),
            "expected a topic name of at most 249 letters, digits, `.`, `_` and `-`",
        );
        findings.expect(
            self.bootstrap_servers.as_ref().is_none_or(|servers| !servers.trim().is_empty()),
            || path.key("bootstrap_servers"),
            "expected the addresses of the brokers, such as `kafka-1:9092,kafka-2:9092`",
        );
        findings.expect(
            self.properties.is_empty() || self.bootstrap_servers.is_some(),
            || path.key("properties"),
            "belong to a cluster of its own: add `bootstrap_servers`, or set them in `kafka.properties`",
        );
        for name in self.headers.keys() {
            findings.expect(
                !is_ours(name),
                || path.key("headers").key(name),
                "is set by dispatch itself: the record is a CloudEvent with a trace context",
            );
        }
    }

    fn passwords(&self, path: &Path) -> Vec<(Path, &str)> {
        throughline_kafka::Settings::passwords(&self.properties, &path.key("properties")).collect()
    }

    fn topic_of_own_cluster(&self) -> Option<&str> {
        self.bootstrap_servers.is_none().then_some(&self.topic)
    }

    fn build(&self, name: &str, context: &Context<'_>) -> Result<Box<dyn Destination>, BuildError> {
        let cluster = self.cluster(context.kafka);
        let client = format!("{}-dispatch-destination-{name}", cluster.prefix);
        let producer = Producer::with_timeout(&cluster, &client, context.timeout, context.meter)
            .map_err(BuildError::KafkaClient)?;
        let headers = self.headers.iter();
        let headers = headers.map(|(name, value)| (name.clone(), value.expose().to_owned().into()));
        let (topic, headers) = (self.topic.clone(), headers.collect());
        Ok(Box::new(Kafka { name: name.to_owned(), topic, headers, producer }))
    }
}

/// Returns whether dispatch sets this header itself.
fn is_ours(name: &str) -> bool {
    name.starts_with("ce_") || ["content-type", "traceparent", "tracestate"].contains(&name)
}

/// A topic, with a producer of its own.
struct Kafka {
    name: String,
    topic: String,
    headers: Vec<(String, Bytes)>,
    producer: Producer,
}

impl Destination for Kafka {
    fn call<'a>(&'a self, request: &'a OutgoingRequest<'a>) -> BoxFuture<'a, Result<Called, Deferral>> {
        async {
            let span = self.span(request);
            let record = self.record(request, &span);
            let deadline = Instant::now() + request.timeout;
            let sent = match timeout_at(deadline, self.producer.send(&record)).instrument(span.clone()).await
            {
                Ok(sent) => sent.map_err(|error| classify(&error)),
                Err(_) => Err(unacknowledged(request)),
            };
            note(&span, &sent);
            Ok(Called {
                status: None,
                excerpt: sent.as_ref().ok().map(|position| self.stored_at(*position)),
                result: sent.map(drop),
            })
        }
        .boxed()
    }
}

impl Kafka {
    fn record(&self, request: &OutgoingRequest<'_>, span: &Span) -> Outgoing {
        let RequestRecord { id, route, accepted_at, .. } = request.request;
        let content_type = request.body.content_type.to_str().unwrap_or("application/octet-stream");
        let described = RequestRecord {
            id: *id,
            route: route.clone(),
            accepted_at: *accepted_at,
            content_type: content_type.to_owned(),
            trace: throughline_telemetry::context_of(span).or_else(|| request.request.trace.clone()),
        };
        let mut headers = described.to_headers();
        headers.extend(self.headers.iter().cloned());
        Outgoing {
            topic: self.topic.clone(),
            key: Some(request.key.cloned().unwrap_or_else(|| id.to_string().into())),
            headers,
            payload: request.body.content.clone(),
        }
    }

    fn stored_at(&self, position: Position) -> String {
        format!("stored at {}/{}/{}", self.topic, position.partition, position.offset)
    }

    /// Creates the PRODUCER span, following OpenTelemetry's conventions for messaging.
    fn span(&self, request: &OutgoingRequest<'_>) -> Span {
        info_span!(
            "send",
            otel.kind = "producer",
            otel.name = format!("send {}", self.topic),
            otel.status_code = Empty,
            otel.status_description = Empty,
            error.type = Empty,
            messaging.system = "kafka",
            messaging.operation.name = "send",
            messaging.operation.type = "send",
            messaging.destination.name = self.topic,
            messaging.destination.partition.id = Empty,
            messaging.kafka.offset = Empty,
            messaging.message.id = %request.request.id,
            messaging.message.body.size = request.body.content.len(),
            throughline.destination = self.name,
            throughline.delivery.attempt = request.attempt,
            throughline.request.id = %request.request.id,
        )
    }
}

/// Classifies the error of a record. Only the broker's refusal of the record itself is final: a missing topic or
/// permission can be added.
fn classify(error: &SendError) -> CallFailure {
    let (class, retry) = match error {
        SendError::Refused { .. } => (ErrorClass::Broker, None),
        SendError::QueueFull | SendError::Replaced => (ErrorClass::Connect, Some(Cause::NoResponse)),
        SendError::Failed { .. } if error.is_timeout() => (ErrorClass::Timeout, Some(Cause::NoResponse)),
        SendError::Failed { .. } => (ErrorClass::Broker, Some(Cause::Failed { not_before: None })),
    };
    CallFailure { failure: Failure { class, error: error.to_string() }, is_outage: retry.is_some(), retry }
}

fn unacknowledged(request: &OutgoingRequest<'_>) -> CallFailure {
    let error = format!("no acknowledgement within {:?}", request.timeout);
    CallFailure {
        failure: Failure { class: ErrorClass::Timeout, error },
        retry: Some(Cause::NoResponse),
        is_outage: true,
    }
}

/// Records the end of a call in its span.
fn note(span: &Span, sent: &Result<Position, CallFailure>) {
    match sent {
        Ok(position) => {
            span.record("messaging.destination.partition.id", position.partition.to_string());
            span.record("messaging.kafka.offset", position.offset);
        }
        Err(failed) => {
            span.record("error.type", failed.failure.class.as_str());
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", &failed.failure.error);
        }
    }
}
