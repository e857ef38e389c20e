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
    /// Where requests are posted, `http` or `https`. It holds no credentials, and is shown.
    pub url: Url,
    /// Headers sent with each call, by name; a value may be a secret.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// A jq filter that makes the body; without one the request's body is passed byte for byte. One that runs away is
    /// ended, and the delivery is dead.
    #[serde(default)]
    pub filter: Option<String>,
    /// How calls are authorised. Default none.
    #[serde(default)]
    pub oauth2: Option<OAuth2>,
    /// For establishing a connection, name resolution and TLS included. Default 2 s.
    #[serde(with = "DurationText", default = "two_seconds")]
    pub connect_timeout: Duration,
    /// For a whole attempt. Default 10 s.
    #[serde(with = "DurationText", default = "ten_seconds")]
    pub timeout: Duration,
    /// How much of a response is read. Default 64 KiB.
    #[serde(with = "SizeText", default = "response_limit")]
    pub response_limit: ByteSize,
    /// What an attempt that failed is followed by.
    #[serde(default)]
    pub retry: Retry,
    /// What a status means here, where that is not the usual: `{409: delivered, 404: retry}`.
    #[serde(default, deserialize_with = "statuses::deserialize")]
    #[schemars(
        with = "BTreeMap<StatusText, StatusMeaning>",
        extend("x-expected" = "statuses from 100 to 599 and what they mean, such as `{409: delivered}`")
    )]
    pub statuses: BTreeMap<u16, StatusMeaning>,
    /// When calls are held back because they would fail.
    #[serde(default)]
    pub breaker: Breaker,
    /// How much the third party is asked at once.
    #[serde(default)]
    pub limits: Limits,
}

/// OAuth2 client credentials (RFC 6749, 4.4).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OAuth2 {
    /// Where tokens are asked for, `http` or `https`. It holds no credentials, and is shown.
    pub token_url: Url,
    /// The name under which the third party knows us.
    pub client_id: String,
    /// What proves it.
    pub client_secret: Secret,
    /// Where id and secret are sent. Default `basic`.
    #[serde(default)]
    pub credentials: Credentials,
    /// What the token is asked for; several with spaces (RFC 6749, 3.3).
    #[serde(default)]
    pub scope: Option<String>,
    /// Whom the token is for.
    #[serde(default)]
    pub audience: Option<String>,
    /// Further form parameters.
    #[serde(default)]
    pub parameters: BTreeMap<String, Secret>,
    /// For a whole token request. Default 5 s.
    #[serde(with = "DurationText", default = "five_seconds")]
    pub timeout: Duration,
}

/// Where a client's id and secret are sent (RFC 6749, 2.3.1).
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
