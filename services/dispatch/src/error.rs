//! Why dispatch does not start.

use std::net::SocketAddr;

use throughline_kafka::KafkaError;
use throughline_transform::CompileError;

/// Why dispatch does not start: one line that says what to change.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; change dispatch.address, or end what listens there")]
    Listen {
        /// The address of the configuration.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The broker cannot be used, or topics are missing.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// A destination's filter does not compile.
    #[error("destinations.{destination}.filter")]
    Filter {
        /// The destination's name.
        destination: String,
        /// What is wrong with it.
        source: CompileError,
    },
    /// There are no threads for a destination's filter.
    #[error("destinations.{destination}: no threads for its filter")]
    Threads {
        /// The destination's name.
        destination: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A destination's static header cannot be sent.
    #[error("destinations.{destination}.headers.{header}: {problem}")]
    Header {
        /// The destination's name.
        destination: String,
        /// The header's name.
        header: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No HTTP client can be made for a destination.
    #[error("destinations.{destination}: no HTTP client for it")]
    Client {
        /// The destination's name.
        destination: String,
        /// Why not.
        source: reqwest::Error,
    },
    /// No HTTP client can be made for token endpoints.
    #[error("no HTTP client for token endpoints")]
    TokenClient(#[source] reqwest::Error),
}
