//! The sections of `throughline.yaml`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use throughline_config::{AddressText, DurationText, SizeText, at_least_one};
use throughline_destination as destination;
use throughline_kafka as kafka;
use throughline_store as store;

use crate::client::Client;
use crate::links::Links;
use crate::node_ids::NodeIds;
use crate::retention::Retention;
use crate::route::Route;

/// The whole configuration: both services read the same file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The name of the deployment environment. In `production`, well-known passwords are rejected, and
    /// `kafka.signing_key` and `clients` (or `insecure`) are required. Telemetry reports it as
    /// `deployment.environment.name` unless `OTEL_RESOURCE_ATTRIBUTES` sets that. Default none.
    pub environment: Option<String>,
    /// Whether, without `clients`, any caller that reaches ingest may also manage: read bodies, cancel, replay and
    /// purge. Otherwise `/v1` answers only requests from the same machine. Default false.
    pub insecure: bool,
    /// Ingest's HTTP server.
    pub http: Http,
    /// Clients of ingest, by name. Without any, every caller may post, and only the same machine may manage.
    pub clients: BTreeMap<String, Client>,
    /// The database that stores requests.
    pub database: store::Settings,
    /// The Kafka broker.
    pub kafka: kafka::Settings,
    /// Settings of ingest alone.
    pub ingest: Ingest,
    /// Settings of dispatch alone.
    pub dispatch: Dispatch,
    /// Routes that accept requests, by name; at least one.
    pub routes: BTreeMap<String, Route>,
    /// Third-party APIs, by name.
    pub destinations: BTreeMap<String, destination::Settings>,
    /// How long finished requests are kept.
    pub retention: Retention,
    /// URLs of pages in other tools that show more about a request.
    pub links: Links,
    /// How long a graceful shutdown may take before it is forced. Default 25 s.
    #[serde(with = "DurationText")]
    pub shutdown_deadline: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            environment: None,
            insecure: false,
            http: Http::default(),
            clients: BTreeMap::new(),
            database: store::Settings::default(),
            kafka: kafka::Settings::default(),
            ingest: Ingest::default(),
            dispatch: Dispatch::default(),
            routes: BTreeMap::new(),
            destinations: BTreeMap::new(),
            retention: Retention::default(),
            links: Links::default(),
            // Orchestrators commonly kill a process after 30 s.
            shutdown_deadline: Duration::from_secs(25),
        }
    }
}

/// Ingest's HTTP server.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// The address to listen on. Default `0.0.0.0:8099`.
    #[schemars(with = "AddressText")]
    pub address: SocketAddr,
    /// A second address that serves `/healthz` and `/readyz`, with connections that clients cannot use up. Default
    /// `0.0.0.0:8096`.
    #[schemars(with = "AddressText")]
    pub health_address: SocketAddr,
    /// Maximum number of connections per client address (per /64 network for IPv6); beyond it, connections without an
    /// active request are closed. A proxy counts as one address: in front of ingest, it must not open more than this.
    /// Default 4096, half of the limit on all connections.
    pub connections_per_address: NonZeroU32,
    /// Maximum size of an accepted body. As a Kafka record, with its headers, it must fit into `message.max.bytes` of
    /// `kafka.properties` (8 MiB if it is not set there). Default 1 MiB.
    #[serde(with = "SizeText")]
    pub body_limit: ByteSize,
    /// How long a body may take to arrive before the response is 408, and then how long the commit may take before
    /// the response is 503. Default 5 s.
    #[serde(with = "DurationText")]
    pub timeout: Duration,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::UNSPECIFIED, 8099).into(),
            health_address: (Ipv4Addr::UNSPECIFIED, 8096).into(),
            connections_per_address: at_least_one(4096),
            body_limit: ByteSize::mib(1),
            timeout: Duration::from_secs(5),
        }
    }
}

/// Settings of ingest alone.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ingest {
    /// The range of node ids, such as `0-511`. Each replica leases one of them in the database, and it becomes part
    /// of the ids of its requests. Installations that call the same third party need disjoint ranges. Default 0-1023.
    pub node_ids: NodeIds,
    /// Duration of the lease of a node id; it is renewed after a third of it. Default 30 s.
    #[serde(with = "DurationText")]
    pub node_lease: Duration,
    /// Maximum number of requests per commit. Default 512.
    pub batch: NonZeroU32,
    /// Maximum number of requests that wait for the writer; beyond it, the response is 503. Default 4096.
    pub queue: NonZeroU32,
    /// Maximum number of published requests that are not yet acknowledged; further requests are published later, from
    /// the table. Capped at three quarters of librdkafka's queue (`queue.buffering.max.messages`). Default 10000.
    pub unacknowledged: NonZeroU32,
    /// How long the response to an `Idempotency-Key` is repeated. Default 24 h.
    #[serde(with = "DurationText")]
    pub idempotency_window: Duration,
    /// How long a published delivery may go without an outcome before it is published again. Default 15 min.
    #[serde(with = "DurationText")]
    pub redelivery_timeout: Duration,
}

impl Default for Ingest {
    fn default() -> Self {
        Self {
            node_ids: NodeIds::ALL,
            node_lease: Duration::from_secs(30),
            batch: at_least_one(512),
            queue: at_least_one(4096),
            unacknowledged: at_least_one(10_000),
            idempotency_window: Duration::from_hours(24),
            redelivery_timeout: Duration::from_mins(15),
        }
    }
}

/// Settings of dispatch alone.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dispatch {
    /// The address that serves `/healthz` and `/readyz`. Default `0.0.0.0:8098`.
    #[schemars(with = "AddressText")]
    pub address: SocketAddr,
    /// Maximum number of deliveries in flight. One destination that hangs takes at most half of them, two take at
    /// most a third each, and so on. Dispatch also holds 16 times as many records that wait for others of their
    /// ordering key. Default 256.
    pub concurrency: NonZeroU32,
}

impl Default for Dispatch {
    fn default() -> Self {
        Self { address: (Ipv4Addr::UNSPECIFIED, 8098).into(), concurrency: at_least_one(256) }
    }
}
