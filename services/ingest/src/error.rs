//! Why ingest does not start.

use std::net::SocketAddr;

use throughline_kafka::KafkaError;
use throughline_store::StoreError;

/// Why ingest does not start: one line that names the change to make.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Ingest cannot listen on the address.
    #[error(
        "cannot listen on {address}: {source}; change http.address (or --http), or stop the program that uses this \
         address"
    )]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The error of the system.
        source: std::io::Error,
    },
    /// Ingest cannot listen on the address for health checks.
    #[error(
        "cannot listen on {address}: {source}; change http.health_address, or stop the program that uses this \
             address"
    )]
    ListenForHealthChecks {
        /// The configured address.
        address: SocketAddr,
        /// The error of the system.
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
        /// The name of the route.
        route: String,
        /// The error in the schema.
        problem: String,
    },
    /// No node id is free.
    #[error(
        "all node ids ({0}) are leased; wait until a lease expires (ingest.node_lease), stop a replica, or extend \
         ingest.node_ids"
    )]
    NodesTaken(String),
    /// The configured node ids are invalid.
    #[error("ingest.node_ids: {0}")]
    NodeIds(String),
}
