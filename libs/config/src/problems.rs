use std::fmt;

use crate::path::Path;

/// All problems of a configuration; at least one.
#[derive(Debug)]
pub struct Problems(Vec<Problem>);

/// One problem: its path, and how to fix it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub(crate) path: String,
    pub(crate) message: String,
    pub(crate) source: Option<String>,
}

impl Problems {
    pub(crate) fn new(problems: Vec<Problem>) -> Self {
        Self(problems)
    }

    /// Returns the problems in order.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    /// Prints one line per problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0.as_slice() {
            return only.fmt(f);
        }
        write!(f, "{} problems in the configuration:", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, "  [{source}]"),
            None => Ok(()),
        }
    }
}

/// A problem with its path, before its source is looked up.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub(crate) path: Path,
    pub(crate) message: String,
}

/// The problems that the checks of a configuration's meaning find.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

/// Random keys of this length, in characters, cannot be guessed.
const SHORTEST_KEY: usize = 16;

impl Findings {
    /// Adds a problem: what is wrong with the value at the path, and what to change.
    pub fn add(&mut self, path: Path, message: impl Into<String>) {
        self.0.push(Finding { path, message: message.into() });
    }

    /// Adds a problem unless the value is sound.
    pub fn expect(&mut self, is_sound: bool, path: impl FnOnce() -> Path, message: &str) {
        if !is_sound {
            self.add(path(), message);
        }
    }

    /// Adds a problem unless the value is a key that cannot be guessed.
    pub fn expect_key(&mut self, key: &str, path: impl FnOnce() -> Path) {
        self.expect(
            key.len() >= SHORTEST_KEY && key.bytes().all(|byte| byte.is_ascii_graphic()),
            path,
            "expected at least 16 visible ASCII characters, for example the output of `openssl rand -hex 32`",
        );
    }
}

impl IntoIterator for Findings {
    type Item = Finding;
    type IntoIter = std::vec::IntoIter<Finding>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
