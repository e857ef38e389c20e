//! The sources of values, each a layer on top of the previous one.

use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};

use crate::environment::Environment;
use crate::load::{Configuration, FlagValue};
use crate::problems::Problem;
use crate::yaml;

/// The values of one source.
pub(crate) struct Layer {
    pub(crate) origin: String,
    pub(crate) values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

impl Layer {
    pub(crate) fn yaml(origin: &str, text: &str) -> Result<Self, Problem> {
        let problem = |message| Problem { path: String::new(), message, source: Some(origin.to_owned()) };
        let value = yaml::read(text).map_err(|error| problem(format!("not YAML: {error}")))?;
        let mut values = match value {
            Value::Dict(_, values) => values,
            Value::Empty(..) => Dict::new(),
            // The value is not quoted: the file may be of another kind and contain secrets.
            _ => return Err(problem("expected a mapping, such as `routes: …`".to_owned())),
        };
        // A section with all its keys commented out is null, and counts as absent.
        values.retain(|_, value| !matches!(value, Value::Empty(..)));
        Ok(Self { origin: origin.to_owned(), values })
    }

    /// Makes a layer of a single value.
    pub(crate) fn of<'k>(
        origin: String,
        keys: impl IntoIterator<Item = &'k str, IntoIter: DoubleEndedIterator>,
        value: Value,
    ) -> Self {
        let nest = |inner: Value, key: &str| Value::from(Dict::from([(key.to_owned(), inner)]));
        let values = match keys.into_iter().rev().fold(value, nest) {
            Value::Dict(_, values) => values,
            _ => Dict::new(),
        };
        Self { origin, values }
    }

    pub(crate) fn flag(FlagValue { flag, keys, value }: FlagValue) -> Self {
        Self::of(flag.to_owned(), keys.iter().copied(), Value::from(value))
    }
}

/// The configuration file.
pub(crate) struct File {
    path: PathBuf,
    layer: Layer,
}

impl File {
    /// Reads the file that the flag or the environment names, or the default file if it exists.
    pub(crate) fn read<S: Configuration>(
        by_flag: Option<PathBuf>,
        environment: &Environment,
    ) -> Result<Option<Self>, Problem> {
        let variable = format!("{}CONFIG", S::PREFIX);
        let named = match by_flag {
            Some(path) => Some((path, "--config")),
            None => environment.path(&variable).map(|path| (path, variable.as_str())),
        };
        let (path, named_by) = match named {
            Some((path, named_by)) => (path, Some(named_by)),
            None => (PathBuf::from(S::FILE), None),
        };
        let origin = path.display().to_string();
        match std::fs::read_to_string(&path) {
            Ok(text) => Layer::yaml(&origin, &text).map(|layer| Some(Self { path, layer })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named_by.is_none() => Ok(None),
            Err(error) => Err(Problem {
                path: String::new(),
                message: format!("cannot read {origin}: {error}"),
                source: named_by.map(str::to_owned),
            }),
        }
    }

    /// The folder that paths in the configuration are relative to.
    pub(crate) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    pub(crate) fn into_layer(self) -> Layer {
        self.layer
    }
}
