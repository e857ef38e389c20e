//! The tables, one module each.

pub(crate) mod attempt;
pub(crate) mod delivery;
pub(crate) mod idempotency_key;
pub(crate) mod node;
pub(crate) mod outbox;
pub(crate) mod request;
