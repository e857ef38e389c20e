//! A third-party API, as the configuration describes it, ready to be called.

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

use crate::classify::Rules;
use crate::credentials::Health;
use crate::error::StartError;
use crate::gate::Gate;
use crate::lanes::{Key, Lanes, Place};
use crate::metrics::Calls;
use crate::policy;
use crate::pulse::Pulse;
use crate::room::Rooms;

/// Idle connections are closed before the 60 s after which common load balancers do: a request that
/// meets a connection which is just being closed fails.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Finds dead peers behind connections that are open and wait.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// For connecting to a token endpoint; the whole token request has its own time-out.
const TOKEN_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A third-party API with its own connections, so that none waits for those of another.
pub(crate) struct Destination {
    pub(crate) name: Arc<str>,
    pub(crate) oauth2: Option<config::OAuth2>,
    pub(crate) timeout: Duration,
    pub(crate) response_limit: usize,
    pub(crate) shown: Shown,
    pub(crate) rules: Rules,
    pub(crate) gate: Gate,
    pub(crate) credentials: Health,
    pub(crate) calls: Calls,
    lanes: Arc<Lanes>,
    client: Client,
    url: Url,
    headers: HeaderMap,
    filter: Option<Runner>,
}

/// What may be shown of a destination's URL.
pub(crate) struct Shown {
    /// Without query and fragment, which may hold secrets.
    pub(crate) url: String,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// What is posted.
pub(crate) struct Body {
    pub(crate) content: Bytes,
    pub(crate) content_type: HeaderValue,
}

impl Destination {
    /// All destinations share the `rooms` and the `pulse`.
    pub(crate) fn new(
        name: &str,
        settings: &config::Destination,
        rooms: &Rooms,
        pulse: &Arc<Pulse>,
        meter: &Meter,
    ) -> Result<Self, StartError> {
        let client = client_builder().connect_timeout(settings.connect_timeout).build();
        let own = || name.to_owned();
        let shown = Shown::of(&settings.url);
        let shares = rooms.share();
        Ok(Self {
            name: name.into(),
            oauth2: settings.oauth2.clone(),
            timeout: settings.timeout,
            response_limit: usize::try_from(settings.response_limit.as_u64()).unwrap_or(usize::MAX),
            calls: Calls::new(meter, name, &shown.host),
            shown,
            rules: Rules { retry: policy::retry(&settings.retry), statuses: policy::statuses(settings) },
            lanes: Lanes::new(Arc::clone(&shares.waiting), Arc::clone(pulse)),
            gate: Gate::new(name, settings, shares, Arc::clone(pulse)),
            credentials: Health::new(name),
            client: client.map_err(|source| StartError::Client { destination: own(), source })?,
            url: settings.url.clone(),
            headers: static_headers(name, &settings.headers, settings.oauth2.is_some())?,
            filter: settings.filter.as_deref().map(|filter| runner(name, filter)).transpose()?,
        })
    }

    /// Lines up behind those with the same ordering key.
    ///
    /// # Errors
    /// If there are too many: how long to stay away.
    pub(crate) fn line_up(&self, key: Key) -> Result<Place, Duration> {
        self.lanes.enter(key, || self.gate.limits().call())
    }

    /// The body this destination wants: the filter's output, or byte for byte what came.
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

    /// The request that posts the body. Configured headers win over the body's media type.
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

/// The client that asks for tokens.
pub(crate) fn token_client() -> Result<Client, StartError> {
    client_builder().connect_timeout(TOKEN_CONNECT_TIMEOUT).build().map_err(StartError::TokenClient)
}

/// A redirect would take body and token to a place that nobody configured, and a proxy that the
/// machine's environment names would see them.
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
            .map_err(|_| problem("is not the name of an HTTP header"))?;
        if is_ours(&name) || (has_token && name == AUTHORIZATION) {
            return Err(problem("is set by dispatch itself"));
        }
        let mut value = HeaderValue::from_str(value.expose())
            .map_err(|_| problem("its value cannot be that of an HTTP header"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

/// Another value would break the framing, the trace, or the promise that every attempt of a
/// delivery can be recognised.
fn is_ours(name: &HeaderName) -> bool {
    [CONTENT_LENGTH, TRANSFER_ENCODING, IDEMPOTENCY_KEY].contains(name)
        || ["traceparent", "tracestate"].contains(&name.as_str())
}
