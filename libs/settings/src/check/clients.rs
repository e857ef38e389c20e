use std::collections::{BTreeMap, BTreeSet};

use crate::Client;
use throughline_config::{Findings, Path};

pub(super) fn check(clients: &BTreeMap<String, Client>, routes: &BTreeSet<&str>, findings: &mut Findings) {
    let mut keys = BTreeMap::new();
    for (name, client) in clients {
        let path = Path::of(&["clients", name]);
        let key = client.key.expose();
        findings.expect_key(key, || path.key("key"));
        if let Some(other) = keys.insert(key, name) {
            findings.add(
                path.key("key"),
                format!(
                    "duplicates the key of client `{other}`; give each client its own \
                                   key"
                ),
            );
        }
        check_routes(client.routes.as_deref().unwrap_or_default(), routes, &path.key("routes"), findings);
    }
}

fn check_routes(named: &[String], known: &BTreeSet<&str>, path: &Path, findings: &mut Findings) {
    for (index, name) in named.iter().enumerate() {
        if !known.contains(name.as_str()) {
            let there_are = known.iter().copied().collect::<Vec<_>>().join(", ");
            findings.add(path.index(index), format!("unknown route `{name}` (known routes: {there_are})"));
        }
    }
}
