//! An HTTP client of ingest.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, StatusCode};
use serde_json::Value;

/// Timeout for a response; ingest's own deadline for a commit is 5 s.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An HTTP client that sends bodies byte for byte.
#[derive(Clone, Debug)]
pub(crate) struct Client(reqwest::Client);

/// A response.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Vec<u8>,
}

/// A request.
pub(crate) struct Question<'a> {
    pub(crate) method: Method,
    pub(crate) path: &'a str,
    pub(crate) media_type: &'a str,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: Vec<u8>,
}

impl<'a> Question<'a> {
    /// A JSON body to post.
    pub(crate) fn post(path: &'a str, body: impl Into<Vec<u8>>) -> Self {
        Self { method: Method::POST, path, media_type: "application/json", headers: &[], body: body.into() }
    }
}

impl Client {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self(reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?))
    }

    /// Sends a request, and waits for the complete response.
    pub(crate) async fn send(&self, to: SocketAddr, question: Question<'_>) -> reqwest::Result<Answer> {
        let Question { method, path, media_type, headers, body } = question;
        let mut request =
            self.0.request(method, format!("http://{to}{path}")).header(CONTENT_TYPE, media_type);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.body(body).send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await?.into() })
    }

    /// The explanation of a request.
    pub(crate) async fn explanation(&self, ingest: SocketAddr, id: &str) -> anyhow::Result<String> {
        let path = format!("/v1/requests/{id}/explain");
        let headers = [("accept", "text/plain")];
        let question = Question { method: Method::GET, headers: &headers, ..Question::post(&path, "") };
        let answer = self.send(ingest, question).await?;
        ensure!(answer.status == StatusCode::OK, "no explanation of request {id}: {answer:?}");
        Ok(answer.text())
    }

    /// The status of a request.
    pub(crate) async fn status(&self, ingest: SocketAddr, id: &str) -> anyhow::Result<Value> {
        let path = format!("/v1/requests/{id}");
        let answer = self.send(ingest, Question { method: Method::GET, ..Question::post(&path, "") }).await?;
        ensure!(answer.status == StatusCode::OK, "no status of request {id}: {answer:?}");
        answer.json()
    }
}

impl Answer {
    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The id of the request, if this response says that it was accepted.
    pub(crate) fn request_id(&self) -> Option<String> {
        if self.status != StatusCode::CREATED {
            return None;
        }
        Some(self.json().ok()?.get("request_id")?.as_str()?.to_owned())
    }

    /// The value of a header, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}
