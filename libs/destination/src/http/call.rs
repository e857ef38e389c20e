//! One HTTP call to a third party: token, request, response.

use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER};
use reqwest::Response;
use throughline_messages::ErrorClass;
use throughline_snowflake::RequestId;
use throughline_token::{AccessToken, OAuth2};
use tokio::time::{Instant, timeout_at};
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use super::credentials::NoToken;
use super::error::{self, CallError};
use super::excerpt::Excerpt;
use super::metrics::TokenResult;
use super::{Http, IDEMPOTENCY_KEY};
use crate::OutgoingRequest;

/// A call that was made.
pub(super) struct Exchange {
    /// The response's status, once its head has arrived.
    pub(super) status: Option<StatusCode>,
    /// The response's `Retry-After` header.
    pub(super) retry_after: Option<HeaderValue>,
    /// The beginning of the response's body, for operators.
    pub(super) excerpt: Option<String>,
    /// The status of a complete response, or the error that prevented one.
    pub(super) end: Result<StatusCode, CallError>,
}

/// A call to make.
pub(super) struct Call<'a> {
    pub(super) destination: &'a Http,
    pub(super) request: &'a OutgoingRequest<'a>,
}

impl Call<'_> {
    /// Makes the call within the destination's timeout, which covers token, request and response together.
    ///
    /// If the third party rejects the token, discards it and makes the call once more with another token.
    ///
    /// # Errors
    /// If there is no token: either no call was made, or the third party rejected the token of the only one.
    pub(super) async fn make(&self) -> Result<Exchange, NoToken> {
        let deadline = Instant::now() + self.request.timeout;
        let Some(oauth2) = &self.destination.oauth2 else { return Ok(self.post(None, 0, deadline).await) };
        let token = self.token(oauth2, deadline).await?;
        let called = self.post(Some(token.authorization()), 0, deadline).await;
        if called.status != Some(StatusCode::UNAUTHORIZED) {
            return Ok(called);
        }
        self.destination.tokens.discard(oauth2, &token).await;
        let token = self.token(oauth2, deadline).await?;
        Ok(self.post(Some(token.authorization()), 1, deadline).await)
    }

    async fn token(&self, oauth2: &OAuth2, deadline: Instant) -> Result<AccessToken, NoToken> {
        let source =
            if self.destination.tokens.holds(oauth2).await { TokenResult::Hit } else { TokenResult::Miss };
        let got = match timeout_at(deadline, self.destination.tokens.get(oauth2)).await {
            Ok(got) => got.map_err(NoToken::Error),
            Err(_) => Err(NoToken::Timeout(self.request.timeout)),
        };
        self.destination.metrics.token(if got.is_ok() { source } else { TokenResult::Error });
        got
    }

    async fn post(&self, authorization: Option<HeaderValue>, resend: u32, deadline: Instant) -> Exchange {
        let span = self.span(resend);
        let mut request = self.destination.request(&self.request.body);
        let headers = request.headers_mut();
        headers.insert(IDEMPOTENCY_KEY, idempotency_key(self.request.request.id));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        throughline_telemetry::inject(&span, headers);

        let began = Instant::now();
        let (mut status, mut retry_after) = (None, None);
        let mut excerpt = Excerpt::default();
        let complete = async {
            let response = self.destination.client.execute(request).await?;
            let status = *status.insert(response.status());
            retry_after = response.headers().get(RETRY_AFTER).cloned();
            read(response, self.destination.response_limit, &mut excerpt).await?;
            Ok(status)
        };
        let end = match timeout_at(deadline, complete.instrument(span.clone())).await {
            Ok(end) => end.map_err(|error: reqwest::Error| error::of_call(&error)),
            Err(_) => Err(CallError::Timeout(self.request.timeout)),
        };
        let exchange = Exchange { status, retry_after, excerpt: excerpt.into_text(), end };
        record(&span, &exchange);
        self.destination.metrics.ended(&exchange, began.elapsed());
        exchange
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
            throughline.destination = self.destination.name,
            throughline.delivery.attempt = self.request.attempt,
            throughline.request.id = %self.request.request.id,
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

fn record(span: &Span, exchange: &Exchange) {
    if let Some(status) = exchange.status {
        span.record("http.response.status_code", status.as_u16());
    }
    match &exchange.end {
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
