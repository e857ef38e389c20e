use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use throughline_config::{DurationText, Findings, Path, Secret};
use url::Url;

/// OAuth2 client credentials (RFC 6749, 4.4).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OAuth2 {
    /// The `http` or `https` URL of the token endpoint. It is shown in output, so it must not contain credentials.
    pub token_url: Url,
    /// The client id registered with the third party.
    pub client_id: String,
    /// The client secret.
    pub client_secret: Secret,
    /// How the client id and secret are sent. Default `basic`.
    #[serde(default)]
    pub credentials: Credentials,
    /// The requested scope; several are separated by spaces (RFC 6749, 3.3).
    #[serde(default)]
    pub scope: Option<String>,
    /// The audience of the token.
    #[serde(default)]
    pub audience: Option<String>,
    /// Further form parameters.
    #[serde(default)]
    pub parameters: BTreeMap<String, Secret>,
    /// Timeout for a whole token request. Default 5 s.
    #[serde(with = "DurationText", default = "five_seconds")]
    pub timeout: Duration,
}

/// How a client's id and secret are sent (RFC 6749, 2.3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(extend("x-expected" = "`basic` or `body`"))]
pub enum Credentials {
    /// In the `Authorization` header.
    #[default]
    Basic,
    /// In the form.
    Body,
}

impl OAuth2 {
    /// Checks the meaning of settings of valid form.
    pub fn check(&self, path: &Path, findings: &mut Findings) {
        check_url(&self.token_url, &path.key("token_url"), findings);
        findings.expect(!self.client_id.is_empty(), || path.key("client_id"), "must not be empty");
    }
}

/// Checks the URL of an endpoint that is called.
pub fn check_url(url: &Url, path: &Path, findings: &mut Findings) {
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

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}
