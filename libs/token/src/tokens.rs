use std::fmt;
use std::sync::Arc;

use moka::future::Cache;
use moka::policy::EvictionPolicy;
use reqwest::Client;
use throughline_config::OAuth2;

use crate::access_token::AccessToken;
use crate::error::TokenError;
use crate::fetch::fetch;
use crate::identity::Identity;
use crate::slot::Slot;

/// Most identities that are remembered, far above what anybody configures. Those used last stay; of the
/// others a token is asked for again.
const MOST_IDENTITIES: u64 = 10_000;

/// The tokens of all clients. Clones share them.
#[derive(Clone)]
pub struct Tokens {
    http: Client,
    slots: Cache<Identity, Arc<Slot>>,
}

impl Tokens {
    /// No tokens yet. They will be asked for with `http`, which must not follow redirects: it would take the
    /// client's secret to a place that nobody configured.
    #[must_use]
    pub fn new(http: Client) -> Self {
        let slots = Cache::builder()
            .max_capacity(MOST_IDENTITIES)
            // Any other policy may refuse to take in a newcomer.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { http, slots }
    }

    /// A token that is not about to expire: the cached one, or a new one.
    ///
    /// Those who need the same token at the same time wait for one request, and get its outcome. Dropping the
    /// future leaves the request to the others. The request's span is a child of the current span of who
    /// needed it first; that of a renewal in the background is linked to it.
    ///
    /// # Errors
    /// When the token endpoint gave none. A failure is remembered for a second, each one after it for twice as
    /// long up to half a minute: who comes meanwhile gets it at once. Then one asks again.
    pub async fn get(&self, oauth2: &OAuth2) -> Result<AccessToken, TokenError> {
        self.slot(oauth2).await.token(|purpose| fetch(&self.http, oauth2, purpose)).await
    }

    /// Whether [`Tokens::get`] would answer with a token from memory.
    pub async fn holds(&self, oauth2: &OAuth2) -> bool {
        self.slot(oauth2).await.holds()
    }

    /// Forgets a token that a third party did not take.
    ///
    /// A newer one that has come in its place stays, so of many whose calls failed with the same token only
    /// the first makes a new one necessary.
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
