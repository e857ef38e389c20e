//! `{env: NAME}` and `{file: PATH}`.

use std::path::Path as FilePath;

use figment::value::Value;

use crate::environment::Environment;
use crate::path::Path;
use crate::problems::Finding;
use crate::schema::Node;
use crate::value;
use crate::yaml;

/// Resolves references to secrets and schemas.
pub(crate) struct References<'a> {
    pub(crate) environment: &'a Environment,
    /// The folder that paths are relative to.
    pub(crate) folder: &'a FilePath,
}

impl References<'_> {
    /// Replaces each reference with the value it refers to, and a reference that cannot be resolved with an empty
    /// string. The value must have a valid form.
    pub(crate) fn resolve(&self, value: &mut Value, node: Node<'_>, path: &Path) -> Vec<Finding> {
        let found = match node.reference() {
            Some("schema") => self.schema(value),
            Some(_) => self.secret(value),
            None => return self.resolve_below(value, node, path),
        };
        match found {
            Ok(Some(found)) => *value = found,
            Ok(None) => {}
            Err(message) => {
                *value = Value::String(value.tag(), String::new());
                return vec![Finding { path: path.clone(), message }];
            }
        }
        Vec::new()
    }

    fn resolve_below(&self, value: &mut Value, node: Node<'_>, path: &Path) -> Vec<Finding> {
        let node = node.variant_of(Some(value));
        let Value::Dict(_, entries) = value else { return Vec::new() };
        entries
            .iter_mut()
            .filter_map(|(key, value)| Some((node.child(key)?, path.key(key), value)))
            .flat_map(|(node, path, value)| self.resolve(value, node, &path))
            .collect()
    }

    fn secret(&self, value: &Value) -> Result<Option<Value>, String> {
        let text = match value {
            Value::Bool(..) | Value::Num(..) => value::to_json(value).to_string(),
            Value::Dict(_, reference) => {
                let part = |name| reference.get(name).and_then(Value::as_str);
                match (part("env"), part("file")) {
                    (Some(name), _) => self.environment.text(name)?.to_owned(),
                    (_, Some(path)) => {
                        let text = self.read(path)?;
                        // Editors and `echo` append a line break; it is never part of the secret.
                        text.strip_suffix('\n')
                            .map_or(text.as_str(), |line| line.trim_end_matches('\r'))
                            .to_owned()
                    }
                    (None, None) => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        Ok(Some(Value::String(value.tag(), text)))
    }

    fn schema(&self, value: &Value) -> Result<Option<Value>, String> {
        let Value::Dict(_, document) = value else { return Ok(None) };
        let file = document.get("file").and_then(Value::as_str);
        let (Some(file), 1) = (file, document.len()) else { return Ok(None) };
        let text = self.read(file)?;
        let is_json = FilePath::new(file).extension().is_some_and(|extension| extension == "json");
        let document = if is_json {
            serde_json::from_str(&text).map_err(|error| format!("{file} is not JSON: {error}"))?
        } else {
            yaml::read(&text).map_err(|error| format!("{file} is not YAML: {error}"))?
        };
        Ok(Some(document))
    }

    fn read(&self, path: &str) -> Result<String, String> {
        let path = self.folder.join(path);
        std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    }
}
