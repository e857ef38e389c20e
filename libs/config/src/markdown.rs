//! Prints a reference of all settings, in Markdown.

use std::fmt::Write as _;

use serde_json::Value as Json;

use crate::load::Configuration;
use crate::problems::Problems;
use crate::schema::{Node, Schema};
use crate::variants;

/// The placeholder for the name of an entry in a mapping.
const NAME: &str = "NAME";

/// Returns the reference of a configuration, in Markdown: a table for each section, with the key, meaning, type and
/// default of each setting, and the environment variable that sets it.
///
/// # Errors
/// If the schema of the type does not compile.
pub fn reference<S: Configuration>() -> Result<String, Problems> {
    let schema = Schema::of::<S>()?;
    let root = Section { path: String::new(), variable: S::PREFIX.to_owned(), level: 2 };
    let mut text = String::new();
    root.print(schema.document(), &mut text);
    Ok(text)
}

/// A part of the configuration with a heading and a table of its own.
struct Section {
    /// The keys from the root, with dots between them; empty for the root.
    path: String,
    /// The beginning of the environment variables.
    variable: String,
    /// The level of the heading.
    level: usize,
}

impl Section {
    /// Prints the section's settings, then the sections within it, and then those of each variant.
    fn print(&self, schema: &Json, text: &mut String) {
        let heading = if self.path.is_empty() { String::new() } else { format!("`{}`", self.path) };
        self.print_as(&heading, schema, text);
        for (name, variant) in schema.get(variants::VARIANTS).and_then(Json::as_object).into_iter().flatten()
        {
            self.print_as(&format!("{heading} of type `{name}`"), variant, text);
        }
    }

    fn print_as(&self, heading: &str, schema: &Json, text: &mut String) {
        if !heading.is_empty() {
            let _ = write!(text, "\n{} {heading}\n\n", "#".repeat(self.level));
        }
        if let Some(description) = description(schema).filter(|_| !heading.is_empty()) {
            let _ = writeln!(text, "{}\n", without_default(&description));
        }
        let (rows, within) = self.rows(schema);
        if !rows.is_empty() {
            text.push_str("| key, environment variable | meaning | type | default |\n|---|---|---|---|\n");
            text.push_str(&rows);
        }
        for (section, schema) in within {
            let mut printed = String::new();
            section.print(schema, &mut printed);
            // The variants of a mapping share some sections.
            if !text.contains(&printed) {
                text.push_str(&printed);
            }
        }
    }

    /// Returns the rows of the section's table, and the sections to print after it.
    fn rows<'a>(&self, schema: &'a Json) -> (String, Vec<(Self, &'a Json)>) {
        let (mut rows, mut within) = (String::new(), Vec::new());
        let required = schema.get("required").and_then(Json::as_array);
        let is_required = |key: &str| required.is_some_and(|keys| keys.iter().any(|other| other == key));
        let settings = schema.get("properties").and_then(Json::as_object);
        for (key, setting) in settings.into_iter().flatten() {
            let entry = setting.get("additionalProperties");
            if is_section(setting) {
                within.push((self.inner(&[key]), setting));
            } else if let Some(entry) = entry.filter(|entry| is_section(entry)) {
                within.push((self.inner(&[key, NAME]), entry));
            } else if setting.get("const").is_none() {
                rows.push_str(&self.row(key, setting, is_required(key)));
            }
        }
        (rows, within)
    }

    fn row(&self, key: &str, setting: &Json, is_required: bool) -> String {
        let default = match setting.get("default") {
            _ if is_required => "required".to_owned(),
            None | Some(Json::Null) => "none".to_owned(),
            Some(Json::Object(entries)) if entries.is_empty() => "none".to_owned(),
            Some(Json::Array(items)) if items.is_empty() => "none".to_owned(),
            Some(Json::String(text)) if text.is_empty() => "none".to_owned(),
            Some(Json::String(text)) => format!("`{text}`"),
            Some(value) => format!("`{value}`"),
        };
        let meaning = description(setting).map(|text| without_default(&text)).unwrap_or_default();
        let (variable, expected) = (self.variable.clone() + &key.to_uppercase(), expected(setting));
        format!("| `{key}`<br>`{variable}` | {} | {} | {default} |\n", cell(&meaning), cell(&expected))
    }

    fn inner(&self, keys: &[&str]) -> Self {
        let (mut path, mut variable) = (self.path.clone(), self.variable.clone());
        for key in keys {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(key);
            let _ = write!(variable, "{}__", key.to_uppercase());
        }
        Self { path, variable, level: if self.path.is_empty() { 2 } else { 3 } }
    }
}

/// Returns whether a setting has settings of its own. A reference to a secret or a schema is a value.
fn is_section(schema: &Json) -> bool {
    let settings = schema.get("properties").and_then(Json::as_object);
    settings.is_some_and(|settings| !settings.is_empty()) && Node::new(schema).reference().is_none()
}

/// Describes the values that a setting takes.
fn expected(setting: &Json) -> String {
    let limit = |keyword| setting.get(keyword).and_then(Json::as_u64);
    match (limit("minimum"), limit("maximum")) {
        // The limit of the type, which no useful value approaches.
        (Some(least), Some(most)) if most == u64::from(u32::MAX) => {
            format!("a whole number of at least {least}")
        }
        _ => Node::new(setting).expected(),
    }
}

/// Returns the description in one line.
fn description(schema: &Json) -> Option<String> {
    let text = schema.get("description").and_then(Json::as_str)?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Leaves out a sentence that only states the default, which has a column of its own.
fn without_default(meaning: &str) -> String {
    let is_plain = |sentence: &str| sentence.starts_with("Default ") && !sentence.contains(',');
    let sentences = meaning.split_inclusive(". ").filter(|sentence| !is_plain(sentence));
    sentences.collect::<String>().trim_end().to_owned()
}

/// Escapes the separator of cells.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
