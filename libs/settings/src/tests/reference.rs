//! The tables of `docs/configuration.md` are generated from the settings: `make docs` writes them.

use std::env::var_os;
use std::fmt::Write as _;
use std::fs::{read_to_string, write};

use schemars::generate::SchemaSettings;
use serde_json::Value as Json;
use throughline_config::{Configuration as _, DurationText};

use super::Case;
use crate::Settings;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
/// The tables follow this line, up to the end of the document.
const MARK: &str =
    "<!-- The rest is generated from the settings: edit their doc comments, then run `make docs`. -->\n";

#[test]
fn the_configuration_reference_is_current() {
    let document = read_to_string(DOCUMENT).unwrap();
    let (written, _) = document.split_once(MARK).expect("the mark of the generated part");
    let current = format!("{written}{MARK}{}", reference());
    if var_os("UPDATE_DOCS").is_some() {
        write(DOCUMENT, current).unwrap();
    } else {
        let stale = document.lines().zip(current.lines()).find(|(written, current)| written != current);
        assert!(document == current, "docs/configuration.md is stale, run `make docs`: {stale:#?}");
    }
}

/// Returns all tables: a heading for each section.
fn reference() -> String {
    let generator = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = generator.into_generator().into_root_schema_for::<Settings>().to_value();
    let (sections, top): (Vec<_>, Vec<_>) = settings(&schema).into_iter().partition(Setting::is_section);
    let mut text = "\n## Top level\n".to_owned();
    table(&mut text, &top);
    for section in sections {
        let name = &section.key;
        let entries = section.schema.get("additionalProperties").filter(|entries| entries.is_object());
        write!(text, "\n## `{name}`\n\n{}\n", section.meaning()).unwrap();
        match entries {
            Some(entry) => of_entry(&mut text, &format!("{name}.<name>"), entry),
            None => table(&mut text, &rows(name, section.schema)),
        }
    }
    text
}

/// The tables of an entry of a mapping: the settings of all variants, and those of each one.
fn of_entry(text: &mut String, path: &str, entry: &Json) {
    let Some(variants) = entry.get("x-variants").and_then(Json::as_object) else {
        return table(text, &rows(path, entry));
    };
    let first = variants.values().next().unwrap();
    let is_common = |setting: &Setting<'_>| {
        let key = setting.key.strip_prefix(path).unwrap().trim_start_matches('.').split('.').next().unwrap();
        variants.values().all(|variant| variant["properties"].get(key) == first["properties"].get(key))
    };
    let mut common = rows(path, entry);
    common.extend(rows(path, first).into_iter().filter(is_common));
    table(text, &common);
    for (name, variant) in variants {
        let mut own = rows(path, variant);
        own.retain(|row| !is_common(row) && row.key != format!("{path}.type"));
        let default = entry["properties"]["type"]["default"] == *name;
        write!(text, "\nOnly with `type: {name}`{}:\n", if default { ", the default" } else { "" }).unwrap();
        table(text, &own);
    }
}

/// A key, and the schema of its value.
struct Setting<'a> {
    key: String,
    schema: &'a Json,
    is_required: bool,
}

/// Returns the keys of a mapping.
fn settings(schema: &Json) -> Vec<Setting<'_>> {
    let required = schema.get("required").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    let properties = schema.get("properties").and_then(Json::as_object).into_iter().flatten();
    let setting = |(key, value)| Setting {
        key: String::clone(key),
        schema: value,
        is_required: required.iter().any(|name| name == key),
    };
    properties.map(setting).collect()
}

/// Returns the rows of a section and of the sections in it.
fn rows<'a>(path: &str, section: &'a Json) -> Vec<Setting<'a>> {
    let mut rows = Vec::new();
    for Setting { key, schema, is_required } in settings(section) {
        let key = format!("{path}.{key}");
        let inner = present(schema);
        let below = if inner.get("x-reference").is_some() { Vec::new() } else { rows_below(&key, inner) };
        rows.push(Setting { key, schema, is_required });
        rows.extend(below);
    }
    rows
}

fn rows_below<'a>(key: &str, schema: &'a Json) -> Vec<Setting<'a>> {
    if schema.get("properties").is_some() { rows(key, schema) } else { Vec::new() }
}

/// The schema without the alternative null.
fn present(schema: &Json) -> &Json {
    let alternatives = schema.get("anyOf").and_then(Json::as_array).into_iter().flatten();
    alternatives.into_iter().find(|other| other["type"] != "null").unwrap_or(schema)
}

fn table(text: &mut String, rows: &[Setting<'_>]) {
    text.push_str(
        "\n| key | meaning | type and unit | default | environment variable |\n|---|---|---|---|---|\n",
    );
    for row in rows {
        let (meaning, default) = row.meaning_and_default();
        let cells = [format!("`{}`", row.key), meaning, row.kind(), default, row.variable()];
        writeln!(text, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | ")).unwrap();
    }
}

impl Setting<'_> {
    fn is_section(&self) -> bool {
        self.schema.get("properties").is_some() || self.schema.get("additionalProperties").is_some()
    }

    fn is_inner_section(&self) -> bool {
        let schema = present(self.schema);
        schema.get("properties").is_some() && schema.get("x-reference").is_none()
    }

    fn has_entries(&self) -> bool {
        ["additionalProperties", "patternProperties"].iter().any(|keyword| self.map(keyword).is_some())
            && !self.is_inner_section()
            && self.reference().is_none()
    }

    fn map(&self, keyword: &str) -> Option<&Json> {
        present(self.schema).get(keyword).filter(|schema| schema.is_object())
    }

    fn reference(&self) -> Option<&Json> {
        present(self.schema).get("x-reference")
    }

    fn meaning(&self) -> String {
        let of = |schema: &Json| schema.get("description").and_then(Json::as_str).map(str::to_owned);
        let text = of(self.schema).or_else(|| of(present(self.schema)));
        // Only the key `type` of a variant has no doc comment.
        let text = text.unwrap_or_else(|| "The kind of the destination.".to_owned());
        assert!(!text.contains("[`"), "{}: a link of rustdoc in a text for users: {text}", self.key);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Separates a last sentence such as "Default 30 s.", which must be true.
    fn meaning_and_default(&self) -> (String, String) {
        let meaning = self.meaning();
        if self.is_required {
            return (meaning, "required".to_owned());
        }
        if let Some(meaning) = meaning.strip_suffix(" Required.") {
            return (meaning.to_owned(), "required".to_owned());
        }
        if self.is_inner_section() {
            let optional =
                meaning.strip_suffix(" Default none.").map(|meaning| (meaning.to_owned(), "none".to_owned()));
            return optional.unwrap_or((meaning, String::new()));
        }
        let actual = self.default();
        let (rest, stated) = match meaning.rsplit_once("Default ") {
            Some((rest, stated)) => (rest.trim_end(), stated.strip_suffix('.')),
            None => (meaning.as_str(), None),
        };
        let is_simple = |stated: &&str| ["; ", ", ", ": "].iter().all(|more| !stated.contains(more));
        let Some(stated) = stated.filter(is_simple) else {
            let is_explained = meaning.to_lowercase().contains("default");
            let none = if is_explained { "see the meaning" } else { "none" };
            let default = actual.map_or_else(|| none.to_owned(), |default| format!("`{default}`"));
            return (meaning, default);
        };
        let plain = stated.replace('`', "");
        match actual {
            None => (rest.to_owned(), stated.to_owned()),
            Some(actual) => {
                let duration = |text: &str| DurationText::parse(text);
                let is_true = plain.replace(' ', "") == actual
                    || duration(&plain).is_some_and(|stated| Some(stated) == duration(&actual));
                assert!(
                    is_true,
                    "{}: the default is {actual}, and the doc comment states {stated}",
                    self.key
                );
                (rest.to_owned(), format!("`{actual}`"))
            }
        }
    }

    /// Returns the default as YAML, if there is one.
    fn default(&self) -> Option<String> {
        match self.schema.get("default")? {
            Json::Null => None,
            Json::String(text) if text.is_empty() => None,
            Json::String(text) => Some(text.clone()),
            Json::Array(items) if items.is_empty() => None,
            Json::Object(entries) if entries.is_empty() => None,
            Json::Number(number) => Some(number.to_string().trim_end_matches(".0").to_owned()),
            other => Some(other.to_string()),
        }
    }

    fn kind(&self) -> String {
        if self.is_inner_section() {
            return "section".to_owned();
        }
        let entry = self
            .map("additionalProperties")
            .or_else(|| self.map("patternProperties")?.as_object()?.values().next());
        match entry.filter(|_| self.has_entries()) {
            Some(entry) => format!("mapping; each value: {}", kind(entry)),
            None => kind(present(self.schema)),
        }
    }

    /// Returns the environment variable, as `libs/config` reads it. A section has none.
    fn variable(&self) -> String {
        if self.is_inner_section() {
            return String::new();
        }
        let keys = if self.has_entries() { format!("{}.<key>", self.key) } else { self.key.clone() };
        format!("`{}{}`", Settings::PREFIX, keys.replace('.', "__").to_uppercase())
    }
}

/// Describes the type of a value, with its unit.
fn kind(schema: &Json) -> String {
    let is_secret = schema.get("x-reference").is_some_and(|of| of == "secret" || of == "property");
    if is_secret {
        return "secret".to_owned();
    }
    match schema.get("format").and_then(Json::as_str) {
        Some("address-text") => return "IP address and port".to_owned(),
        Some("duration-text") => return "duration".to_owned(),
        Some("rate-text") => return "rate".to_owned(),
        Some("size-text") => return "size".to_owned(),
        Some("uri") => return "URL".to_owned(),
        _ => {}
    }
    if let Some(expected) = schema.get("x-expected").and_then(Json::as_str) {
        return expected.to_owned();
    }
    let name = match schema.get("type") {
        Some(Json::Array(names)) => {
            names.iter().find_map(|name| name.as_str().filter(|name| *name != "null"))
        }
        Some(name) => name.as_str(),
        None => None,
    };
    let minimum = schema.get("minimum").and_then(Json::as_u64).filter(|least| *least > 0);
    match name {
        Some("integer") => match minimum {
            Some(least) => format!("whole number, at least {least}"),
            None => "whole number".to_owned(),
        },
        Some("boolean") => "`true` or `false`".to_owned(),
        Some("array") => format!("list; each item: {}", kind(&schema["items"])),
        Some("number") => "number".to_owned(),
        Some("string") => "string".to_owned(),
        _ => panic!("a type without a description: {schema}"),
    }
}

/// Without its required keys, no other key of this section is valid.
const OAUTH2: &str = "destinations: {three: {oauth2: \
    {token_url: 'https://auth.example.com/token', client_id: throughline, client_secret: secret}}}";

#[test]
fn each_environment_variable_of_the_reference_sets_its_setting() {
    let reference = reference();
    let mut count = 0;
    for line in reference.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.split(" | ").map(|cell| cell.trim_matches([' ', '|', '`'])).collect();
        let [key, .., default, variable] = cells[..] else { panic!("{line}") };
        let has_default = line.contains(&format!("| `{default}` |"));
        // A client would need a key too.
        if has_default && !key.starts_with("clients.") {
            let entry = if key.starts_with("routes.") { "ONE" } else { "THREE" };
            let variable = variable.replace("<NAME>", entry);
            let case = Case::over(OAUTH2).environment(&[(&variable, default)]);
            let shown = case.loaded().show();
            assert!(shown.contains(&format!("# environment {variable}\n")), "{key}: {shown}");
            count += 1;
        }
    }
    assert!(count > 30, "{count} settings have a default");
}
