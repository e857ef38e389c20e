use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use http::header::{ACCEPT, AUTHORIZATION};
use reqwest::{Client, Request, Response};
use throughline_config::{Credentials, OAuth2};
use tokio::time::timeout;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};
use url::{Url, form_urlencoded};

use crate::answer::{self, Grant};
use crate::error::TokenError;
use crate::slot::Purpose;

/// How long an answer may be: many times the largest tokens, which are those that list all of a client's
/// rights.
const ANSWER_LIMIT: usize = 64 * 1024;

/// Asks the token endpoint for a token.
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
        // Nobody's call takes longer for a renewal: it has a trace of its own, and a link to who caused it.
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
        // The status says enough.
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

/// The form of RFC 6749, 4.4.2; configured parameters come in place of ours of the same name.
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

/// Credentials after RFC 6749, 2.3.1: each form-urlencoded by itself, unlike in HTTP's own Basic scheme.
fn basic(id: &str, secret: &str) -> HeaderValue {
    let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let credentials = BASE64_STANDARD.encode(format!("{}:{}", encoded(id), encoded(secret)));
    #[expect(clippy::expect_used, reason = "base64 has no character that a header may not have")]
    let mut header =
        HeaderValue::try_from(format!("Basic {credentials}")).expect("base64 is a header's value");
    header.set_sensitive(true);
    header
}

/// What a span may tell of a token endpoint.
struct Server {
    host: String,
    port: u16,
    url: String,
}

impl Server {
    fn of(url: &Url) -> Self {
        let mut shown = url.clone();
        // Only a URL without a host refuses, and has no credentials.
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

    /// The CLIENT span, after OpenTelemetry's conventions for HTTP.
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
