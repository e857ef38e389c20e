//! A running ingest, asked over HTTP.

use anyhow::Context as _;
use clap::Args;
use reqwest::header::ACCEPT;
use reqwest::{Client, Method, RequestBuilder, Response, Url};
use serde_json::Value;

/// Which ingest is asked, and as whom.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Where ingest listens.
    #[arg(long, global = true, env = "THROUGHLINE_SERVER", default_value = "http://127.0.0.1:8099")]
    server: Url,
    /// The key of a client that may manage, if ingest has clients.
    #[arg(long, global = true, env = "THROUGHLINE_KEY", hide_env_values = true)]
    key: Option<String>,
}

/// The parameters of a query.
pub(crate) type Query<'a> = &'a [(&'static str, String)];

/// An ingest that runs.
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

    /// Asks for something under `/v1`.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: Query<'_>,
    ) -> anyhow::Result<Response> {
        self.send(self.request(method, path)?.query(query)).await
    }

    /// Gets something under `/v1` as text.
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
            format!("no ingest answers at {}; say where it listens with --server", self.server.server)
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let problem: Value = response.json().await.unwrap_or_default();
        let words = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
        anyhow::bail!("{status}: {} {}", words("title"), words("detail"))
    }
}
