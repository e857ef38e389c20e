use http::HeaderValue;

/// A bearer token. It never shows itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessToken(HeaderValue);

impl AccessToken {
    /// None for one with other characters than
    /// [RFC 6749, A.12](https://www.rfc-editor.org/rfc/rfc6749#appendix-A.12) allows, or with none.
    pub(crate) fn bearer(token: &str) -> Option<Self> {
        if token.is_empty() || !token.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return None;
        }
        let mut header = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
        // Which also keeps it out of its `Debug`, and out of HTTP/2's compression.
        header.set_sensitive(true);
        Some(Self(header))
    }

    /// The value of the `Authorization` header, marked as sensitive.
    #[must_use]
    pub fn authorization(&self) -> HeaderValue {
        self.0.clone()
    }
}
