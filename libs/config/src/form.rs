//! Problems in the form of a configuration, and the messages that describe them.

use figment::value::Value;
use serde_json::Value as Json;

use crate::path::{Path, Segment};
use crate::problems::Finding;
use crate::schema::{Fault, Node, Schema, Violation};
use crate::value;

/// The least similarity, from 0 to 1, at which an unknown key counts as a misspelling of a known one. In a key of
/// three letters it allows one typing error, not two.
const SIMILAR: f64 = 0.6;
/// The longest invalid string that a message quotes, in characters.
const LONGEST: usize = 60;

/// Finds the invalid values of a configuration and removes them, so that the rest can be deserialized and checked
/// further.
pub(crate) fn repair(configuration: &mut Value, schema: &Schema) -> Vec<Finding> {
    let violations = schema.violations(&value::to_json(configuration));
    let findings = violations.iter().map(|violation| describe(violation, configuration, schema)).collect();
    let mut left = violations;
    loop {
        let taken_out = left.iter().filter(|violation| take_out(violation, configuration)).count();
        if taken_out == 0 {
            return findings;
        }
        // A section that now lacks a required key, because its value was invalid, is removed too.
        left = schema.violations(&value::to_json(configuration));
    }
}

fn take_out(violation: &Violation, configuration: &mut Value) -> bool {
    match violation.fault {
        Fault::Unknown | Fault::Mismatch => value::remove(configuration, &violation.path),
        Fault::Missing => value::remove(configuration, &violation.path.parent()),
    }
}

fn describe(violation: &Violation, configuration: &Value, schema: &Schema) -> Finding {
    let path = violation.path.clone();
    let expected = schema.at(&path, configuration).map(Node::expected).unwrap_or_default();
    let message = match violation.fault {
        Fault::Unknown => unknown(&path, schema.at(&path.parent(), configuration)),
        Fault::Missing => format!("is missing; expected {expected}"),
        Fault::Mismatch => {
            let node = schema.at(&path, configuration);
            let value = value::nearest(configuration, &path).map_or(Json::Null, value::to_json);
            let is_scalar = matches!(value, Json::Number(_) | Json::Bool(_));
            let hint = if is_scalar && node.is_some_and(|node| node.takes("string")) {
                " (enclose it in quotes)"
            } else {
                ""
            };
            format!("expected {expected}; found {}{hint}", found(&value, node.is_none_or(Node::is_private)))
        }
    };
    Finding { path, message }
}

fn unknown(path: &Path, section: Option<Node<'_>>) -> String {
    let Some(Segment::Key(key)) = path.segments().last() else { return "unknown".to_owned() };
    let known: Vec<_> = section.into_iter().flat_map(Node::names).collect();
    let similarity = |name: &&str| strsim::normalized_damerau_levenshtein(name, &key.to_lowercase());
    let similar = known.iter().copied().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    match similar.filter(|name| similarity(name) >= SIMILAR) {
        Some(name) => format!("unknown key; did you mean `{name}`?"),
        None if known.is_empty() => {
            format!("unknown key; expected {}", section.map(Node::expected).unwrap_or_default())
        }
        None => format!("unknown key (known keys: {})", known.join(", ")),
    }
}

fn found(value: &Json, is_private: bool) -> String {
    match value {
        Json::Null => "nothing".to_owned(),
        Json::Object(_) => "a mapping".to_owned(),
        Json::Array(_) => "a list".to_owned(),
        Json::String(text) if is_private || text.chars().count() > LONGEST => "a different string".to_owned(),
        Json::Number(_) if is_private => "a number".to_owned(),
        scalar => scalar.to_string(),
    }
}
