//! Checks that every request under `/v1` must pass, in addition to the authorizer of the clients.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use throughline_settings::Settings;
use tokio::sync::Semaphore;

use super::origin;
use super::problem::Problem;

/// Maximum number of concurrent requests: four for each connection to the database that they share, so that dashboards
/// with many queries cannot slow down clients that post.
const CONCURRENCY: usize = 16;
const BUSY: &str = "Too many requests under /v1 are in progress.";

/// The remote address of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// The checks on a request.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// Whether requests must come from this machine: without configured clients, no other check controls access.
    is_local: bool,
    permits: Arc<Semaphore>,
}

impl Rules {
    pub(super) fn new(settings: &Settings) -> Self {
        let is_local = settings.clients.is_empty() && !settings.insecure;
        Self { is_local, permits: Arc::new(Semaphore::new(CONCURRENCY)) }
    }

    /// Applies the checks to every path of a router.
    pub(super) fn protect(&self, router: Router) -> Router {
        router.layer(from_fn_with_state(self.clone(), pass))
    }

    fn check(&self, request: &Request) -> Result<(), Problem> {
        if self.is_local && !is_from_here(request) {
            return Err(Problem::NotLocal);
        }
        origin::check(request.method(), request.uri(), request.headers())
    }
}

async fn pass(State(rules): State<Rules>, request: Request, next: Next) -> Result<Response, Problem> {
    rules.check(&request)?;
    let _permit = rules.permits.try_acquire().map_err(|_| Problem::Unavailable(BUSY))?;
    Ok(next.run(request).await)
}

/// Returns whether a client on this machine addresses this machine. The name of another host does not count: a page in
/// a local browser may have made it resolve to this machine (DNS rebinding).
fn is_from_here(request: &Request) -> bool {
    let is_peer =
        request.extensions().get::<Peer>().is_some_and(|Peer(peer)| peer.to_canonical().is_loopback());
    let host = origin::authority(request.uri(), request.headers());
    is_peer && host.is_some_and(|host| is_address_or_localhost(host.host()))
}

fn is_address_or_localhost(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tower::ServiceExt as _;

    use super::*;

    #[test]
    fn a_request_is_local_if_its_peer_and_its_host_are_local() {
        let is = |peer: Option<&str>, uri: &str, host: &'static str| {
            let mut request = Request::builder().uri(uri);
            if !host.is_empty() {
                request = request.header("host", host);
            }
            let mut request = request.body(Body::empty()).unwrap();
            if let Some(peer) = peer {
                request.extensions_mut().insert(Peer(peer.parse().unwrap()));
            }
            is_from_here(&request)
        };
        for host in ["localhost:8099", "LOCALHOST", "127.0.0.1:8099", "[::1]:8099"] {
            assert!(is(Some("127.0.0.1"), "/v1", host), "{host}");
        }
        assert!(is(Some("::1"), "/v1", "localhost") && is(Some("::ffff:127.0.0.1"), "/v1", "localhost"));
        assert!(is(Some("127.0.0.1"), "http://localhost:8099/v1", ""), "as HTTP/2 says it");
        for (peer, host) in [
            (Some("192.0.2.1"), "localhost:8099"),
            (None, "localhost:8099"),
            (Some("127.0.0.1"), "rebound.example.com:8099"),
            (Some("127.0.0.1"), "localhost.example.com"),
            (Some("127.0.0.1"), ""),
        ] {
            assert!(!is(peer, "/v1", host), "{peer:?} {host}");
        }
    }

    #[tokio::test]
    async fn a_request_beyond_the_concurrency_limit_is_refused_until_one_is_answered() {
        let (begun, answers) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let handler = {
            let (begun, answers) = (Arc::clone(&begun), Arc::clone(&answers));
            async move || {
                begun.add_permits(1);
                answers.acquire().await.unwrap().forget();
            }
        };
        let rules = Rules::new(&Settings { insecure: true, ..Settings::default() });
        let router = rules.protect(Router::new().route("/v1", axum::routing::get(handler)));
        let ask = || router.clone().oneshot(Request::builder().uri("/v1").body(Body::empty()).unwrap());
        let all: Vec<_> = (0..CONCURRENCY).map(|_| tokio::spawn(ask())).collect();
        begun.acquire_many(u32::try_from(CONCURRENCY).unwrap()).await.unwrap().forget();
        let soon = std::time::Duration::from_secs(30);
        let refused = tokio::time::timeout(soon, ask()).await.expect("a refusal at once").unwrap();
        assert_eq!(
            (refused.status().as_u16(), refused.headers()["retry-after"].as_bytes()),
            (503, &b"1"[..])
        );
        answers.add_permits(CONCURRENCY + 1);
        for answer in all {
            assert_eq!(answer.await.unwrap().unwrap().status(), 200);
        }
        assert_eq!(ask().await.unwrap().status(), 200);
    }
}
