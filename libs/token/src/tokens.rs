use std::fmt;
use std::sync::Arc;

use crate::settings::OAuth2;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use reqwest::Client;

use crate::access_token::AccessToken;
use crate::error::TokenError;
use crate::fetch::fetch;
use crate::identity::Identity;
use crate::slot::Slot;

/// Maximum number of cached identities, far above any configuration. The least recently used are evicted, and their
/// tokens are requested again.
const MOST_IDENTITIES: u64 = 10_000;

/// The tokens of all clients. Clones share them.
#[derive(Clone)]
pub struct Tokens {
    http: Client,
    slots: Cache<Identity, Arc<Slot>>,
}

impl Tokens {
    /// Creates an empty cache. Tokens are requested with `http`, which must not follow redirects: a redirect would
    /// carry the client secret to an unconfigured host.
    #[must_use]
    pub fn new(http: Client) -> Self {
        let slots = Cache::builder()
            .max_capacity(MOST_IDENTITIES)
            // Other policies may not admit a new entry.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { http, slots }
    }

    /// Returns a token that is not about to expire, from the cache or from the endpoint.
    ///
    /// Concurrent callers that need the same token share one request and its outcome. Dropping the future does not
    /// cancel the request. The request's span is a child of the current span of the first caller; the span of a
    /// renewal in the background is linked to it instead.
    ///
    /// # Errors
    /// If the token endpoint issued no token. A failure is remembered for a second, and each further one for twice as
    /// long, up to half a minute: meanwhile callers get it immediately. Then a single request is made again.
    pub async fn get(&self, oauth2: &OAuth2) -> Result<AccessToken, TokenError> {
        self.slot(oauth2).await.token(|purpose| fetch(&self.http, oauth2, purpose)).await
    }

    /// Whether [`Tokens::get`] would return a token from memory.
    pub async fn holds(&self, oauth2: &OAuth2) -> bool {
        self.slot(oauth2).await.holds()
    }

    /// Removes a token that a third party rejected.
    ///
    /// A newer token stays. So of many calls that failed with the same token, only the first causes a new request.
    pub async fn discard(&self, oauth2: &OAuth2, token: &AccessToken) {
        self.slot(oauth2).await.discard(token);
    }

    async fn slot(&self, oauth2: &OAuth2) -> Arc<Slot> {
        self.slots.get_with(Identity::of(oauth2), async { Arc::default() }).await
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}
