//! Third-party APIs: a call posts the body to a URL.

mod call;
mod classify;
mod credentials;
mod error;
mod excerpt;
mod metrics;
mod retry_after;
mod settings;
mod statuses;

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method};
use reqwest::{Client, ClientBuilder, Request, redirect};
use throughline_clock::Clock;
use throughline_config::Secret;
use throughline_token::{OAuth2, Tokens};
use url::Url;

use self::call::Call;
use self::credentials::Health;
use self::metrics::Metrics;
use self::statuses::Statuses;
use crate::{Body, BuildError, Called, Context, Deferral, Destination, OutgoingRequest};

pub use self::settings::Settings;
pub use self::statuses::StatusMeaning;

/// Idle connections are closed before common load balancers close them, after 60 s: a request fails if it is sent on
/// a connection that is just being closed.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Detects dead peers behind open connections that are waiting.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Timeout for connecting to a token endpoint; the whole token request has its own timeout.
const TOKEN_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A third-party API with its own connections, so that no call waits for the connections of another destination.
pub(crate) struct Http {
    name: String,
    oauth2: Option<OAuth2>,
    tokens: Tokens,
    credentials: Health,
    response_limit: usize,
    statuses: Statuses,
    shown: Shown,
    clock: Clock,
    metrics: Metrics,
    client: Client,
    url: Url,
    headers: HeaderMap,
}

/// The parts of a destination's URL that may be shown.
struct Shown {
    /// The URL without query and fragment, which may hold secrets.
    url: String,
    host: String,
    port: u16,
}

impl Http {
    pub(crate) fn new(name: &str, settings: &Settings, context: &Context<'_>) -> Result<Self, BuildError> {
        let client = client_builder().connect_timeout(settings.connect_timeout).build();
        let shown = Shown::of(&settings.url);
        Ok(Self {
            name: name.to_owned(),
            oauth2: settings.oauth2.clone(),
            tokens: context.tokens.clone(),
            credentials: Health::new(name),
            response_limit: usize::try_from(settings.response_limit.as_u64()).unwrap_or(usize::MAX),
            statuses: Statuses::with(settings.statuses.iter().map(|(status, means)| (*status, *means))),
            metrics: Metrics::new(context.meter, name, &shown.host),
            shown,
            clock: context.clock.clone(),
            client: client.map_err(BuildError::HttpClient)?,
            url: settings.url.clone(),
            headers: static_headers(&settings.headers, settings.oauth2.is_some())?,
        })
    }

    /// Builds the request that posts the body. Configured headers override the body's media type.
    fn request(&self, body: &Body) -> Request {
        let mut request = Request::new(Method::POST, self.url.clone());
        request.headers_mut().insert(CONTENT_TYPE, body.content_type.clone());
        for (name, value) in &self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        *request.body_mut() = Some(body.content.clone().into());
        request
    }
}

impl Destination for Http {
    fn call<'a>(&'a self, request: &'a OutgoingRequest<'a>) -> BoxFuture<'a, Result<Called, Deferral>> {
        async {
            match (Call { destination: self, request }).make().await {
                Ok(exchange) => {
                    self.credentials.well();
                    Ok(self.classify(exchange))
                }
                Err(no_token) => Err(self.credentials.failed(&no_token)),
            }
        }
        .boxed()
    }

    fn credentials_are_refused(&self) -> bool {
        self.credentials.are_refused()
    }
}

impl Shown {
    fn of(url: &Url) -> Self {
        let mut shown = url.clone();
        shown.set_query(None);
        shown.set_fragment(None);
        Self {
            host: shown.host_str().unwrap_or_default().to_owned(),
            port: shown.port_or_known_default().unwrap_or_default(),
            url: shown.into(),
        }
    }
}

/// Creates the client that requests tokens.
///
/// # Errors
/// If the client cannot be created.
pub fn token_client() -> Result<Client, reqwest::Error> {
    client_builder().connect_timeout(TOKEN_CONNECT_TIMEOUT).build()
}

/// Follows no redirects and uses no proxies. A redirect would send body and token to a host that is not configured,
/// and a proxy named by the machine's environment would see them.
fn client_builder() -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("throughline/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .no_proxy()
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_keepalive(TCP_KEEPALIVE)
}

fn static_headers<'a>(
    configured: impl IntoIterator<Item = (&'a String, &'a Secret)>,
    has_token: bool,
) -> Result<HeaderMap, BuildError> {
    let mut headers = HeaderMap::new();
    for (name, value) in configured {
        let problem = |problem| BuildError::Header { name: name.clone(), problem };
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| problem("is not a valid HTTP header name"))?;
        if is_ours(&name) || (has_token && name == AUTHORIZATION) {
            return Err(problem("is set by dispatch itself"));
        }
        let mut value = HeaderValue::from_str(value.expose())
            .map_err(|_| problem("its value is not a valid HTTP header value"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

/// Returns whether dispatch sets this header itself. Another value would break the framing, the trace, or the
/// guarantee that every attempt of a delivery can be recognised.
fn is_ours(name: &HeaderName) -> bool {
    [CONTENT_LENGTH, TRANSFER_ENCODING, IDEMPOTENCY_KEY].contains(name)
        || ["traceparent", "tracestate"].contains(&name.as_str())
}
