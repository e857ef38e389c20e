//! Access control: clients, identified by the bearer tokens (RFC 6750) that are their keys.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use throughline_settings::Settings;
use tracing::Span;

use super::problem::Problem;

/// A resource that a client may be permitted to use.
#[derive(Debug, Clone)]
pub(super) enum Access {
    /// The route of this name.
    Route(String),
    /// Everything under `/v1`.
    Management,
}

/// The name of the admitted client, for the handler of its request.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub(super) String);

/// Admits the clients to which the configuration grants the access.
#[derive(Debug, Clone)]
pub(super) struct Authorizer {
    clients: Arc<Clients>,
    access: Access,
}

/// The configured clients.
#[derive(Debug)]
pub(super) struct Clients {
    /// By the fingerprints of their keys: the duration of a failed look-up reveals nothing about other keys.
    known: HashMap<Fingerprint, Client>,
}

type Fingerprint = [u8; 32];

#[derive(Debug)]
struct Client {
    name: String,
    /// `None` permits all routes.
    routes: Option<BTreeSet<String>>,
    manages: bool,
}

impl Clients {
    /// Returns the configured clients; `None` if there are none: then every caller may do everything.
    pub(super) fn new(settings: &Settings) -> Option<Arc<Self>> {
        let client = |(name, client): (&String, &throughline_settings::Client)| {
            let routes = client.routes.as_ref().map(|routes| routes.iter().cloned().collect());
            let known = Client { name: name.clone(), routes, manages: client.manage };
            (fingerprint(client.key.expose()), known)
        };
        let known: HashMap<_, _> = settings.clients.iter().map(client).collect();
        (!known.is_empty()).then(|| Arc::new(Self { known }))
    }

    pub(super) fn authorizer(self: &Arc<Self>, access: Access) -> Authorizer {
        Authorizer { clients: Arc::clone(self), access }
    }
}

/// Answers requests that the authorizer does not admit, before their bodies are read.
pub(super) async fn admit(
    State(authorizer): State<Authorizer>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let client = authorizer.admit(request.headers())?.to_owned();
    Span::current().record("throughline.client", &client);
    request.extensions_mut().insert(Caller(client));
    Ok(next.run(request).await)
}

impl Authorizer {
    /// Returns the name of the calling client, if it is admitted.
    fn admit(&self, headers: &HeaderMap) -> Result<&str, Problem> {
        let key = bearer_token(headers).ok_or(Problem::Unauthorized)?;
        let client = self.clients.known.get(&fingerprint(key)).ok_or(Problem::Unauthorized)?;
        let (may, what) = match &self.access {
            Access::Route(name) => {
                let may = client.routes.as_ref().is_none_or(|routes| routes.contains(name));
                (may, format!("the route `{name}`"))
            }
            Access::Management => (client.manages, "the paths under /v1".to_owned()),
        };
        if may { Ok(&client.name) } else { Err(Problem::Forbidden { client: client.name.clone(), what }) }
    }
}

fn fingerprint(key: &str) -> Fingerprint {
    Sha256::digest(key).into()
}

/// Returns the token of the only `Authorization: Bearer …` header; the scheme is case-insensitive (RFC 9110, 11.1).
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let mut sent = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (sent.next(), sent.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' '))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use axum::middleware::{from_fn, from_fn_with_state};
    use axum::routing::get;
    use http::HeaderValue;
    use tracing_subscriber::fmt::format::FmtSpan;

    use super::*;

    const KEY: &str = "0123456789abcdef";

    fn clients(routes: Option<&[&str]>, manage: bool) -> Arc<Clients> {
        let routes = routes.map(|routes| routes.iter().map(|&name| name.to_owned()).collect());
        let client = throughline_settings::Client { key: KEY.into(), routes, manage };
        let clients = BTreeMap::from([("shop".to_owned(), client)]);
        Clients::new(&Settings { clients, ..Settings::default() }).unwrap()
    }

    fn admit(authorizer: &Authorizer, authorization: &[&str]) -> Result<String, u16> {
        let headers =
            authorization.iter().map(|value| (AUTHORIZATION, HeaderValue::from_str(value).unwrap()));
        let admitted = authorizer.admit(&headers.collect()).map(str::to_owned);
        admitted.map_err(|problem| match problem {
            Problem::Unauthorized => 401,
            Problem::Forbidden { .. } => 403,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn without_clients_there_is_no_guard() {
        assert!(Clients::new(&Settings::default()).is_none());
    }

    #[test]
    fn a_request_without_a_known_key_is_unauthorized() {
        let authorizer = clients(None, true).authorizer(Access::Management);
        for known in ["Bearer 0123456789abcdef", "bearer 0123456789abcdef", "BEARER   0123456789abcdef "] {
            assert_eq!(admit(&authorizer, &[known]), Ok("shop".to_owned()), "{known}");
        }
        for unknown in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer 0123456789ABCDEF",
            "Bearer0123456789abcdef",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
            "Bearer 0123456789abcdef, Bearer 0123456789abcdef",
        ] {
            assert_eq!(admit(&authorizer, &[unknown]), Err(401), "{unknown}");
        }
        assert_eq!(admit(&authorizer, &[]), Err(401));
        assert_eq!(admit(&authorizer, &["Bearer 0123456789abcdef"; 2]), Err(401), "which of them counts?");
    }

    #[test]
    fn a_client_is_admitted_only_where_the_configuration_permits() {
        let may = |routes, manage, access| {
            admit(&clients(routes, manage).authorizer(access), &["Bearer 0123456789abcdef"]).is_ok()
        };
        let one = || Access::Route("one".to_owned());
        assert!(may(None, false, one()) && may(Some(&["two", "one"]), false, one()));
        assert!(!may(Some(&["two"]), true, one()) && !may(Some(&[]), true, one()));
        assert!(may(Some(&[]), true, Access::Management) && !may(None, false, Access::Management));
    }

    #[tokio::test]
    async fn the_span_of_a_request_names_its_client() {
        let (mut log, writer) = std::io::pipe().unwrap();
        let log_of_spans = tracing_subscriber::fmt()
            .with_span_events(FmtSpan::CLOSE)
            .with_ansi(false)
            .with_writer(std::sync::Mutex::new(writer))
            .finish();
        let logging = tracing::subscriber::set_default(log_of_spans);
        let authorizer = clients(None, true).authorizer(Access::Management);
        let router = axum::Router::new()
            .route("/", get(async || "hello").layer(from_fn_with_state(authorizer, super::admit)))
            .route_layer(from_fn(super::super::trace::server_span));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, router).await });
        let answer = reqwest::Client::new().get(url).bearer_auth(KEY).send().await.unwrap();
        assert_eq!(answer.status(), 200);

        drop(logging);
        let mut lines = String::new();
        log.read_to_string(&mut lines).unwrap();
        assert!(lines.contains("throughline.client=\"shop\"") && !lines.contains(KEY), "{lines}");
    }

    #[test]
    fn the_debug_output_of_clients_contains_no_key() {
        assert!(!format!("{:?}", clients(None, true)).contains(KEY));
    }
}
