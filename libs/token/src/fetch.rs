use crate::{Credentials, OAuth2};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use http::header::{ACCEPT, AUTHORIZATION};
use reqwest::{Client, Request, Response};
use tokio::time::timeout;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};
use url::{Url, form_urlencoded};

use crate::answer::{self, Grant};
use crate::error::TokenError;
use crate::slot::Purpose;

/// The maximum size of a response, in bytes: many times the size of the largest tokens, which list all of a client's
/// permissions.
const ANSWER_LIMIT: usize = 64 * 1024;

/// Requests a token from the token endpoint.
pub(crate) fn fetch(
    http: &Client,
    oauth2: &OAuth2,
    purpose: Purpose,
) -> impl Future<Output = Result<Grant, TokenError>> + Send + 'static {
    let http = http.clone();
    let request = request(&http, oauth2);
    let limit = oauth2.timeout;
    let server = Server::of(&oauth2.token_url);
    let caller = Span::current();
    let needed = (purpose == Purpose::Need).then(|| server.span());
    async move {
        // No call waits for a renewal, so its span starts a trace of its own, linked to the call that triggered it.
        let span = needed.unwrap_or_else(|| {
            let span = server.span();
            span.follows_from(&caller);
            span
        });
        drop(caller);
        let mut request = request?;
        throughline_telemetry::inject(&span, request.headers_mut());
        let granted = timeout(limit, exchange(&http, request, &span).instrument(span.clone()))
            .await
            .unwrap_or(Err(TokenError::Timeout(limit)));
        if let Err(error) = &granted {
            span.record("error.type", error.kind());
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", tracing::field::display(error));
        }
        granted
    }
}

async fn exchange(http: &Client, request: Request, span: &Span) -> Result<Grant, TokenError> {
    let response = http.execute(request).await?;
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    let body = match read(response).await {
        // The status alone is sufficient.
        Err(_) if !status.is_success() => Vec::new(),
        read => read?,
    };
    answer::read(status, &body)
}

async fn read(mut response: Response) -> Result<Vec<u8>, TokenError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > ANSWER_LIMIT {
            return Err(TokenError::TooLong(ANSWER_LIMIT));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn request(http: &Client, oauth2: &OAuth2) -> Result<Request, TokenError> {
    let mut request = http.post(oauth2.token_url.clone()).form(&form(oauth2)).build()?;
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    if oauth2.credentials == Credentials::Basic {
        headers.insert(AUTHORIZATION, basic(&oauth2.client_id, oauth2.client_secret.expose()));
    }
    Ok(request)
}

/// Builds the form of RFC 6749, 4.4.2; a configured parameter replaces a standard one of the same name.
fn form(oauth2: &OAuth2) -> Vec<(&str, &str)> {
    let in_body = oauth2.credentials == Credentials::Body;
    let ours = [
        ("grant_type", Some("client_credentials")),
        ("client_id", in_body.then_some(oauth2.client_id.as_str())),
        ("client_secret", in_body.then(|| oauth2.client_secret.expose())),
        ("scope", oauth2.scope.as_deref()),
        ("audience", oauth2.audience.as_deref()),
    ];
    let ours = ours.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let configured = oauth2.parameters.iter().map(|(name, value)| (name.as_str(), value.expose()));
    ours.filter(|(name, _)| !oauth2.parameters.contains_key(*name)).chain(configured).collect()
}

/// Encodes credentials as in RFC 6749, 2.3.1: id and secret are each form-urlencoded, unlike in HTTP's own Basic
/// scheme.
fn basic(id: &str, secret: &str) -> HeaderValue {
    let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let credentials = BASE64_STANDARD.encode(format!("{}:{}", encoded(id), encoded(secret)));
    #[expect(clippy::expect_used, reason = "base64 has only characters that a header may contain")]
    let mut header =
        HeaderValue::try_from(format!("Basic {credentials}")).expect("base64 is a valid header value");
    header.set_sensitive(true);
    header
}

/// The attributes of a token endpoint that a span may contain.
struct Server {
    host: String,
    port: u16,
    url: String,
}

impl Server {
    fn of(url: &Url) -> Self {
        let mut shown = url.clone();
        // These calls fail only for a URL without a host, which has no credentials.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        shown.set_query(None);
        shown.set_fragment(None);
        Self {
            host: shown.host_str().unwrap_or_default().to_owned(),
            port: shown.port_or_known_default().unwrap_or_default(),
            url: shown.into(),
        }
    }

    /// Creates the CLIENT span, following OpenTelemetry's conventions for HTTP.
    fn span(&self) -> Span {
        info_span!(
            "token",
            otel.kind = "client",
            otel.name = "POST",
            otel.status_code = Empty,
            otel.status_description = Empty,
            error.type = Empty,
            http.request.method = "POST",
            http.response.status_code = Empty,
            server.address = self.host,
            server.port = self.port,
            url.full = self.url,
        )
    }
}
