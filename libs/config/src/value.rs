//! Values that know where they come from, by path.

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

/// The value at a path, or what is nearest to it on the way there; nothing if not even the first step
/// can be made.
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

/// The layer that a value, or the first of the values in it, comes from.
pub(crate) fn tag(value: &Value) -> Tag {
    match value {
        Value::Dict(own, entries) => entries.values().next().map_or(*own, tag),
        other => other.tag(),
    }
}

/// Takes out the value at a path, of a list all of it; says whether there was one.
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

/// Takes out what is null: a key that says nothing is as one that is not there. A JSON Schema keeps
/// its nulls, which mean something.
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
