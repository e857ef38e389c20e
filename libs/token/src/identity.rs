use crate::{Credentials, OAuth2};
use sha2::{Digest, Sha256};

/// Identifies a token request by everything that is sent, and its URL.
///
/// Stored as a digest, so that the cache holds no secret. The client secret is part of it, so that a token is
/// returned only to configurations with the same secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity([u8; 32]);

impl Identity {
    pub(crate) fn of(oauth2: &OAuth2) -> Self {
        // Destructured by name, so that the compiler reports a new field that is missing here.
        let OAuth2 {
            token_url,
            client_id,
            client_secret,
            credentials,
            scope,
            audience,
            parameters,
            timeout: _,
        } = oauth2;
        let placement = match credentials {
            Credentials::Basic => "basic",
            Credentials::Body => "body",
        };
        let mut fields = Fields(Sha256::new());
        fields.put(Some(token_url.as_str()));
        fields.put(Some(client_id));
        fields.put(Some(client_secret.expose()));
        fields.put(Some(placement));
        fields.put(scope.as_deref());
        fields.put(audience.as_deref());
        for (name, value) in parameters {
            fields.put(Some(name));
            fields.put(Some(value.expose()));
        }
        Self(fields.0.finalize().into())
    }
}

struct Fields(Sha256);

impl Fields {
    /// Adds a field prefixed by its length, so that no two lists of fields yield the same bytes.
    fn put(&mut self, field: Option<&str>) {
        match field {
            None => self.0.update([0]),
            Some(text) => {
                self.0.update([1]);
                self.0.update(text.len().to_be_bytes());
                self.0.update(text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::time::Duration;

    use throughline_config::Secret;

    use super::*;

    fn oauth2() -> OAuth2 {
        OAuth2 {
            token_url: "https://auth.example/token".parse().unwrap(),
            client_id: "ab".to_owned(),
            client_secret: Secret::from("c"),
            credentials: Credentials::Basic,
            scope: None,
            audience: None,
            parameters: BTreeMap::new(),
            timeout: Duration::from_secs(5),
        }
    }

    #[test]
    fn every_setting_of_the_request_changes_the_identity() {
        let parameters = |name: &str, value: &str| [(name.to_owned(), Secret::from(value))].into();
        let different = [
            oauth2(),
            OAuth2 { token_url: "https://auth.example/other".parse().unwrap(), ..oauth2() },
            OAuth2 { client_id: "b".to_owned(), ..oauth2() },
            OAuth2 { client_id: "a".to_owned(), client_secret: Secret::from("bc"), ..oauth2() },
            OAuth2 { client_secret: Secret::from("d"), ..oauth2() },
            OAuth2 { credentials: Credentials::Body, ..oauth2() },
            OAuth2 { scope: Some("x".to_owned()), ..oauth2() },
            OAuth2 { scope: Some(String::new()), ..oauth2() },
            OAuth2 { audience: Some("x".to_owned()), ..oauth2() },
            OAuth2 { parameters: parameters("x", "y"), ..oauth2() },
            OAuth2 { parameters: parameters("x", "z"), ..oauth2() },
            OAuth2 { parameters: parameters("xy", ""), ..oauth2() },
        ];
        let identities: HashSet<_> = different.iter().map(Identity::of).collect();
        assert_eq!(identities.len(), different.len());
    }

    #[test]
    fn the_same_request_has_the_same_identity_whatever_its_timeout() {
        let patient = OAuth2 { timeout: Duration::from_mins(1), ..oauth2() };
        assert_eq!(Identity::of(&oauth2()), Identity::of(&patient));
    }
}
