use std::collections::{BTreeMap, BTreeSet};

use super::Findings;
use crate::path::Path;
use crate::settings::Client;

/// Nobody guesses as many characters, if they are random.
const SHORTEST_KEY: usize = 16;

pub(super) fn check(clients: &BTreeMap<String, Client>, routes: &BTreeSet<&str>, findings: &mut Findings) {
    let mut keys = BTreeMap::new();
    for (name, client) in clients {
        let path = Path::of(&["clients", name]);
        let key = client.key.expose();
        findings.expect(
            key.len() >= SHORTEST_KEY && key.bytes().all(|byte| byte.is_ascii_graphic()),
            || path.key("key"),
            "expected at least 16 visible ASCII characters, such as `openssl rand -hex 32` makes",
        );
        if let Some(other) = keys.insert(key, name) {
            findings.add(path.key("key"), format!("is the key of client `{other}` already"));
        }
        check_routes(client.routes.as_deref().unwrap_or_default(), routes, &path.key("routes"), findings);
    }
}

fn check_routes(named: &[String], known: &BTreeSet<&str>, path: &Path, findings: &mut Findings) {
    for (index, name) in named.iter().enumerate() {
        if !known.contains(name.as_str()) {
            let there_are = known.iter().copied().collect::<Vec<_>>().join(", ");
            findings.add(path.index(index), format!("no route is called `{name}` (there are: {there_are})"));
        }
    }
}
