//! Environment variables: `THROUGHLINE_HTTP__ADDRESS` is `http.address`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use figment::value::{Dict, Value};

use crate::layer::Layer;
use crate::path::Path;
use crate::problems::Problem;
use crate::schema::{Node, Schema};
use crate::yaml;

const SEPARATOR: &str = "__";

/// A snapshot of the environment.
#[derive(Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// Takes a snapshot of this process's environment.
    #[must_use]
    pub fn of_process() -> Self {
        let named = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        Self(std::env::vars_os().filter_map(named).collect())
    }

    /// Creates an environment of these variables.
    #[must_use]
    pub fn new(variables: &[(&str, &str)]) -> Self {
        Self(variables.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect())
    }

    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.get(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// Returns the text of a variable.
    ///
    /// # Errors
    /// If the variable is not set or is not UTF-8: a message that says so.
    pub fn text(&self, name: &str) -> Result<&str, String> {
        let value = self.0.get(name).ok_or_else(|| format!("the environment variable {name} is not set"))?;
        value.to_str().ok_or_else(|| format!("the environment variable {name} is not UTF-8"))
    }

    /// Returns one layer for each variable that is a setting. `below` are the merged layers underneath: parts of a
    /// variable's name match the keys of its maps in any case, and `_` also matches `-` and `.`.
    ///
    /// A variable that has the prefix but no `__` and names no setting is ignored: Kubernetes, for example, sets
    /// `THROUGHLINE_INGEST_PORT` for a service named `throughline-ingest`. It is reported only if it spells a setting
    /// with `_` in place of `__`.
    pub(crate) fn layers(&self, prefix: &str, schema: &Schema, below: &Dict) -> (Vec<Layer>, Vec<Problem>) {
        let (mut layers, mut problems) = (Vec::new(), Vec::new());
        for name in self.0.keys() {
            let Some(setting) = name.strip_prefix(prefix) else { continue };
            let is_section = schema.root().names().any(|key| same(key, setting));
            if setting.contains(SEPARATOR) || is_section {
                match self.text(name) {
                    Ok(text) => layers.push(layer(name, setting, text, schema, below)),
                    Err(problem) => problems.push(in_environment(name, problem)),
                }
            } else if let Some(meant) = meant(setting, schema.root(), &Path::root())
                && !below.values().any(|value| refers_to(value, name))
            {
                let message = format!("two underscores separate levels: write {prefix}{meant}");
                problems.push(in_environment(name, message));
            }
        }
        (layers, problems)
    }
}

fn in_environment(name: &str, message: String) -> Problem {
    Problem { path: name.to_owned(), message, source: Some("environment".to_owned()) }
}

fn layer(name: &str, setting: &str, text: &str, schema: &Schema, below: &Dict) -> Layer {
    let (mut node, mut below) = (Some(schema.root()), Some(below));
    let mut keys = Vec::new();
    for part in setting.split(SEPARATOR) {
        let key = known(part, node, below).unwrap_or_else(|| part.to_lowercase());
        node = node.and_then(|node| node.child(&key));
        below = below.and_then(|below| below.get(&key)).and_then(Value::as_dict);
        keys.push(key);
    }
    let value = node.map_or_else(|| Value::from(text), |node| read(text, node));
    Layer::of(format!("environment {name}"), keys.iter().map(String::as_str), value)
}

/// Returns the key that a part of a variable's name stands for.
fn known(part: &str, node: Option<Node<'_>>, below: Option<&Dict>) -> Option<String> {
    let settings = node.into_iter().flat_map(Node::names);
    let entries = below.into_iter().flat_map(Dict::keys).map(String::as_str);
    let mut keys: Vec<&str> = settings.chain(entries).filter(|key| same(key, part)).collect();
    // If several match, prefer one that differs in case only.
    keys.sort_by_key(|key| !key.eq_ignore_ascii_case(part));
    keys.first().map(|key| (*key).to_owned())
}

fn same(key: &str, part: &str) -> bool {
    key.len() == part.len()
        && key.chars().zip(part.chars()).all(|(ours, theirs)| {
            ours.eq_ignore_ascii_case(&theirs) || (theirs == '_' && matches!(ours, '-' | '.'))
        })
}

/// Converts a variable's text to the type of its setting. Text that does not parse is kept as it is, and reported
/// with all other values of a wrong type.
fn read(text: &str, node: Node<'_>) -> Value {
    let yaml = || yaml::read(text).unwrap_or_else(|_| Value::from(text));
    if node.takes("string") {
        Value::from(text)
    } else if node.takes("array") && !text.trim_start().starts_with('[') {
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect::<Vec<_>>().into()
    } else if ["integer", "number", "boolean", "array", "object"].into_iter().any(|kind| node.takes(kind)) {
        yaml()
    } else {
        Value::from(text)
    }
}

/// Returns the setting whose variable was written with `_` in place of `__`.
fn meant(setting: &str, node: Node<'_>, path: &Path) -> Option<String> {
    node.names().find_map(|name| {
        let (node, path) = (node.child(name)?, path.key(name));
        let written = path.to_string().replace('.', "_").to_uppercase();
        if written == setting {
            return Some(path.to_string().replace('.', SEPARATOR).to_uppercase());
        }
        meant(setting, node, &path)
    })
}

/// Whether a value is, or holds, `{env: name}`.
fn refers_to(value: &Value, name: &str) -> bool {
    match value {
        Value::Dict(_, entries) => {
            let is_reference = entries.get("env").and_then(Value::as_str) == Some(name);
            is_reference || entries.values().any(|value| refers_to(value, name))
        }
        Value::Array(_, items) => items.iter().any(|value| refers_to(value, name)),
        _ => false,
    }
}
