//! The sections of `throughline.yaml`.

mod client;
mod database;
mod destination;
mod kafka;
mod links;
mod resilience;
mod retention;
mod route;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text::{AddressText, DurationText, NodeIds, SizeText};

pub use self::client::Client;
pub use self::database::Database;
pub use self::destination::{Credentials, Destination, OAuth2};
pub(crate) use self::kafka::DEVELOPMENT_KEY;
pub use self::kafka::{Compression, Kafka, Topics};
pub use self::links::Links;
pub use self::resilience::{Breaker, Limits, Retry, StatusMeaning};
pub use self::retention::Retention;
pub use self::route::{AfterFailure, Route, SchemaSource};

/// The whole configuration: both services read the same file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where this runs, such as `production`: there, passwords that everybody knows are refused, and `clients` have to
    /// be configured. Telemetry says it as `deployment.environment.name`, unless `OTEL_RESOURCE_ATTRIBUTES` does.
    /// Default none.
    pub environment: Option<String>,
    /// Whether, without `clients`, everybody who reaches ingest may manage too: read bodies, cancel, replay and purge.
    /// Else `/v1` answers only this machine. Default false.
    pub insecure: bool,
    /// Ingest's HTTP server.
    pub http: Http,
    /// Who may call ingest, by name. Without any, everybody may post, and this machine may manage.
    pub clients: BTreeMap<String, Client>,
    /// Where requests are kept.
    pub database: Database,
    /// The broker.
    pub kafka: Kafka,
    /// What only ingest does.
    pub ingest: Ingest,
    /// What only dispatch does.
    pub dispatch: Dispatch,
    /// Ways in, by name; at least one.
    pub routes: BTreeMap<String, Route>,
    /// Third-party APIs, by name.
    pub destinations: BTreeMap<String, Destination>,
    /// How long what has ended is kept.
    pub retention: Retention,
    /// Where other tools show more of a request.
    pub links: Links,
    /// How long a shut-down may take before it is forced. Default 25 s.
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
            database: Database::default(),
            kafka: Kafka::default(),
            ingest: Ingest::default(),
            dispatch: Dispatch::default(),
            routes: BTreeMap::new(),
            destinations: BTreeMap::new(),
            retention: Retention::default(),
            links: Links::default(),
            // Orchestrators commonly kill after 30 s.
            shutdown_deadline: Duration::from_secs(25),
        }
    }
}

/// Ingest's HTTP server.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Where it listens. Default `0.0.0.0:8099`.
    #[schemars(with = "AddressText")]
    pub address: SocketAddr,
    /// Where `/healthz` and `/readyz` answer besides, on connections that clients cannot use up. Default
    /// `0.0.0.0:8096`.
    #[schemars(with = "AddressText")]
    pub health_address: SocketAddr,
    /// Most connections of one client address, or of one /64 network of IPv6; beyond, those without a request are
    /// closed. A proxy is one address: where one stands before ingest, this must not be less than it opens. Default
    /// 4096, which is half of all connections.
    pub connections_per_address: NonZeroU32,
    /// The largest body that is accepted; as a record of Kafka, with its headers, it must not pass
    /// `message.max.bytes` (see [`Kafka::largest_record`]). Default 1 MiB.
    #[serde(with = "SizeText")]
    pub body_limit: ByteSize,
    /// How long a body may take to arrive before its request is answered 408, and then the request to be committed
    /// before it is answered 503. Default 5 s.
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

/// What only ingest does.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ingest {
    /// The node ids, such as `0-511`, of which each replica leases one in the database; it becomes part of the ids of
    /// its requests. Installations that call the same third party want different ones. Default 0-1023.
    pub node_ids: NodeIds,
    /// How long a node id is leased; renewed after a third of it. Default 30 s.
    #[serde(with = "DurationText")]
    pub node_lease: Duration,
    /// Most requests committed at once. Default 512.
    pub batch: NonZeroU32,
    /// Most requests waiting for the writer; beyond, 503. Default 4096.
    pub queue: NonZeroU32,
    /// Most requests published and not yet acknowledged; beyond, they are published later, from the
    /// table. Never more than three quarters of librdkafka's queue (`queue.buffering.max.messages`). Default 10000.
    pub unacknowledged: NonZeroU32,
    /// How long an answer given under an `Idempotency-Key` is repeated. Default 24 h.
    #[serde(with = "DurationText")]
    pub idempotency_window: Duration,
    /// How long a delivery may stay silent before it is published again. Default 15 min.
    #[serde(with = "DurationText")]
    pub patience: Duration,
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
            patience: Duration::from_mins(15),
        }
    }
}

/// What only dispatch does.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dispatch {
    /// Where `/healthz` and `/readyz` answer. Default `0.0.0.0:8098`.
    #[schemars(with = "AddressText")]
    pub address: SocketAddr,
    /// Most deliveries in work at once. Of these, a destination that hangs takes half at most, two a third each,
    /// and so on. 16 times as many records are held, to wait for others of their ordering key. Default 256.
    pub concurrency: NonZeroU32,
}

impl Default for Dispatch {
    fn default() -> Self {
        Self { address: (Ipv4Addr::UNSPECIFIED, 8098).into(), concurrency: at_least_one(256) }
    }
}

fn at_least_one(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}
