//! A running ingest, called over HTTP.

use anyhow::Context as _;
use clap::Args;
use reqwest::Url;
use throughline_api::client::{Client, ClientError};

/// The ingest to call, and the key to call it with.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// URL of ingest.
    #[arg(long, global = true, env = "THROUGHLINE_SERVER", default_value = "http://127.0.0.1:8099")]
    server: Url,
    /// Key of a client with `manage: true`, required if ingest has `clients`.
    #[arg(long, global = true, env = "THROUGHLINE_KEY", hide_env_values = true)]
    key: Option<String>,
}

impl Server {
    pub(crate) fn client(self) -> anyhow::Result<Client> {
        Client::new(self.server, self.key).context("--server is invalid")
    }
}

/// Adds to an error how to correct it.
pub(crate) fn advised(error: ClientError) -> anyhow::Error {
    let is_unreachable = matches!(error, ClientError::Unreachable { .. });
    let error = anyhow::Error::from(error);
    if is_unreachable { error.context("set --server to the URL of ingest") } else { error }
}
