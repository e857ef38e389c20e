//! Why ingest does not start.

use std::net::SocketAddr;

use throughline_kafka::KafkaError;
use throughline_store::StoreError;

/// Why ingest does not start: one line that says what to change.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; change http.address (or --http), or end what listens there"
    )]
    Listen {
        /// The address of the configuration.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The address for health checks cannot be listened on.
    #[error("cannot listen on {address}: {source}; change http.health_address, or end what listens there")]
    ListenForHealthChecks {
        /// The address of the configuration.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The database cannot be used, or its schema does not fit.
    #[error("database: {0}")]
    Store(#[from] StoreError),
    /// The broker cannot be used, or topics are missing.
    #[error("kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// A route's schema does not compile.
    #[error("routes.{route}.schema: {problem}")]
    Schema {
        /// The route's name.
        route: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No node id is free.
    #[error(
        "all node ids ({0}) are leased; wait for a lease to end (ingest.node_lease), end a replica, or change ingest.node_ids"
    )]
    NodesTaken(String),
    /// The configured node ids are none.
    #[error("ingest.node_ids: {0}")]
    NodeIds(String),
}
