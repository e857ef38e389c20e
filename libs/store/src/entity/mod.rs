//! The tables, one module each.

use sea_orm::{EntityTrait, IdenStatic as _, Iterable as _};

pub(crate) mod attempt;
pub(crate) mod delivery;
pub(crate) mod idempotency_key;
pub(crate) mod outbox;
pub(crate) mod request;

/// The columns that this program knows of a table, which stands in a statement under another name or its own. A
/// statement that asks for all columns breaks as soon as the table has one more.
pub(crate) fn columns<E: EntityTrait>(table: &str) -> String {
    E::Column::iter().map(|column| format!("{table}.{}", column.as_str())).collect::<Vec<_>>().join(", ")
}
