use http::HeaderValue;

/// A bearer token. Its `Debug` output does not reveal it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessToken(HeaderValue);

impl AccessToken {
    /// Returns `None` if the token is empty or contains characters other than
    /// [RFC 6749, A.12](https://www.rfc-editor.org/rfc/rfc6749#appendix-A.12) allows.
    pub(crate) fn bearer(token: &str) -> Option<Self> {
        if token.is_empty() || !token.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return None;
        }
        let mut header = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
        // This also keeps the token out of `Debug` output and out of HTTP/2's header compression.
        header.set_sensitive(true);
        Some(Self(header))
    }

    /// Returns the value of the `Authorization` header, marked as sensitive.
    #[must_use]
    pub fn authorization(&self) -> HeaderValue {
        self.0.clone()
    }
}
