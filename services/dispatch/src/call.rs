//! One HTTP call to a third party: token, request, response.

use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER};
use reqwest::Response;
use throughline_config::OAuth2;
use throughline_messages::ErrorClass;
use throughline_snowflake::RequestId;
use throughline_token::{AccessToken, Tokens};
use tokio::time::{Instant, timeout_at};
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use crate::cause;
use crate::classify::CallError;
use crate::credentials::NoToken;
use crate::destination::{Body, Destination, IDEMPOTENCY_KEY};
use crate::excerpt::Excerpt;
use crate::metrics::TokenResult;

/// The result of a call.
pub(crate) struct Called {
    /// The response's status, once its head has arrived.
    pub(crate) status: Option<StatusCode>,
    /// The response's `Retry-After` header.
    pub(crate) retry_after: Option<HeaderValue>,
    /// The beginning of the response's body, for operators.
    pub(crate) excerpt: Option<String>,
    /// The status of a complete response, or the error that prevented one.
    pub(crate) end: Result<StatusCode, CallError>,
}

/// A call to make.
pub(crate) struct Call<'a> {
    pub(crate) destination: &'a Destination,
    pub(crate) tokens: &'a Tokens,
    pub(crate) id: RequestId,
    pub(crate) attempt: u32,
    pub(crate) body: Body,
}

impl Call<'_> {
    /// Makes the call within the destination's timeout, which covers token, request and response together.
    ///
    /// If the third party rejects the token, discards it and makes the call once more with another token.
    ///
    /// # Errors
    /// If there is no token: either no call was made, or the third party rejected the token of the only one.
    pub(crate) async fn make(&self) -> Result<Called, NoToken> {
        let deadline = Instant::now() + self.destination.timeout;
        let Some(oauth2) = &self.destination.oauth2 else { return Ok(self.post(None, 0, deadline).await) };
        let token = self.token(oauth2, deadline).await?;
        let called = self.post(Some(token.authorization()), 0, deadline).await;
        if called.status != Some(StatusCode::UNAUTHORIZED) {
            return Ok(called);
        }
        self.tokens.discard(oauth2, &token).await;
        let token = self.token(oauth2, deadline).await?;
        Ok(self.post(Some(token.authorization()), 1, deadline).await)
    }

    async fn token(&self, oauth2: &OAuth2, deadline: Instant) -> Result<AccessToken, NoToken> {
        let source = if self.tokens.holds(oauth2).await { TokenResult::Hit } else { TokenResult::Miss };
        let got = match timeout_at(deadline, self.tokens.get(oauth2)).await {
            Ok(got) => got.map_err(NoToken::Error),
            Err(_) => Err(NoToken::Timeout(self.destination.timeout)),
        };
        self.destination.calls.token(if got.is_ok() { source } else { TokenResult::Error });
        got
    }

    async fn post(&self, authorization: Option<HeaderValue>, resend: u32, deadline: Instant) -> Called {
        let span = self.span(resend);
        let mut request = self.destination.request(&self.body);
        let headers = request.headers_mut();
        headers.insert(IDEMPOTENCY_KEY, idempotency_key(self.id));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        throughline_telemetry::inject(&span, headers);

        let (began, _in_flight) = (Instant::now(), self.destination.calls.begin());
        let (mut status, mut retry_after) = (None, None);
        let mut excerpt = Excerpt::default();
        let exchange = async {
            let response = self.destination.execute(request).await?;
            let status = *status.insert(response.status());
            retry_after = response.headers().get(RETRY_AFTER).cloned();
            read(response, self.destination.response_limit, &mut excerpt).await?;
            Ok(status)
        };
        let end = match timeout_at(deadline, exchange.instrument(span.clone())).await {
            Ok(end) => end.map_err(|error: reqwest::Error| cause::of_call(&error)),
            Err(_) => Err(CallError::Timeout(self.destination.timeout)),
        };
        let called = Called { status, retry_after, excerpt: excerpt.into_text(), end };
        record(&span, &called);
        self.destination.calls.ended(&called, began.elapsed());
        called
    }

    /// Creates the CLIENT span, following OpenTelemetry's conventions for HTTP.
    fn span(&self, resend: u32) -> Span {
        let shown = &self.destination.shown;
        let span = info_span!(
            "call",
            otel.kind = "client",
            otel.name = "POST",
            otel.status_code = Empty,
            otel.status_description = Empty,
            error.type = Empty,
            http.request.method = "POST",
            http.request.resend_count = Empty,
            http.response.status_code = Empty,
            server.address = shown.host,
            server.port = shown.port,
            url.full = shown.url,
            throughline.destination = &*self.destination.name,
            throughline.delivery.attempt = self.attempt,
            throughline.request.id = %self.id,
        );
        if resend > 0 {
            span.record("http.request.resend_count", resend);
        }
        span
    }
}

#[expect(clippy::expect_used, reason = "an id has 20 digits")]
fn idempotency_key(id: RequestId) -> HeaderValue {
    HeaderValue::try_from(id.to_string()).expect("digits are a valid header value")
}

fn record(span: &Span, called: &Called) {
    if let Some(status) = called.status {
        span.record("http.response.status_code", status.as_u16());
    }
    match &called.end {
        Ok(status) if status.is_success() => {}
        Ok(status) => {
            span.record("error.type", status.as_str());
            span.record("otel.status_code", "ERROR");
        }
        Err(error) => {
            let class: ErrorClass = error.class();
            span.record("error.type", class.as_str());
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", error.to_string());
        }
    }
}

/// Reads the response up to the limit, so that its connection can serve the next call. The rest of a longer response
/// is not worth the time to read it; the connection is closed instead.
async fn read(mut response: Response, limit: usize, excerpt: &mut Excerpt) -> Result<(), reqwest::Error> {
    let mut length = 0;
    while let Some(chunk) = response.chunk().await? {
        excerpt.push(&chunk);
        length += chunk.len();
        if length > limit {
            break;
        }
    }
    Ok(())
}
