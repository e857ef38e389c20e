mod embedded;
mod remote;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use wiremock::http::HeaderMap;

use self::embedded::Embedded;
use self::remote::Remote;

/// The credentials that the token endpoint accepts.
pub(crate) const CLIENT_ID: &str = "throughline";
pub(crate) const CLIENT_SECRET: &str = "not-to-be-printed";

/// Longer than any test.
const NEVER: Duration = Duration::from_hours(1);

/// Third-party APIs, which record all calls.
///
/// `/token` issues OAuth2 tokens to clients with the client secret, `/three` requires one of them as bearer token,
/// and every other path accepts any call.
pub struct ThirdParty(Kind);

enum Kind {
    Embedded(Embedded),
    Remote(Remote),
}

/// A received call.
#[derive(Debug)]
pub struct Call {
    /// The path that was called.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Call {
    /// Returns a header's value, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// An answer of a third party.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    body: Vec<u8>,
    media_type: &'static str,
    retry_after: Option<String>,
    delay: Duration,
}

impl Answer {
    /// Creates an empty answer without delay.
    #[must_use]
    pub fn new(status: u16) -> Self {
        Self {
            status,
            body: Vec::new(),
            media_type: "application/json",
            retry_after: None,
            delay: Duration::ZERO,
        }
    }

    /// Adds a body.
    #[must_use]
    pub fn with_body(self, body: impl Into<Vec<u8>>, media_type: &'static str) -> Self {
        Self { body: body.into(), media_type, ..self }
    }

    /// Adds a `Retry-After` header: seconds, or a date.
    #[must_use]
    pub fn with_retry_after(self, pause: impl Into<String>) -> Self {
        Self { retry_after: Some(pause.into()), ..self }
    }

    /// Adds a delay.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }
}

impl ThirdParty {
    /// Opens a server on a free port, which answers each call with 200 until configured otherwise.
    pub async fn open() -> Self {
        Self(Kind::Embedded(Embedded::open().await))
    }

    /// Connects to the WireMock at a URL and resets it. The services reach it at the URL `for_others`.
    ///
    /// # Errors
    /// If no WireMock answers there.
    pub(crate) async fn at(url: &str, for_others: &str) -> anyhow::Result<Self> {
        Ok(Self(Kind::Remote(Remote::reset(url, for_others).await?)))
    }

    /// Returns the base URL for the services, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.0 {
            Kind::Embedded(embedded) => embedded.url(),
            Kind::Remote(remote) => remote.url(),
        }
    }

    /// From now on gives this answer to each call to a path.
    ///
    /// # Errors
    /// If the answer cannot be configured.
    pub async fn answer(&self, path: &str, answer: Answer) -> anyhow::Result<()> {
        match &self.0 {
            Kind::Embedded(embedded) => {
                embedded.answer(path, answer);
                Ok(())
            }
            Kind::Remote(remote) => remote.answer(path, answer).await,
        }
    }

    /// Gives these answers to the next calls to a path, one after the other, and then the previous answer again.
    ///
    /// # Errors
    /// If the answers cannot be configured.
    pub async fn answer_in_turn(&self, path: &str, answers: Vec<Answer>) -> anyhow::Result<()> {
        match &self.0 {
            Kind::Embedded(embedded) => {
                embedded.answer_in_turn(path, answers);
                Ok(())
            }
            Kind::Remote(remote) => remote.answer_in_turn(path, answers).await,
        }
    }

    /// From now on gives the default answer to each call to a path.
    ///
    /// # Errors
    /// If the answer cannot be configured.
    pub async fn answer_as_usual(&self, path: &str) -> anyhow::Result<()> {
        match &self.0 {
            Kind::Embedded(embedded) => {
                embedded.answer_as_usual(path);
                Ok(())
            }
            Kind::Remote(remote) => remote.answer_as_usual(path).await,
        }
    }

    /// From now on accepts calls to a path and never answers.
    ///
    /// # Errors
    /// If the answer cannot be configured.
    pub async fn hang(&self, path: &str) -> anyhow::Result<()> {
        self.answer(path, Answer::new(200).after(NEVER)).await
    }

    /// Returns all calls so far, except those to the token endpoint and those without a valid token.
    ///
    /// # Errors
    /// If the calls cannot be retrieved.
    pub async fn calls(&self) -> anyhow::Result<Vec<Arc<Call>>> {
        match &self.0 {
            Kind::Embedded(embedded) => Ok(embedded.calls()),
            Kind::Remote(remote) => remote.calls().await,
        }
    }

    /// Returns the tokens issued so far.
    ///
    /// # Errors
    /// If the tokens cannot be retrieved.
    pub async fn tokens(&self) -> anyhow::Result<Vec<String>> {
        match &self.0 {
            Kind::Embedded(embedded) => Ok(embedded.tokens()),
            Kind::Remote(remote) => remote.tokens().await,
        }
    }

    /// Returns everything that must not leak: the client secret, and all tokens so far.
    ///
    /// # Errors
    /// If the tokens cannot be retrieved.
    pub async fn secrets(&self) -> anyhow::Result<Vec<String>> {
        let mut secrets = self.tokens().await?;
        secrets.push(CLIENT_SECRET.to_owned());
        Ok(secrets)
    }
}
