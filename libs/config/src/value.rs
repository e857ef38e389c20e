//! Access by path to values that carry their source.

use figment::value::{Empty, Num, Tag, Value};
use serde_json::Value as Json;

use crate::path::{Path, Segment};
use crate::schema::Node;

pub(crate) fn to_json(value: &Value) -> Json {
    match value {
        Value::String(_, text) => text.as_str().into(),
        Value::Char(_, char) => char.to_string().into(),
        Value::Bool(_, bool) => (*bool).into(),
        Value::Num(_, num) => number(*num),
        Value::Empty(..) => Json::Null,
        Value::Dict(_, entries) => entries.iter().map(|(key, value)| (key.clone(), to_json(value))).collect(),
        Value::Array(_, items) => items.iter().map(to_json).collect(),
    }
}

fn number(number: Num) -> Json {
    let whole = number.to_i128().or_else(|| number.to_u128()?.try_into().ok());
    let whole = whole.and_then(serde_json::Number::from_i128).map(Json::Number);
    whole.unwrap_or_else(|| number.to_f64().into())
}

/// Returns the value at a path, or its nearest existing ancestor; `None` if the first segment already does not exist.
pub(crate) fn nearest<'v>(root: &'v Value, path: &Path) -> Option<&'v Value> {
    let mut value = root;
    let mut found = None;
    for segment in path.segments() {
        let next = match (segment, value) {
            (Segment::Key(key), Value::Dict(_, entries)) => entries.get(key),
            (Segment::Index(index), Value::Array(_, items)) => items.get(*index),
            _ => None,
        };
        match next {
            Some(next) => (value, found) = (next, Some(next)),
            None => break,
        }
    }
    found
}

/// Returns the tag of the layer that a value comes from; for a mapping, that of its first entry.
pub(crate) fn tag(value: &Value) -> Tag {
    match value {
        Value::Dict(own, entries) => entries.values().next().map_or(*own, tag),
        other => other.tag(),
    }
}

/// Removes the value at a path, or the whole list if the path points into one. Returns whether it existed.
pub(crate) fn remove(root: &mut Value, path: &Path) -> bool {
    let keys = path.segments().iter().map_while(|segment| match segment {
        Segment::Key(key) => Some(key),
        Segment::Index(_) => None,
    });
    let keys: Vec<_> = keys.collect();
    let Some((last, before)) = keys.split_last() else { return false };
    let parent = before.iter().try_fold(root, |value, key| match value {
        Value::Dict(_, entries) => entries.get_mut(*key),
        _ => None,
    });
    match parent {
        Some(Value::Dict(_, entries)) => entries.remove(*last).is_some(),
        _ => false,
    }
}

/// Removes keys with a null value: they count as absent. A JSON Schema keeps its nulls, which have a meaning there.
pub(crate) fn forget_null(value: &mut Value, node: Option<Node<'_>>) {
    if node.is_some_and(|node| node.reference().is_some()) {
        return;
    }
    if let Value::Dict(_, entries) = value {
        entries.retain(|_, value| !matches!(value, Value::Empty(_, Empty::None | Empty::Unit)));
        for (key, value) in entries {
            forget_null(value, node.and_then(|node| node.child(key)));
        }
    }
}
