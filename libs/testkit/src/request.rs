use chrono::{DateTime, TimeDelta, Utc};
use throughline_snowflake::RequestId;
use throughline_store::NewRequest;

/// Returns a request accepted at a time, on the route `one`, for the destination `three`, and due for redelivery a
/// quarter of an hour later.
#[must_use]
pub fn new_request(id: RequestId, accepted_at: DateTime<Utc>) -> NewRequest {
    NewRequest {
        id,
        route: "one".to_owned(),
        ordering_key: None,
        ordering_group: None,
        body: "{}".into(),
        content_type: "application/json".to_owned(),
        headers: Vec::new(),
        trace: None,
        client: None,
        origin: None,
        accepted_at,
        destinations: vec!["three".to_owned()],
        due_at: accepted_at + TimeDelta::minutes(15),
    }
}
