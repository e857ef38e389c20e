//! The JSON Schema of a configuration. It finds all problems in the form of a configuration, whereas deserialization
//! stops at the first.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use figment::value::Value;
use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind as Kind;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value as Json};
use url::Url;

use crate::load::Configuration;
use crate::path::{Path, Segment};
use crate::problems::{Problem, Problems};
use crate::text::{self, DurationText, Rate, SizeText};
use crate::variants;

pub(crate) struct Schema {
    document: Json,
    validator: Validator,
}

/// One problem in the form of a configuration.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    pub(crate) path: Path,
    pub(crate) fault: Fault,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The key is unknown.
    Unknown,
    /// A required key is missing.
    Missing,
    /// The value does not match the schema.
    Mismatch,
}

impl Schema {
    /// # Errors
    /// If the schema does not compile.
    pub(crate) fn of<S: Configuration>() -> Result<Self, Problems> {
        let generator = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        let mut document = generator.into_generator().into_root_schema_for::<S>().to_value();
        adapt(&mut document);
        let mut options = jsonschema::options()
            .should_validate_formats(true)
            .with_format(text::DURATION, |text: &str| DurationText::parse(text).is_some())
            .with_format(text::SIZE, |text: &str| SizeText::parse(text).is_some())
            .with_format(text::RATE, |text: &str| text.parse::<Rate>().is_ok())
            .with_format(text::ADDRESS, |text: &str| text.parse::<SocketAddr>().is_ok())
            .with_format("uri", |text: &str| Url::parse(text).is_ok());
        for &(name, is_of_format) in S::FORMATS {
            options = options.with_format(name, is_of_format);
        }
        let validator = options.offline().build(&document).map_err(|error| {
            let message = format!("the built-in schema does not compile: {error}");
            Problems::new(vec![Problem { path: String::new(), message, source: None }])
        })?;
        Ok(Self { document, validator })
    }

    pub(crate) fn document(&self) -> &Json {
        &self.document
    }

    pub(crate) fn root(&self) -> Node<'_> {
        Node(&self.document)
    }

    /// Returns the node that describes a path of a configuration, which selects the variants.
    pub(crate) fn at(&self, path: &Path, configuration: &Value) -> Option<Node<'_>> {
        let (mut node, mut value) = (self.root(), Some(configuration));
        for segment in path.segments() {
            (node, value) = match segment {
                Segment::Key(key) => {
                    (node.child(key)?, value.and_then(Value::as_dict).and_then(|entries| entries.get(key)))
                }
                Segment::Index(_) => (node.item()?, None),
            };
            node = node.variant_of(value);
        }
        Some(node)
    }

    pub(crate) fn violations(&self, configuration: &Json) -> Vec<Violation> {
        let mut violations: Vec<_> = self
            .validator
            .iter_errors(configuration)
            .flat_map(|error| violation(&error, configuration))
            .collect();
        violations.sort_unstable();
        violations.dedup();
        violations
    }
}

fn violation(error: &jsonschema::ValidationError<'_>, configuration: &Json) -> Vec<Violation> {
    let path = Path::root().join(error.instance_path(), configuration);
    match error.kind() {
        Kind::AdditionalProperties { unexpected } => {
            unexpected.iter().map(|key| Violation { path: path.key(key), fault: Fault::Unknown }).collect()
        }
        Kind::Required { property: Json::String(key) } => {
            vec![Violation { path: path.key(key), fault: Fault::Missing }]
        }
        _ => vec![Violation { path, fault: Fault::Mismatch }],
    }
}

/// Removes null from all types and limits `uint32` to 32 bits. Absent values are left out of a configuration before
/// it is validated, so no null is left to accept; and with an `anyOf` of a section and null, an error inside the
/// optional section would be reported only as a failed `anyOf`.
fn adapt(schema: &mut Json) {
    let is_null = |alternative: &Json| alternative.get("type").is_some_and(|name| name == "null");
    if let Some(Json::Array(alternatives)) = schema.get_mut("anyOf") {
        alternatives.retain(|alternative| !is_null(alternative));
        if let [Json::Object(only)] = alternatives.as_mut_slice() {
            *schema = Json::Object(std::mem::take(only));
        }
    }
    if let Some(types @ Json::Array(_)) = schema.get_mut("type") {
        let names: Vec<_> = types.as_array().into_iter().flatten().filter(|name| *name != "null").collect();
        *types = match names.as_slice() {
            [only] => (*only).clone(),
            several => several.iter().copied().cloned().collect(),
        };
    }
    if schema.get("format").is_some_and(|format| format == "uint32") {
        schema["maximum"] = u32::MAX.into();
    }
    match schema {
        Json::Object(members) => members.values_mut().for_each(adapt),
        Json::Array(items) => items.iter_mut().for_each(adapt),
        _ => {}
    }
    variants::condition(schema);
}

/// The schema of one path.
#[derive(Clone, Copy)]
pub(crate) struct Node<'a>(&'a Json);

impl<'a> Node<'a> {
    pub(crate) fn new(schema: &'a Json) -> Self {
        Self(schema)
    }

    /// Returns the schema of the variant that a value has, or the schema itself if it has no variants.
    pub(crate) fn variant_of(self, value: Option<&Value>) -> Node<'a> {
        let entries = value.and_then(Value::as_dict);
        let name = entries.and_then(|entries| entries.get(variants::TYPE)).and_then(Value::as_str);
        variants::select(self.0, name).map_or(self, Node)
    }

    /// Returns the schema of a key, for a setting as well as for an entry of a map. Without a selected variant, a
    /// setting may be of any of them.
    pub(crate) fn child(self, key: &str) -> Option<Node<'a>> {
        let property = |schema: &'a Json| schema.get("properties")?.get(key);
        let setting = property(self.0).or_else(|| variants::all(self.0).find_map(property));
        let any_other = || self.0.get("additionalProperties").filter(|any| any.is_object());
        // Maps with numeric keys. They have a single pattern, and a key that does not match it was reported already.
        let any_number = || self.0.get("patternProperties")?.as_object()?.values().next();
        setting.or_else(any_other).or_else(any_number).map(Node)
    }

    pub(crate) fn item(self) -> Option<Node<'a>> {
        self.0.get("items").map(Node)
    }

    /// Returns the names of a section's settings: of all variants, if none is selected.
    pub(crate) fn names(self) -> impl Iterator<Item = &'a str> {
        let properties = |schema: &'a Json| schema.get("properties").and_then(Json::as_object);
        let sections = std::iter::once(self.0).chain(variants::all(self.0));
        let names: BTreeSet<_> = sections.filter_map(properties).flat_map(Map::keys).collect();
        names.into_iter().map(String::as_str)
    }

    pub(crate) fn takes(self, kind: &str) -> bool {
        match self.0.get("type") {
            Some(Json::Array(kinds)) => kinds.iter().any(|other| other == kind),
            Some(only) => only == kind,
            None => false,
        }
    }

    /// Returns the kind of value that `{env: …}` and `{file: …}` stand for here, if they are allowed.
    pub(crate) fn reference(self) -> Option<&'a str> {
        self.0.get(text::REFERENCE).and_then(Json::as_str)
    }

    /// Whether an invalid value here must not be quoted, because it may be or contain a secret.
    pub(crate) fn is_private(self) -> bool {
        self.reference().is_some() || self.format() == Some("uri")
    }

    /// Describes the expected value, for messages.
    pub(crate) fn expected(self) -> String {
        if let Some(text) = self.0.get(text::EXPECTED).and_then(Json::as_str) {
            return text.to_owned();
        }
        let number = |keyword| self.0.get(keyword).and_then(Json::as_i64);
        match (self.format(), self.0.get("type").and_then(Json::as_str)) {
            (Some("uri"), _) => "a URL, such as `https://api.example.com/three`".to_owned(),
            (_, Some("string")) => "a string".to_owned(),
            (_, Some("number")) => "a number".to_owned(),
            (_, Some("boolean")) => "`true` or `false`".to_owned(),
            (_, Some("array")) => "a list, such as `[one, two]`".to_owned(),
            (_, Some("integer")) => match (number("minimum"), number("maximum")) {
                (Some(least), Some(most)) => format!("a whole number from {least} to {most}"),
                (Some(least), None) => format!("a whole number, at least {least}"),
                _ => "a whole number".to_owned(),
            },
            _ => "a mapping, such as `key: value`".to_owned(),
        }
    }

    fn format(self) -> Option<&'a str> {
        self.0.get("format").and_then(Json::as_str)
    }
}
