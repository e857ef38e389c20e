//! A running ingest, called over HTTP.

use anyhow::Context as _;
use clap::Args;
use reqwest::header::ACCEPT;
use reqwest::{Client, Method, RequestBuilder, Response, Url};
use serde_json::Value;

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

/// The parameters of a query.
pub(crate) type Query<'a> = &'a [(&'static str, String)];

/// A running ingest.
pub(crate) struct Remote {
    client: Client,
    server: Server,
}

impl Remote {
    pub(crate) fn new(server: Server) -> Self {
        Self { client: Client::new(), server }
    }

    pub(crate) async fn json(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
    ) -> anyhow::Result<Value> {
        Ok(self.ask(method, path, query).await?.json().await?)
    }

    /// Sends a request to a path under `/v1`.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
    ) -> anyhow::Result<Response> {
        self.send(self.request(method, path)?.query(query)).await
    }

    /// Gets a path under `/v1` as text.
    pub(crate) async fn text(&self, path: &[&str]) -> anyhow::Result<String> {
        let request = self.request(Method::GET, path)?.header(ACCEPT, "text/plain");
        Ok(self.send(request).await?.text().await?)
    }

    fn request(&self, method: Method, path: &[&str]) -> anyhow::Result<RequestBuilder> {
        let mut url = self.server.server.clone();
        let no_base = || anyhow::anyhow!("--server must be the URL of ingest, such as http://127.0.0.1:8099");
        url.path_segments_mut().map_err(|()| no_base())?.pop_if_empty().push("v1").extend(path);
        let request = self.client.request(method, url);
        Ok(match &self.server.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        })
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.with_context(|| {
            format!("cannot reach ingest at {}; set --server to its URL", self.server.server)
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let problem: Value = response.json().await.unwrap_or_default();
        let texts: Vec<_> = ["title", "detail"].iter().filter_map(|name| problem[name].as_str()).collect();
        anyhow::bail!("{status}: {}", texts.join(". "))
    }
}
