use std::fmt;
use std::ops::RangeInclusive;

use crate::layout::Layout;

/// The id of a node, 0 to 1023. Two nodes that run at the same time never share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u16);

/// The number is not a node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a node id must be from 0 to {}, not {number}", NodeId::COUNT - 1, number = .0)]
pub struct InvalidNodeId(pub u16);

impl NodeId {
    /// The number of node ids.
    pub const COUNT: u16 = 1 << Layout::MACHINE_ID_BITS;
    /// All node ids.
    pub const ALL: RangeInclusive<Self> = Self(0)..=Self(Self::COUNT - 1);

    /// Returns its number.
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
    fn a_node_id_has_ten_bits() {
        assert_eq!(NodeId::try_from(1023).map(NodeId::as_u16), Ok(1023));
        let error = NodeId::try_from(1024).unwrap_err();
        assert_eq!(error.to_string(), "a node id must be from 0 to 1023, not 1024");
    }
}
