use std::fmt;

use serde::{Deserialize, Serialize};

/// Maximum length of a name in bytes.
const LONGEST: usize = 32;

/// A name that only a later version knows: text of at most 32 bytes, kept unchanged. It is `Copy`, because the enums
/// that contain it are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Unknown {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Unknown {
    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.length).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl fmt::Debug for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl From<Unknown> for String {
    fn from(name: Unknown) -> Self {
        name.as_str().to_owned()
    }
}

impl TryFrom<String> for Unknown {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.as_str().try_into()
    }
}

impl TryFrom<&str> for Unknown {
    type Error = &'static str;

    fn try_from(name: &str) -> Result<Self, Self::Error> {
        let mut bytes = [0; LONGEST];
        let field = bytes.get_mut(..name.len()).ok_or("must be at most 32 bytes long")?;
        field.copy_from_slice(name.as_bytes());
        Ok(Self { bytes, length: name.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_unchanged_unless_it_is_too_long() {
        for name in ["", "unpaid", &"é".repeat(16)] {
            assert_eq!(Unknown::try_from(name).unwrap().as_str(), name);
        }
        assert!(Unknown::try_from("a".repeat(33)).is_err());
    }
}
