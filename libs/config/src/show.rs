//! Prints the effective configuration.

use figment::Figment;
use figment::value::{Dict, Value};
use serde_json::{Map, Value as Json};

use crate::schema::Node;
use crate::value;
use crate::yaml;

/// The column where comments begin, unless the line is longer.
const MARGIN: usize = 48;

/// Returns all effective values as YAML, each with a comment that names its source.
pub(crate) fn show(settings: &Map<String, Json>, merged: &Dict, figment: &Figment, node: Node<'_>) -> String {
    let mut show = Show { figment, text: String::new() };
    show.section(settings, Some(merged), node, 0);
    show.text
}

struct Show<'a> {
    figment: &'a Figment,
    text: String,
}

impl Show<'_> {
    fn section(&mut self, entries: &Map<String, Json>, merged: Option<&Dict>, node: Node<'_>, depth: usize) {
        for (key, effective) in entries {
            let written = merged.and_then(|merged| merged.get(key));
            let node = node.child(key);
            let key = format!("{:indent$}{}:", "", scalar(key), indent = 2 * depth);
            match (effective, node) {
                (Json::Object(entries), Some(node)) if !entries.is_empty() && node.reference().is_none() => {
                    self.line(&key);
                    self.section(entries, written.and_then(Value::as_dict), node, depth + 1);
                }
                _ => self.leaf(&key, effective, written),
            }
        }
    }

    fn leaf(&mut self, key: &str, effective: &Json, written: Option<&Value>) {
        let reference = written.and_then(reference);
        let value = match (effective, &reference) {
            // A schema read from a file is shown as its reference, not as its document.
            (Json::Object(_), Some(reference)) => reference.clone(),
            (effective, _) => inline(effective),
        };
        let origin = written.map_or_else(|| "default".to_owned(), |written| origin(self.figment, written));
        let reference = reference.map(|reference| format!(" {reference}")).unwrap_or_default();
        let value = format!("{key} {value}");
        self.line(&format!("{value:MARGIN$}  # {origin}{reference}"));
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }
}

/// Returns the name of the layer that a value comes from.
pub(crate) fn origin(figment: &Figment, value: &Value) -> String {
    let metadata = figment.get_metadata(value::tag(value));
    metadata.map_or_else(|| "default".to_owned(), |metadata| metadata.name.to_string())
}

/// Returns `{env: NAME}` or `{file: PATH}` if the value was written as a reference.
fn reference(written: &Value) -> Option<String> {
    let entries = written.as_dict().filter(|entries| entries.len() == 1)?;
    let (kind, Value::String(_, name)) = entries.iter().next()? else { return None };
    matches!(kind.as_str(), "env" | "file").then(|| format!("{{{kind}: {}}}", scalar(name)))
}

/// Formats a value as one line of YAML.
fn inline(value: &Json) -> String {
    match value {
        Json::String(text) => scalar(text),
        Json::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// Formats a string, quoted where YAML would read it as another type.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./:@*?=&%+~".contains(c);
    let is_itself = || matches!(yaml::read(text), Ok(Value::String(_, read)) if read == text);
    if text.chars().all(plain) && is_itself() { text.to_owned() } else { Json::from(text).to_string() }
}
