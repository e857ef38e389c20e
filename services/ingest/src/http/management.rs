//! Checks that every request under `/v1` must pass, in addition to the authorizer of the clients.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::{Router, http::Uri};
use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, Method};
use throughline_settings::Settings;
use tokio::sync::Semaphore;

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
        let host = authority(request.uri(), request.headers());
        if !is_safe(request.method()) && is_cross_origin(request.headers(), host.as_ref()) {
            return Err(Problem::CrossOrigin);
        }
        Ok(())
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
    let host = authority(request.uri(), request.headers());
    is_peer && host.is_some_and(|host| is_address_or_localhost(host.host()))
}

fn is_address_or_localhost(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// Returns the host and port that the client addressed.
fn authority(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    uri.authority().cloned().or_else(|| headers.get(HOST)?.to_str().ok()?.parse().ok())
}

/// Returns whether a method is safe (RFC 9110, 9.2.1).
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Returns whether a browser sends a request for a page of another origin. Browsers declare it in `Sec-Fetch-Site`,
/// those of before 2023 at least in `Origin`; other programs send neither. (The rule is that of Go's
/// `http.CrossOriginProtection`.)
fn is_cross_origin(headers: &HeaderMap, host: Option<&Authority>) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
    // The scheme is not compared: a proxy in front of ingest may terminate TLS.
    origin.and_then(|origin| origin.authority().cloned()).as_ref() != host || host.is_none()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tower::ServiceExt as _;

    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let header = |&(name, value): &(&'static str, &'static str)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
        };
        all.iter().map(header).collect()
    }

    #[test]
    fn only_a_browser_request_for_a_page_of_another_origin_is_cross_origin() {
        let host = "ingest.example.com:8099".parse().unwrap();
        for (sent, expected) in [
            (&[][..], false),
            (&[("sec-fetch-site", "same-origin"), ("origin", "https://other.example.com")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "same-site"), ("origin", "http://ingest.example.com:8099")], true),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("sec-fetch-site", "")], true),
            (&[("origin", "http://ingest.example.com:8099")], false),
            (&[("origin", "https://INGEST.example.com:8099")], false),
            (&[("origin", "http://ingest.example.com")], true),
            (&[("origin", "http://ingest.example.com:8099.evil.example")], true),
            (&[("origin", "null")], true),
            (&[("origin", "")], true),
        ] {
            assert_eq!(is_cross_origin(&headers(sent), Some(&host)), expected, "{sent:?}");
        }
        assert!(is_cross_origin(&headers(&[("origin", "null")]), None));
    }

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
