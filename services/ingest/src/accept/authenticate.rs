//! Authenticates clients by their API keys, and authorizes them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use throughline_settings::Settings;
use tracing::Span;

use super::Denied;

/// A resource that a client may be permitted to use.
#[derive(Debug, Clone)]
pub(crate) enum Access {
    /// The route of this name.
    Route(String),
    /// Everything under `/v1`.
    Management,
}

/// Admits the clients to which the configuration grants the access.
#[derive(Debug, Clone)]
pub(crate) struct Authorizer {
    clients: Arc<Clients>,
    access: Access,
}

/// The configured clients.
#[derive(Debug)]
pub(crate) struct Clients {
    /// By the fingerprints of their keys: the duration of a failed look-up reveals nothing about other keys.
    known: HashMap<Fingerprint, Client>,
}

type Fingerprint = [u8; 32];

#[derive(Debug)]
struct Client {
    name: String,
    /// `None` permits all routes.
    routes: Option<BTreeSet<String>>,
    manages: bool,
}

impl Clients {
    /// Returns the configured clients; `None` if there are none: then every caller may do everything.
    pub(crate) fn new(settings: &Settings) -> Option<Arc<Self>> {
        let client = |(name, client): (&String, &throughline_settings::Client)| {
            let routes = client.routes.as_ref().map(|routes| routes.iter().cloned().collect());
            let known = Client { name: name.clone(), routes, manages: client.manage };
            (fingerprint(client.key.expose()), known)
        };
        let known: HashMap<_, _> = settings.clients.iter().map(client).collect();
        (!known.is_empty()).then(|| Arc::new(Self { known }))
    }

    pub(crate) fn authorizer(self: &Arc<Self>, access: Access) -> Authorizer {
        Authorizer { clients: Arc::clone(self), access }
    }
}

impl Authorizer {
    /// Returns the name of the client with this key, if it is admitted, and records it in the current span.
    ///
    /// # Errors
    /// If the key is missing or unknown, or if its client may not use the resource.
    pub(crate) fn authorize(&self, key: Option<&str>) -> Result<&str, Denied> {
        let key = key.ok_or(Denied::Unauthenticated)?;
        let client = self.clients.known.get(&fingerprint(key)).ok_or(Denied::Unauthenticated)?;
        let (may, resource) = match &self.access {
            Access::Route(name) => {
                let may = client.routes.as_ref().is_none_or(|routes| routes.contains(name));
                (may, format!("the route `{name}`"))
            }
            Access::Management => (client.manages, "the paths under /v1".to_owned()),
        };
        if !may {
            return Err(Denied::Forbidden { client: client.name.clone(), resource });
        }
        Span::current().record("throughline.client", &client.name);
        Ok(&client.name)
    }
}

fn fingerprint(key: &str) -> Fingerprint {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const KEY: &str = "0123456789abcdef";

    fn clients(routes: Option<&[&str]>, manage: bool) -> Arc<Clients> {
        let routes = routes.map(|routes| routes.iter().map(|&name| name.to_owned()).collect());
        let client = throughline_settings::Client { key: KEY.into(), routes, manage };
        let clients = BTreeMap::from([("shop".to_owned(), client)]);
        Clients::new(&Settings { clients, ..Settings::default() }).unwrap()
    }

    #[test]
    fn without_clients_there_is_no_guard() {
        assert!(Clients::new(&Settings::default()).is_none());
    }

    #[test]
    fn a_client_without_a_known_key_is_unauthenticated() {
        let authorizer = clients(None, true).authorizer(Access::Management);
        assert_eq!(authorizer.authorize(Some(KEY)), Ok("shop"));
        for unknown in
            [None, Some(""), Some("0123456789abcde"), Some("0123456789abcdef0"), Some("0123456789ABCDEF")]
        {
            assert_eq!(authorizer.authorize(unknown), Err(Denied::Unauthenticated), "{unknown:?}");
        }
    }

    #[test]
    fn a_client_is_admitted_only_where_the_configuration_permits() {
        let may =
            |routes, manage, access| clients(routes, manage).authorizer(access).authorize(Some(KEY)).is_ok();
        let one = || Access::Route("one".to_owned());
        assert!(may(None, false, one()) && may(Some(&["two", "one"]), false, one()));
        assert!(!may(Some(&["two"]), true, one()) && !may(Some(&[]), true, one()));
        assert!(may(Some(&[]), true, Access::Management) && !may(None, false, Access::Management));
    }

    #[test]
    fn the_debug_output_of_clients_contains_no_key() {
        assert!(!format!("{:?}", clients(None, true)).contains(KEY));
    }
}
