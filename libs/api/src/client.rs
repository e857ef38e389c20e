//! A client of the management API.

use std::fmt;

use bytes::Bytes;
use reqwest::header::ACCEPT;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use throughline_snowflake::RequestId;

use crate::{DeadLetterFilter, DeadLetters, NewReplay, Page, Position, Problem, Purged, Replay, Request};

/// A client of one ingest. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    server: Url,
    key: Option<String>,
}

/// An error of a call.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL cannot have a path.
    #[error("`{0}` is not the URL of an ingest; use one such as http://127.0.0.1:8099")]
    InvalidServer(Url),
    /// Ingest did not answer.
    #[error("cannot reach ingest at {server}")]
    Unreachable {
        /// The URL of ingest.
        server: Url,
        /// The cause.
        source: reqwest::Error,
    },
    /// Ingest refused the request.
    #[error("{status}{}", with_details(.problem.as_ref()))]
    Refused {
        /// The status of the answer.
        status: StatusCode,
        /// Its body; `None` if something else than ingest answered.
        problem: Option<Problem>,
    },
    /// The answer is incomplete, or not what this version of ingest answers.
    #[error("cannot read the answer of ingest")]
    Unreadable(#[source] reqwest::Error),
}

fn with_details(problem: Option<&Problem>) -> String {
    let Some(Problem { title, detail, .. }) = problem else { return String::new() };
    let texts: Vec<_> = [Some(title), detail.as_ref()].into_iter().flatten().map(String::as_str).collect();
    format!(": {}", texts.join(". "))
}

impl fmt::Debug for Client {
    /// Does not show the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("server", &self.server.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// Creates a client of the ingest at a URL. `key` is that of a client with `manage: true`, which ingest requires if
    /// it has `clients`.
    ///
    /// # Errors
    /// [`ClientError::InvalidServer`] if the URL cannot have a path.
    pub fn new(server: Url, key: Option<String>) -> Result<Self, ClientError> {
        if server.cannot_be_a_base() {
            return Err(ClientError::InvalidServer(server));
        }
        Ok(Self { http: reqwest::Client::new(), server, key })
    }

    /// Returns a request, its deliveries and their attempts.
    ///
    /// # Errors
    /// If ingest does not answer, or refuses the call.
    pub async fn request(&self, id: RequestId) -> Result<Request, ClientError> {
        self.json(self.call(Method::GET, &["requests", &id.to_string()])).await
    }

    /// Returns the body of a request, byte for byte.
    ///
    /// # Errors
    /// If ingest does not answer, or refuses the call.
    pub async fn body(&self, id: RequestId) -> Result<Bytes, ClientError> {
        let answer = self.send(self.call(Method::GET, &["requests", &id.to_string(), "body"])).await?;
        answer.bytes().await.map_err(ClientError::Unreadable)
    }

    /// Explains a request, with one line per event.
    ///
    /// # Errors
    /// If ingest does not answer, or refuses the call.
    pub async fn explain(&self, id: RequestId) -> Result<String, ClientError> {
        let call = self.call(Method::GET, &["requests", &id.to_string(), "explain"]);
        self.send(call.header(ACCEPT, "text/plain")).await?.text().await.map_err(ClientError::Unreadable)
    }

    /// Returns a page of dead letters, the newest requests first.
    ///
    /// # Errors
    /// If ingest does not answer, or refuses the call.
    pub async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        page: &Page,
    ) -> Result<DeadLetters, ClientError> {
        self.json(self.call(Method::GET, &["dead-letters"]).query(filter).query(page)).await
    }

    /// Deletes some of the dead letters that match; the answer tells whether more may match.
    ///
    /// # Errors
    /// If ingest does not answer, or refuses the call.
    pub async fn purge_dead_letters(
        &self,
        filter: &DeadLetterFilter,
        position: &Position,
    ) -> Result<Purged, ClientError> {
        self.json(self.call(Method::DELETE, &["dead-letters"]).query(filter).query(position)).await
    }

    /// Replays one dead letter now.
    ///
    /// # Errors
    /// If ingest does not answer, or refuses the call.
    pub async fn replay_dead_letter(&self, id: RequestId, destination: &str) -> Result<Request, ClientError> {
        self.json(self.call(Method::POST, &["dead-letters", &id.to_string(), destination, "replay"])).await
    }

    /// Begins to replay all dead letters that match.
    ///
    /// # Errors
    /// If ingest does not answer, or refuses the call.
    pub async fn begin_replay(
        &self,
        filter: &DeadLetterFilter,
        replay: &NewReplay,
    ) -> Result<Replay, ClientError> {
        self.json(self.call(Method::POST, &["replays"]).query(filter).query(replay)).await
    }

    /// Returns the progress of a replay.
    ///
    /// # Errors
    /// If ingest does not answer, or refuses the call.
    pub async fn replay(&self, id: i64) -> Result<Replay, ClientError> {
        self.json(self.call(Method::GET, &["replays", &id.to_string()])).await
    }

    /// Creates a call of a path under `/v1`.
    fn call(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        let call = self.http.request(method, url);
        match &self.key {
            Some(key) => call.bearer_auth(key),
            None => call,
        }
    }

    async fn json<T: DeserializeOwned>(&self, call: RequestBuilder) -> Result<T, ClientError> {
        self.send(call).await?.json().await.map_err(ClientError::Unreadable)
    }

    async fn send(&self, call: RequestBuilder) -> Result<Response, ClientError> {
        let unreachable = |source| ClientError::Unreachable { server: self.server.clone(), source };
        let answer = call.send().await.map_err(unreachable)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        Err(ClientError::Refused { status, problem: answer.json().await.ok() })
    }
}
