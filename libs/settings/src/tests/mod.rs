mod destinations;
mod document;
mod environment;
mod loading;
mod problems;
mod references;
mod resilience;
mod showing;

use std::path::PathBuf;

use throughline_config::{Environment, Problems};

use throughline_destination::{Kind, Settings, http};

use crate::{Flags, Loaded, load_in};

/// The minimal configuration.
const LEAST: &str = "
kafka: {bootstrap_servers: 'localhost:9092'}
routes:
  one: {path: /one, topic: one-request-local, destinations: [three]}
destinations:
  three: {url: 'https://api.example.com/three'}
";

/// A folder with a configuration file, and the layers above the file.
struct Case {
    folder: tempfile::TempDir,
    flags: Flags,
    defaults: Option<&'static str>,
    environment: Environment,
}

impl Case {
    fn file(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("throughline.yaml");
        std::fs::write(&file, text).unwrap();
        let flags = Flags { config: Some(file), ..Flags::default() };
        Self { folder, flags, defaults: None, environment: Environment::default() }
    }

    /// Over the least.
    fn over(text: &str) -> Self {
        Self { defaults: Some(LEAST), ..Self::file(text) }
    }

    fn environment(self, variables: &[(&str, &str)]) -> Self {
        Self { environment: Environment::new(variables), ..self }
    }

    fn with_file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.folder.path().join(name), text).unwrap();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn load(&self) -> Result<Loaded, Problems> {
        load_in(&self.flags, self.defaults, &self.environment)
    }

    fn loaded(&self) -> Loaded {
        self.load().unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// The problems, a line each; of the file only its name.
    fn problems(&self) -> Vec<String> {
        let folder = format!("{}/", self.folder.path().display());
        let problems = self.load().expect_err("problems");
        problems.iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
    }
}

/// Returns the settings of a destination of the kind `http`.
#[track_caller]
fn http(destination: &Settings) -> http::Settings {
    match &destination.kind {
        Kind::Http(http) => http.as_ref().clone(),
        Kind::Kafka(other) => panic!("{other:?}"),
    }
}

/// That exactly these problems are reported, in any order.
#[track_caller]
fn assert_problems(case: &Case, expected: &[impl AsRef<str>]) {
    let mut problems = case.problems();
    let mut expected: Vec<_> = expected.iter().map(|problem| problem.as_ref().to_owned()).collect();
    problems.sort();
    expected.sort();
    assert_eq!(problems, expected, "{problems:#?}");
}
