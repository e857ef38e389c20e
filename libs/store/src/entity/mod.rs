//! The tables, one module each.

use sea_orm::{EntityTrait, IdenStatic as _, Iterable as _};

pub(crate) mod attempt;
pub(crate) mod delivery;
pub(crate) mod idempotency_key;
pub(crate) mod outbox;
pub(crate) mod request;

/// Returns the columns of a table that this program knows, qualified with the table's name or alias in the statement. A
/// statement that selects all columns fails as soon as the table gets another one.
pub(crate) fn columns<E: EntityTrait>(table: &str) -> String {
    E::Column::iter().map(|column| format!("{table}.{}", column.as_str())).collect::<Vec<_>>().join(", ")
}
