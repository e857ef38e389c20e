//! Mappings whose keys depend on their `type`.

use schemars::{Schema, json_schema};
use serde_json::{Map, Value as Json, json};

/// The schema keyword for the variants of a mapping, by the value of its `type`.
pub(crate) const VARIANTS: &str = "x-variants";
/// The key that selects the variant.
pub(crate) const TYPE: &str = "type";

/// Returns the schema of a mapping that has one of several variants. The key `type` selects it; without the key, it is
/// `default`. Each variant has a name and the schema of a mapping, to which `type` is added.
#[must_use]
pub fn variants(default: &str, variants: impl IntoIterator<Item = (&'static str, Schema)>) -> Schema {
    let variants: Map<String, Json> = variants
        .into_iter()
        .map(|(name, schema)| (name.to_owned(), with_type(schema.to_value(), name)))
        .collect();
    let names: Vec<_> = variants.keys().map(|name| format!("`{name}`")).collect();
    json_schema!({
        "type": "object",
        "properties": {
            TYPE: {
                "type": "string",
                "description": "The kind, which selects the further keys.",
                "enum": variants.keys().collect::<Vec<_>>(),
                "default": default,
                "x-expected": format!("one of {}", names.join(", ")),
            },
        },
        VARIANTS: variants,
    })
}

fn with_type(mut variant: Json, name: &str) -> Json {
    if let Some(properties) = variant.get_mut("properties").and_then(Json::as_object_mut) {
        properties.insert(TYPE.to_owned(), json!({"type": "string", "const": name}));
    }
    variant
}

/// Adds the conditions by which a validator checks the variant that `type` selects. A `type` that names no variant is
/// reported by itself, without problems of any variant.
pub(crate) fn condition(schema: &mut Json) {
    let Some(variants) = schema.get(VARIANTS).and_then(Json::as_object) else { return };
    let default = default(schema);
    let conditions = variants.iter().map(|(name, variant)| {
        let required: &[&str] = if Some(name.as_str()) == default { &[] } else { &[TYPE] };
        json!({
            "if": {"properties": {TYPE: {"const": name}}, "required": required},
            "then": variant,
        })
    });
    schema["allOf"] = conditions.collect();
}

/// Returns the schema of the variant of this name, or of the default one.
pub(crate) fn select<'a>(schema: &'a Json, name: Option<&str>) -> Option<&'a Json> {
    schema.get(VARIANTS)?.get(name.or_else(|| default(schema))?)
}

/// Returns the schemas of all variants.
pub(crate) fn all(schema: &Json) -> impl Iterator<Item = &Json> {
    schema.get(VARIANTS).and_then(Json::as_object).into_iter().flat_map(Map::values)
}

fn default(schema: &Json) -> Option<&str> {
    schema.get("properties")?.get(TYPE)?.get("default")?.as_str()
}
