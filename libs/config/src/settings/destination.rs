use std::collections::BTreeMap;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use super::resilience::{Breaker, Limits, Retry, StatusMeaning, statuses};
use crate::secret::Secret;
use crate::text::{DurationText, SizeText, StatusText};

/// A third-party API.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// The `http` or `https` URL that requests are posted to. It is shown in output, so it must not contain
    /// credentials.
    pub url: Url,
    /// Headers sent with each call, by name; a value may be a secret.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// A jq filter that builds the body; without one, the request's body is sent unchanged, byte for byte. A filter
    /// that exceeds its limits is terminated, and the delivery is dead.
    #[serde(default)]
    pub filter: Option<String>,
    /// How calls are authorised. Default none.
    #[serde(default)]
    pub oauth2: Option<OAuth2>,
    /// Timeout for establishing a connection, including name resolution and TLS. Default 2 s.
    #[serde(with = "DurationText", default = "two_seconds")]
    pub connect_timeout: Duration,
    /// Timeout for a whole attempt. Default 10 s.
    #[serde(with = "DurationText", default = "ten_seconds")]
    pub timeout: Duration,
    /// Maximum number of response bytes that are read. Default 64 KiB.
    #[serde(with = "SizeText", default = "response_limit")]
    pub response_limit: ByteSize,
    /// How failed attempts are retried.
    #[serde(default)]
    pub retry: Retry,
    /// Meanings of statuses where they differ from the standard ones: `{409: delivered, 404: retry}`.
    #[serde(default, deserialize_with = "statuses::deserialize")]
    #[schemars(
        with = "BTreeMap<StatusText, StatusMeaning>",
        extend("x-expected" = "statuses from 100 to 599 and what they mean, such as `{409: delivered}`")
    )]
    pub statuses: BTreeMap<u16, StatusMeaning>,
    /// The circuit breaker.
    #[serde(default)]
    pub breaker: Breaker,
    /// Limits on concurrent calls and on their rate.
    #[serde(default)]
    pub limits: Limits,
}

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

fn two_seconds() -> Duration {
    Duration::from_secs(2)
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn response_limit() -> ByteSize {
    ByteSize::kib(64)
}
