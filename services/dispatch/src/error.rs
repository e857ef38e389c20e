//! Errors that prevent dispatch from starting.

use std::net::SocketAddr;

use throughline_destination::BuildError;
use throughline_kafka::KafkaError;
use throughline_transform::CompileError;

/// An error that prevents dispatch from starting, in one line that states the necessary change.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Dispatch cannot listen on the address.
    #[error(
        "cannot listen on {address}; change dispatch.address, or stop the program that uses this address"
    )]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The underlying error.
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
        /// The problem with it.
        source: CompileError,
    },
    /// The threads for a destination's filter cannot be started.
    #[error("destinations.{destination}: cannot start threads for its filter")]
    Threads {
        /// The destination's name.
        destination: String,
        /// The underlying error.
        source: std::io::Error,
    },
    /// A destination cannot be prepared.
    #[error("destinations.{destination}")]
    Destination {
        /// The destination's name.
        destination: String,
        /// The problem with it.
        source: Box<BuildError>,
    },
    /// The HTTP client for token endpoints cannot be created.
    #[error("cannot create the HTTP client for token endpoints")]
    TokenClient(#[source] reqwest::Error),
}
