//! Refuses requests that a browser sends for a page of another origin.

use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, Method, Uri};

use super::problem::Problem;

/// Checks that a request that is not safe comes from no page of another origin. A path that takes only JSON needs no
/// check: a browser asks for permission before it sends JSON to another origin.
///
/// # Errors
/// [`Problem::CrossOrigin`] if it does.
pub(crate) fn check(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let host = authority(uri, headers);
    if !is_safe(method) && is_cross_origin(headers, host.as_ref()) {
        return Err(Problem::CrossOrigin);
    }
    Ok(())
}

/// Returns the host and port that the client addressed.
pub(super) fn authority(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
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
}
