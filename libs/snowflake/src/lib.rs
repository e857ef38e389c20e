//! Request ids, their generator, and node ids.

mod generator;
mod id;
mod layout;
mod node;

pub use generator::Generator;
pub use id::{InvalidId, RequestId};
pub use node::{InvalidNodeId, NodeId};
