use std::fmt;

use jsonschema::paths::{Location, LocationSegment};
use serde_json::Value as Json;

/// A path in the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(Vec<Segment>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Segment {
    Key(String),
    Index(usize),
}

impl Path {
    pub(crate) fn root() -> Self {
        Self::default()
    }

    /// Returns the path of these keys.
    #[must_use]
    pub fn of(keys: &[&str]) -> Self {
        Self(keys.iter().map(|&key| Segment::Key(key.to_owned())).collect())
    }

    /// Returns the path of a key below this one.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.and(Segment::Key(key.to_owned()))
    }

    /// Returns the path of a list item below this one.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.and(Segment::Index(index))
    }

    /// Appends `rest` to this path, which leads to `root`. A [`Location`] reports every numeric segment as an index;
    /// inside an object it is a key.
    #[must_use]
    pub fn join(&self, rest: &Location, root: &Json) -> Self {
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

    /// Returns the path of the enclosing value.
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
    /// Formats the path as in `routes.one.destinations[0]`; a key with other characters than letters, digits, `_`,
    /// `-` and `$` is quoted.
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
