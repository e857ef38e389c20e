use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytesize::ByteSize;
use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use throughline_config::{DurationText, Findings, Path, Secret, SizeText};
use throughline_token::{OAuth2, check_url};
use url::Url;

use super::statuses::{StatusMeaning, StatusText, meanings};
use crate::Destination;
use crate::kind::{BuildError, Context, KindSettings};

/// Substrings of header names that carry a credential; other headers may have the value `throughline`.
const OF_CREDENTIALS: [&str; 6] = ["auth", "key", "token", "secret", "password", "cookie"];

/// The settings of a third-party API.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The `http` or `https` URL that requests are posted to. It is shown in output, so it must not contain
    /// credentials.
    pub url: Url,
    /// Headers sent with each call, by name; a value may be a secret.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// OAuth2 client credentials, which authorise the calls. Default none.
    #[serde(default)]
    pub oauth2: Option<OAuth2>,
    /// Timeout for establishing a connection, including name resolution and TLS. Default 2 s.
    #[serde(with = "DurationText", default = "two_seconds")]
    pub connect_timeout: Duration,
    /// Maximum number of response bytes that are read. Default 64 KiB.
    #[serde(with = "SizeText", default = "response_limit")]
    pub response_limit: ByteSize,
    /// Meanings of statuses where they differ from the standard ones: `{409: delivered, 404: retry}`.
    #[serde(default, deserialize_with = "meanings::deserialize")]
    #[schemars(
        with = "BTreeMap<StatusText, StatusMeaning>",
        extend("x-expected" = "statuses from 100 to 599 and what they mean, such as `{409: delivered}`")
    )]
    pub statuses: BTreeMap<u16, StatusMeaning>,
}

impl KindSettings for Settings {
    fn check(&self, path: &Path, findings: &mut Findings) {
        check_url(&self.url, &path.key("url"), findings);
        check_headers(&self.headers, &path.key("headers"), findings);
        if let Some(oauth2) = &self.oauth2 {
            oauth2.check(&path.key("oauth2"), findings);
        }
    }

    /// The password of a header is the last word of its value, as in `Bearer changeme`.
    fn passwords(&self, path: &Path) -> Vec<(Path, &str)> {
        let headers = self.headers.iter().filter_map(|(name, value)| {
            let lower = name.to_lowercase();
            let is_credential = OF_CREDENTIALS.iter().any(|part| lower.contains(part));
            let password = value.expose().split_whitespace().last().filter(|_| is_credential)?;
            Some((path.key("headers").key(name), password))
        });
        let oauth2 = self.oauth2.iter();
        let secrets =
            oauth2.map(|oauth2| (path.key("oauth2").key("client_secret"), oauth2.client_secret.expose()));
        headers.chain(secrets).collect()
    }

    fn build(&self, name: &str, context: &Context<'_>) -> Result<Box<dyn Destination>, BuildError> {
        Ok(Box::new(super::Http::new(name, self, context)?))
    }
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

fn two_seconds() -> Duration {
    Duration::from_secs(2)
}

fn response_limit() -> ByteSize {
    ByteSize::kib(64)
}
