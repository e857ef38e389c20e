//! Checks on the head of every request.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderMap;
use percent_encoding::percent_decode_str;

use super::problem::Problem;

/// Maximum size of all headers together, in bytes: as much as common proxies permit. From some 36 KiB or 100 headers
/// on, hyper answers by itself, without a body.
pub(super) const LIMIT: usize = 32 << 10;

/// Rejects a request with too large headers or an unreadable path.
pub(super) async fn check(request: Request, next: Next) -> Result<Response, Problem> {
    if size(request.headers()) > LIMIT {
        return Err(Problem::HeadersTooLarge { limit: LIMIT });
    }
    if percent_decode_str(request.uri().path()).decode_utf8().is_err() {
        return Err(Problem::PathUnreadable);
    }
    Ok(next.run(request).await)
}

fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}
