//! A third-party API, as configured, ready to be called.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method};
use opentelemetry::metrics::Meter;
use reqwest::{Client, ClientBuilder, Request, redirect};
use throughline_config as config;
use throughline_transform::{Filter, Runner, TransformError, Variables};
use url::Url;

use crate::classify::DeliveryPolicy;
use crate::credentials::Health;
use crate::error::StartError;
use crate::fair_share::Budgets;
use crate::gate::CallGate;
use crate::key_queues::{KeyQueues, OrderingKey, QueueTicket};
use crate::metrics::Calls;
use crate::policy;
use crate::pulse::Pulse;

/// Idle connections are closed before common load balancers close them, after 60 s: a request fails if it is sent on
/// a connection that is just being closed.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Detects dead peers behind open connections that are waiting.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Timeout for connecting to a token endpoint; the whole token request has its own timeout.
const TOKEN_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A third-party API with its own connections, so that no call waits for the connections of another destination.
pub(crate) struct Destination {
    pub(crate) name: Arc<str>,
    pub(crate) oauth2: Option<config::OAuth2>,
    pub(crate) timeout: Duration,
    pub(crate) response_limit: usize,
    pub(crate) shown: Shown,
    pub(crate) rules: DeliveryPolicy,
    pub(crate) gate: CallGate,
    pub(crate) credentials: Health,
    pub(crate) calls: Calls,
    key_queues: Arc<KeyQueues>,
    client: Client,
    url: Url,
    headers: HeaderMap,
    filter: Option<Runner>,
}

/// The parts of a destination's URL that may be shown.
pub(crate) struct Shown {
    /// The URL without query and fragment, which may hold secrets.
    pub(crate) url: String,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// A request body to post.
pub(crate) struct Body {
    pub(crate) content: Bytes,
    pub(crate) content_type: HeaderValue,
}

impl Destination {
    /// Creates a destination. All destinations share the `budgets` and the `pulse`.
    pub(crate) fn new(
        name: &str,
        settings: &config::Destination,
        budgets: &Budgets,
        pulse: &Arc<Pulse>,
        meter: &Meter,
    ) -> Result<Self, StartError> {
        let client = client_builder().connect_timeout(settings.connect_timeout).build();
        let own = || name.to_owned();
        let shown = Shown::of(&settings.url);
        let shares = budgets.share();
        Ok(Self {
            name: name.into(),
            oauth2: settings.oauth2.clone(),
            timeout: settings.timeout,
            response_limit: usize::try_from(settings.response_limit.as_u64()).unwrap_or(usize::MAX),
            calls: Calls::new(meter, name, &shown.host),
            shown,
            rules: DeliveryPolicy {
                retry: policy::retry(&settings.retry),
                statuses: policy::statuses(settings),
            },
            key_queues: KeyQueues::new(Arc::clone(&shares.waiting), Arc::clone(pulse)),
            gate: CallGate::new(name, settings, shares, Arc::clone(pulse)),
            credentials: Health::new(name),
            client: client.map_err(|source| StartError::Client { destination: own(), source })?,
            url: settings.url.clone(),
            headers: static_headers(name, &settings.headers, settings.oauth2.is_some())?,
            filter: settings.filter.as_deref().map(|filter| runner(name, filter)).transpose()?,
        })
    }

    /// Joins the queue of the delivery's ordering key.
    ///
    /// # Errors
    /// If the queue is too long; the error is how long to defer the delivery.
    pub(crate) fn enqueue(&self, key: OrderingKey) -> Result<QueueTicket, Duration> {
        self.key_queues.enter(key, || self.gate.limits().call())
    }

    /// Returns the body for this destination: the filter's output, or the original body byte for byte.
    pub(crate) async fn body(
        &self,
        came: Body,
        variables: impl FnOnce() -> Variables,
    ) -> Result<Body, TransformError> {
        let Some(filter) = &self.filter else { return Ok(came) };
        Ok(Body {
            content: filter.apply(came.content, variables()).await?.into(),
            content_type: HeaderValue::from_static("application/json"),
        })
    }

    /// Builds the request that posts the body. Configured headers override the body's media type.
    pub(crate) fn request(&self, body: &Body) -> Request {
        let mut request = Request::new(Method::POST, self.url.clone());
        request.headers_mut().insert(CONTENT_TYPE, body.content_type.clone());
        for (name, value) in &self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        *request.body_mut() = Some(body.content.clone().into());
        request
    }

    pub(crate) async fn execute(&self, request: Request) -> Result<reqwest::Response, reqwest::Error> {
        self.client.execute(request).await
    }
}

fn runner(destination: &str, filter: &str) -> Result<Runner, StartError> {
    let own = || destination.to_owned();
    let filter =
        Filter::compile(filter).map_err(|source| StartError::Filter { destination: own(), source })?;
    Runner::new(filter).map_err(|source| StartError::Threads { destination: own(), source })
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
pub(crate) fn token_client() -> Result<Client, StartError> {
    client_builder().connect_timeout(TOKEN_CONNECT_TIMEOUT).build().map_err(StartError::TokenClient)
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
    destination: &str,
    configured: impl IntoIterator<Item = (&'a String, &'a config::Secret)>,
    has_token: bool,
) -> Result<HeaderMap, StartError> {
    let mut headers = HeaderMap::new();
    for (name, value) in configured {
        let problem = |problem| StartError::Header {
            destination: destination.to_owned(),
            header: name.clone(),
            problem,
        };
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
