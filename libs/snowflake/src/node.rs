use std::fmt;
use std::ops::RangeInclusive;

use crate::layout::Layout;

/// Which node made an id: 0 to 1023. Two that run at the same time never share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u16);

/// A number that is not a node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a node id is 0 to {}, not {number}", NodeId::COUNT - 1, number = .0)]
pub struct InvalidNodeId(pub u16);

impl NodeId {
    /// How many node ids there are.
    pub const COUNT: u16 = 1 << Layout::MACHINE_ID_BITS;
    /// All of them.
    pub const ALL: RangeInclusive<Self> = Self(0)..=Self(Self::COUNT - 1);

    /// Its number.
    #[must_use]
    pub fn as_u16(self) -> u16 {
        self.0
    }

    pub(crate) fn from_layout(layout: Layout) -> Self {
        // Ten bits fit into sixteen.
        Self(u16::try_from(layout.machine_id()).unwrap_or_default())
    }
}

impl TryFrom<u16> for NodeId {
    type Error = InvalidNodeId;

    fn try_from(number: u16) -> Result<Self, InvalidNodeId> {
        if number < Self::COUNT { Ok(Self(number)) } else { Err(InvalidNodeId(number)) }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_bits_and_no_more() {
        assert_eq!(NodeId::try_from(1023).map(NodeId::as_u16), Ok(1023));
        let error = NodeId::try_from(1024).unwrap_err();
        assert_eq!(error.to_string(), "a node id is 0 to 1023, not 1024");
    }
}
