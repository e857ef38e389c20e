//! The key of a delivery.

use sea_orm::{DbErr, FromQueryResult, QueryResult};
use throughline_snowflake::RequestId;

use crate::rows::Rows;

/// The request and the destination of a delivery: the primary key of its row. Ordered by request, then destination.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryKey {
    /// The request.
    pub request_id: RequestId,
    /// The name of the destination.
    pub destination: String,
}

impl DeliveryKey {
    /// Creates the key of a request's delivery to a destination.
    #[must_use]
    pub fn new(request_id: RequestId, destination: impl Into<String>) -> Self {
        Self { request_id, destination: destination.into() }
    }

    /// Returns keys as a table of a statement.
    pub(crate) fn rows(keys: &[Self]) -> Rows<'_, Self> {
        Rows::of(keys)
            .column("request_id", |key| key.request_id)
            .column("destination", |key| key.destination.as_str())
    }
}

impl FromQueryResult for DeliveryKey {
    fn from_query_result(row: &QueryResult, prefix: &str) -> Result<Self, DbErr> {
        let request_id: i64 = row.try_get(prefix, "request_id")?;
        let request_id = RequestId::from_i64(request_id).map_err(|error| DbErr::Type(error.to_string()))?;
        Ok(Self::new(request_id, row.try_get::<String>(prefix, "destination")?))
    }
}
