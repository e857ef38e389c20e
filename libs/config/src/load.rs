use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use figment::value::{Dict, Value};
use figment::{Figment, Profile, Provider as _};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::environment::Environment;
use crate::form;
use crate::layer::{File, Layer};
use crate::path::Path;
use crate::problems::{Finding, Findings, Problem, Problems};
use crate::references::References;
use crate::schema::Schema;
use crate::show::{origin, show};
use crate::value;

/// A type that a configuration file is loaded into.
pub trait Configuration: Serialize + DeserializeOwned + JsonSchema {
    /// The file that is read if neither a flag nor the environment names one.
    const FILE: &'static str;
    /// The prefix of the environment variables that hold settings, such as `THROUGHLINE_`. The variable of this prefix
    /// and `CONFIG` names the file.
    const PREFIX: &'static str;
    /// The schema's formats of strings, beyond those of this library.
    const FORMATS: &'static [Format] = &[];

    /// Checks the meaning of a configuration of valid form.
    fn check(&self, context: &Context<'_>, findings: &mut Findings);
}

/// A format of strings: its name in the schema, and whether a text has it.
pub type Format = (&'static str, fn(&str) -> bool);

/// What a check needs in addition to the settings.
pub struct Context<'a> {
    merged: &'a Merged,
    environment: &'a Environment,
}

impl<'a> Context<'a> {
    /// Returns the keys of a top-level mapping. Entries of invalid form are among them, and are missing from the
    /// settings.
    #[must_use]
    pub fn names(&self, section: &str) -> BTreeSet<&'a str> {
        self.merged.names(section)
    }

    /// Returns the environment, which libraries may read too.
    #[must_use]
    pub fn environment(&self) -> &'a Environment {
        self.environment
    }
}

/// The layers of a configuration, beside the environment.
#[derive(Clone, Default)]
pub struct Sources<'a> {
    /// Defaults of the program, as YAML in the format of the configuration file.
    pub defaults: Option<&'a str>,
    /// The file that the flag `--config` names.
    pub file: Option<PathBuf>,
    /// The values of further flags.
    pub flags: Vec<FlagValue>,
}

/// The value of a flag that overrides a setting.
#[derive(Clone)]
pub struct FlagValue {
    /// The flag, such as `--http`.
    pub flag: &'static str,
    /// The keys of the setting, such as `["http", "address"]`.
    pub keys: &'static [&'static str],
    /// The value, which may be a secret.
    pub value: String,
}

/// A configuration that was loaded and checked.
pub struct Loaded<S> {
    /// The effective settings.
    pub settings: S,
    merged: Merged,
    schema: Schema,
}

impl<S: Serialize> Loaded<S> {
    /// Returns the effective values as YAML with secrets masked, each with its source: `default`, the file,
    /// `environment NAME` or the flag.
    #[must_use]
    pub fn show(&self) -> String {
        let settings = match serde_json::to_value(&self.settings) {
            Ok(Json::Object(settings)) => settings,
            _ => serde_json::Map::new(),
        };
        show(&settings, &self.merged.values(), &self.merged.figment, self.schema.root())
    }
}

impl<S: fmt::Debug> fmt::Debug for Loaded<S> {
    /// Leaves out the merged layers: they contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Loads a configuration from the defaults, the file, the environment and the flags; later layers override earlier
/// ones.
///
/// # Errors
/// If the configuration has problems: all of them.
pub fn load<S: Configuration>(
    sources: Sources<'_>,
    environment: &Environment,
) -> Result<Loaded<S>, Problems> {
    let schema = Schema::of::<S>()?;
    let (merged, mut problems) =
        Merged::read::<S>(sources, environment, &schema).map_err(|problem| Problems::new(vec![problem]))?;
    let (settings, mut findings) = settings::<S>(&merged, environment, &schema);
    findings.sort();
    problems.extend(findings.into_iter().map(|finding| merged.place(finding)));
    match settings {
        Some(settings) if problems.is_empty() => Ok(Loaded { settings, merged, schema }),
        _ => Err(Problems::new(problems)),
    }
}

/// All layers merged, before they are checked or deserialized.
struct Merged {
    figment: Figment,
    value: Value,
    /// The folder of the configuration file.
    folder: PathBuf,
}

impl Merged {
    fn read<S: Configuration>(
        sources: Sources<'_>,
        environment: &Environment,
        schema: &Schema,
    ) -> Result<(Self, Vec<Problem>), Problem> {
        let mut figment = Figment::new();
        if let Some(defaults) = sources.defaults {
            figment = figment.merge(Layer::yaml("default", defaults)?);
        }
        let file = File::read::<S>(sources.file, environment)?;
        let folder = file.as_ref().map_or_else(PathBuf::new, |file| file.folder().to_owned());
        if let Some(file) = file {
            figment = figment.merge(file.into_layer());
        }
        let (layers, problems) = environment.layers(S::PREFIX, schema, &values(&figment));
        for layer in layers.into_iter().chain(sources.flags.into_iter().map(Layer::flag)) {
            figment = figment.merge(layer);
        }
        let mut value = Value::from(values(&figment));
        value::forget_null(&mut value, Some(schema.root()));
        Ok((Self { figment, value, folder }, problems))
    }

    fn values(&self) -> Dict {
        self.value.as_dict().cloned().unwrap_or_default()
    }

    /// The keys of a top-level map.
    fn names(&self, section: &str) -> BTreeSet<&str> {
        let section = self.value.as_dict().and_then(|sections| sections.get(section));
        section.and_then(Value::as_dict).into_iter().flat_map(Dict::keys).map(String::as_str).collect()
    }

    fn place(&self, finding: Finding) -> Problem {
        let value = value::nearest(&self.value, &finding.path);
        Problem {
            path: finding.path.to_string(),
            message: finding.message,
            source: value.map(|value| origin(&self.figment, value)),
        }
    }
}

fn values(figment: &Figment) -> Dict {
    figment.data().ok().and_then(|mut profiles| profiles.remove(&Profile::Default)).unwrap_or_default()
}

/// Deserializes the merged layers, and returns all problems found in them.
fn settings<S: Configuration>(
    merged: &Merged,
    environment: &Environment,
    schema: &Schema,
) -> (Option<S>, Vec<Finding>) {
    let mut sound = merged.value.clone();
    let mut findings = form::repair(&mut sound, schema);
    let references = References { environment, folder: &merged.folder };
    findings.extend(references.resolve(&mut sound, schema.root(), &Path::root()));
    let settings: S = match sound.deserialize() {
        Ok(settings) => settings,
        Err(error) => {
            let keys: Vec<_> = error.path.iter().map(String::as_str).collect();
            findings.push(Finding { path: Path::of(&keys), message: error.kind.to_string() });
            return (None, findings);
        }
    };
    let mut meant = Findings::default();
    settings.check(&Context { merged, environment }, &mut meant);
    // A value that `repair` or `resolve` has removed as invalid is not also reported as missing.
    let news = |finding: &Finding| !findings.iter().any(|known| known.path.starts_with(&finding.path));
    let meant: Vec<_> = meant.into_iter().filter(news).collect();
    findings.extend(meant);
    (Some(settings), findings)
}
