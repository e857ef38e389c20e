use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderName, HeaderValue};
use throughline_transform::Filter;
use url::Url;

use super::{Findings, resilience};
use crate::path::Path;
use crate::secret::Secret;
use crate::settings::{Destination, OAuth2};

pub(super) fn check(destinations: &BTreeMap<String, Destination>, findings: &mut Findings) {
    for (name, destination) in destinations {
        let path = Path::of(&["destinations", name]);
        check_url(&destination.url, &path.key("url"), findings);
        check_headers(&destination.headers, &path.key("headers"), findings);
        if let Some(Err(error)) = destination.filter.as_deref().map(Filter::compile) {
            findings.add(path.key("filter"), format!("the filter does not compile: {error}"));
        }
        if let Some(oauth2) = &destination.oauth2 {
            check_oauth2(oauth2, &path.key("oauth2"), findings);
        }
        resilience::check_retry(&destination.retry, &path.key("retry"), findings);
        resilience::check_breaker(&destination.breaker, &path.key("breaker"), findings);
    }
}

fn check_url(url: &Url, path: &Path, findings: &mut Findings) {
    findings.expect(
        matches!(url.scheme(), "http" | "https"),
        || path.clone(),
        "expected an http or https URL",
    );
    findings.expect(
        url.username().is_empty() && url.password().is_none(),
        || path.clone(),
        "a URL must not contain credentials, because URLs are displayed; use `headers` with `{env: NAME}`, or `oauth2`",
    );
}

fn check_headers(headers: &BTreeMap<String, Secret>, path: &Path, findings: &mut Findings) {
    let mut names = BTreeSet::new();
    for (name, value) in headers {
        let path = || path.key(name);
        findings.expect(HeaderName::try_from(name).is_ok(), path, "is not a valid HTTP header name");
        findings.expect(
            names.insert(name.to_lowercase()),
            path,
            "duplicate header: header names are case-insensitive",
        );
        findings.expect(
            HeaderValue::from_str(value.expose()).is_ok(),
            path,
            "invalid HTTP header value: it must not contain line breaks or control characters",
        );
    }
}

fn check_oauth2(oauth2: &OAuth2, path: &Path, findings: &mut Findings) {
    check_url(&oauth2.token_url, &path.key("token_url"), findings);
    findings.expect(!oauth2.client_id.is_empty(), || path.key("client_id"), "must not be empty");
}
