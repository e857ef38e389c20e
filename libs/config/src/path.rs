use std::fmt;

use jsonschema::paths::{Location, LocationSegment};
use serde_json::Value as Json;

/// A place in the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Path(Vec<Segment>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Segment {
    Key(String),
    Index(usize),
}

impl Path {
    pub(crate) fn root() -> Self {
        Self::default()
    }

    pub(crate) fn of(keys: &[&str]) -> Self {
        Self(keys.iter().map(|&key| Segment::Key(key.to_owned())).collect())
    }

    pub(crate) fn key(&self, key: &str) -> Self {
        self.and(Segment::Key(key.to_owned()))
    }

    pub(crate) fn index(&self, index: usize) -> Self {
        self.and(Segment::Index(index))
    }

    /// `rest` below this path, where `root` is. A location takes every number for an index; what is in an
    /// object is a key.
    pub(crate) fn join(&self, rest: &Location, root: &Json) -> Self {
        let (path, _) = rest.iter().fold((self.clone(), Some(root)), |(path, value), segment| {
            let key = match (segment, value) {
                (LocationSegment::Index(index), Some(Json::Array(items))) => {
                    return (path.index(index), items.get(index));
                }
                (LocationSegment::Index(index), _) => index.to_string(),
                (LocationSegment::Property(key), _) => key.into_owned(),
            };
            (path.key(&key), value.and_then(|value| value.get(&key)))
        });
        path
    }

    /// The path to what this one is in.
    pub(crate) fn parent(&self) -> Self {
        Self(self.0.split_last().map_or_else(Vec::new, |(_, before)| before.to_vec()))
    }

    pub(crate) fn starts_with(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.0
    }

    fn and(&self, segment: Segment) -> Self {
        Self(self.0.iter().cloned().chain([segment]).collect())
    }
}

impl fmt::Display for Path {
    /// Like `routes.one.destinations[0]`; a key that is no plain word is put in quotes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) => {
                    let dot = if position == 0 { "" } else { "." };
                    let plain = |c: char| c.is_alphanumeric() || "_-$".contains(c);
                    if !key.is_empty() && key.chars().all(plain) {
                        write!(f, "{dot}{key}")?;
                    } else {
                        write!(f, "{dot}{key:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}
