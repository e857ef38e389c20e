//! Clients of the HTTP server, identified by the bearer tokens (RFC 6750) that are their API keys.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::problem::Problem;
use crate::accept::{Authorizer, Denied};

/// Answers requests that the authorizer does not admit, before their bodies are read.
pub(super) async fn admit(
    State(authorizer): State<Authorizer>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    authorizer.authorize(api_key(request.headers()))?;
    Ok(next.run(request).await)
}

/// Returns the token of the only `Authorization: Bearer …` header; the scheme is case-insensitive (RFC 9110, 11.1).
pub(crate) fn api_key(headers: &HeaderMap) -> Option<&str> {
    let mut sent = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (sent.next(), sent.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' '))
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unauthenticated => Self::Unauthorized,
            Denied::Forbidden { client, resource } => Self::Forbidden { client, what: resource },
            Denied::RateExceeded { retry_after } => Self::RateExceeded { retry_after },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use axum::middleware::{from_fn, from_fn_with_state};
    use axum::routing::get;
    use http::HeaderValue;
    use throughline_settings::{Client, Settings};
    use tracing_subscriber::fmt::format::FmtSpan;

    use super::*;
    use crate::accept::{Access, Clients};

    const KEY: &str = "0123456789abcdef";

    fn key_of(authorization: &[&str]) -> Option<String> {
        let headers =
            authorization.iter().map(|value| (AUTHORIZATION, HeaderValue::from_str(value).unwrap()));
        api_key(&headers.collect()).map(str::to_owned)
    }

    #[test]
    fn the_key_is_the_only_bearer_token() {
        for sent in ["Bearer 0123456789abcdef", "bearer 0123456789abcdef", "BEARER   0123456789abcdef "] {
            assert_eq!(key_of(&[sent]).as_deref(), Some(KEY), "{sent}");
        }
        for other in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer0123456789abcdef",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
            "Bearer 0123456789abcdef, Bearer 0123456789abcdef",
        ] {
            assert_ne!(key_of(&[other]).as_deref(), Some(KEY), "{other}");
        }
        assert_eq!(key_of(&[]), None);
        assert_eq!(key_of(&["Bearer 0123456789abcdef"; 2]), None, "which of them counts?");
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
        let client = Client { key: KEY.into(), routes: None, manage: true };
        let clients = BTreeMap::from([("shop".to_owned(), client)]);
        let clients = Clients::new(&Settings { clients, ..Settings::default() }).unwrap();
        let authorizer = clients.authorizer(Access::Management);
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
}
