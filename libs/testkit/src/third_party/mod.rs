mod embedded;
mod remote;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use wiremock::http::HeaderMap;

use self::embedded::Embedded;
use self::remote::Remote;

/// The credentials that the token endpoint knows.
pub(crate) const CLIENT_ID: &str = "throughline";
pub(crate) const CLIENT_SECRET: &str = "not-to-be-printed";

/// Longer than any test.
const NEVER: Duration = Duration::from_hours(1);

/// Third-party APIs, with everything that was ever asked of them.
///
/// `/token` gives OAuth2 tokens to who knows the client secret, `/three` wants one of them as bearer
/// token, every other path takes anything.
pub struct ThirdParty(Kind);

enum Kind {
    Embedded(Embedded),
    Remote(Remote),
}

/// A call that has come in.
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
    /// A header's value, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// What a third party answers.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    body: Vec<u8>,
    media_type: &'static str,
    retry_after: Option<String>,
    delay: Duration,
}

impl Answer {
    /// An empty answer, at once.
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

    /// With a body.
    #[must_use]
    pub fn with_body(self, body: impl Into<Vec<u8>>, media_type: &'static str) -> Self {
        Self { body: body.into(), media_type, ..self }
    }

    /// With a wish to be called again so much later: seconds, or a date.
    #[must_use]
    pub fn with_retry_after(self, pause: impl Into<String>) -> Self {
        Self { retry_after: Some(pause.into()), ..self }
    }

    /// Not at once.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }
}

impl ThirdParty {
    /// Opens on a port of its own; answers each call 200 until told otherwise.
    pub async fn open() -> Self {
        Self(Kind::Embedded(Embedded::open().await))
    }

    /// The WireMock at a URL, made like a new one. Others call it by another name.
    ///
    /// # Errors
    /// If none answers there.
    pub(crate) async fn at(url: &str, for_others: &str) -> anyhow::Result<Self> {
        Ok(Self(Kind::Remote(Remote::reset(url, for_others).await?)))
    }

    /// Its base URL, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.0 {
            Kind::Embedded(embedded) => embedded.url(),
            Kind::Remote(remote) => remote.url(),
        }
    }

    /// Answers each call at a path so, from now on.
    ///
    /// # Errors
    /// If it cannot be told.
    pub async fn answer(&self, path: &str, answer: Answer) -> anyhow::Result<()> {
        match &self.0 {
            Kind::Embedded(embedded) => {
                embedded.answer(path, answer);
                Ok(())
            }
            Kind::Remote(remote) => remote.answer(path, answer).await,
        }
    }

    /// Answers the next calls at a path so, one after the other, and then as before.
    ///
    /// # Errors
    /// If it cannot be told.
    pub async fn answer_in_turn(&self, path: &str, answers: Vec<Answer>) -> anyhow::Result<()> {
        match &self.0 {
            Kind::Embedded(embedded) => {
                embedded.answer_in_turn(path, answers);
                Ok(())
            }
            Kind::Remote(remote) => remote.answer_in_turn(path, answers).await,
        }
    }

    /// Answers each call at a path as it did at first, from now on.
    ///
    /// # Errors
    /// If it cannot be told.
    pub async fn answer_as_usual(&self, path: &str) -> anyhow::Result<()> {
        match &self.0 {
            Kind::Embedded(embedded) => {
                embedded.answer_as_usual(path);
                Ok(())
            }
            Kind::Remote(remote) => remote.answer_as_usual(path).await,
        }
    }

    /// Takes calls at a path and never answers, from now on.
    ///
    /// # Errors
    /// If it cannot be told.
    pub async fn hang(&self, path: &str) -> anyhow::Result<()> {
        self.answer(path, Answer::new(200).after(NEVER)).await
    }

    /// All calls so far, but for those to the token endpoint and those without a good token.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn calls(&self) -> anyhow::Result<Vec<Arc<Call>>> {
        match &self.0 {
            Kind::Embedded(embedded) => Ok(embedded.calls()),
            Kind::Remote(remote) => remote.calls().await,
        }
    }

    /// The tokens that were given out so far.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn tokens(&self) -> anyhow::Result<Vec<String>> {
        match &self.0 {
            Kind::Embedded(embedded) => Ok(embedded.tokens()),
            Kind::Remote(remote) => remote.tokens().await,
        }
    }

    /// What nobody else may ever get to see: the client secret, and all tokens so far.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn secrets(&self) -> anyhow::Result<Vec<String>> {
        let mut secrets = self.tokens().await?;
        secrets.push(CLIENT_SECRET.to_owned());
        Ok(secrets)
    }
}
