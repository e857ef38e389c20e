//! Extractors that refuse invalid paths and queries with problem details, and describe their parameters.

use std::collections::BTreeSet;

use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;
use percent_encoding::percent_decode_str;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use throughline_api::{DeliveryPath, ReplayPath, RequestPath};

use super::openapi::{Input, Operation, properties, schema_generator};
use super::problem::Problem;

/// The parameters in a path.
pub(crate) struct Path<T>(pub(crate) T);

/// Parameters in a path, which identify something.
pub(crate) trait PathParameters: DeserializeOwned + JsonSchema + Send {
    /// Returns the problem of a path with an invalid `id`.
    fn problem(id: String) -> Problem;
}

impl PathParameters for RequestPath {
    fn problem(id: String) -> Problem {
        Problem::RequestIdInvalid(id)
    }
}

impl PathParameters for DeliveryPath {
    fn problem(id: String) -> Problem {
        Problem::RequestIdInvalid(id)
    }
}

impl PathParameters for ReplayPath {
    fn problem(_: String) -> Problem {
        Problem::ReplayUnknown
    }
}

impl<S: Send + Sync, T: PathParameters> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let parsed = axum::extract::Path::from_request_parts(parts, state).await;
        if let Ok(axum::extract::Path(parameters)) = parsed {
            return Ok(Self(parameters));
        }
        let raw =
            RawPathParams::from_request_parts(parts, state).await.map_err(|_| Problem::PathUnreadable)?;
        let id = raw.iter().find(|(name, _)| *name == "id").map(|(_, id)| id.to_owned());
        Err(T::problem(id.unwrap_or_default()))
    }
}

impl<T: JsonSchema> Input for Path<T> {
    fn describe(operation: &mut Operation) {
        operation.parameters::<T>("path");
    }
}

/// The parameters of a query, of one or two types. A name that neither of them has is an error, because a misspelt
/// filter must not match everything.
pub(crate) struct Query<T, U = NoMore>(pub(crate) T, pub(crate) U);

/// No more parameters.
#[derive(Deserialize, JsonSchema)]
pub(crate) struct NoMore {}

impl<S, T, U> FromRequestParts<S> for Query<T, U>
where
    S: Send + Sync,
    T: DeserializeOwned + JsonSchema,
    U: DeserializeOwned + JsonSchema,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        check::<T, U>(query).map_err(Problem::QueryInvalid)?;
        Ok(Self(parse(query).map_err(Problem::QueryInvalid)?, parse(query).map_err(Problem::QueryInvalid)?))
    }
}

impl<T: JsonSchema, U: JsonSchema> Input for Query<T, U> {
    fn describe(operation: &mut Operation) {
        operation.parameters::<U>("query");
        operation.parameters::<T>("query");
    }
}

/// Checks that each parameter is known, occurs once, and is a text that PostgreSQL can store.
fn check<T: JsonSchema, U: JsonSchema>(query: &str) -> Result<(), String> {
    let mut unseen = BTreeSet::new();
    for schema in [T::json_schema, U::json_schema] {
        unseen.extend(properties(&schema(&mut schema_generator())).map(|(name, _)| name.clone()));
    }
    let known = unseen.clone();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !known.contains(name.as_ref()) {
            return Err(format!("`{name}` is not a parameter of this operation"));
        }
        if !unseen.remove(name.as_ref()) {
            return Err(format!("`{name}` occurs more than once"));
        }
        if value.contains('\0') {
            return Err(format!("`{name}` contains a NUL character"));
        }
    }
    if percent_decode_str(query).decode_utf8().is_err() {
        return Err("the percent-encoded bytes of the query are not UTF-8".to_owned());
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(query: &str) -> Result<T, String> {
    let pairs = || form_urlencoded::parse(query.as_bytes());
    serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs())).map_err(|error| {
        let name = error.path().to_string();
        let value = pairs().find(|(one, _)| *one == name).map(|(_, value)| value).unwrap_or_default();
        format!("`{name}` {}; received `{value}`", error.inner())
    })
}

#[cfg(test)]
mod tests {
    use throughline_api::{DeadLetterFilter, Page};

    use super::*;

    fn query(query: &str) -> Result<(DeadLetterFilter, Page), String> {
        check::<DeadLetterFilter, Page>(query)?;
        Ok((parse(query)?, parse(query)?))
    }

    #[test]
    fn a_query_is_parsed_into_both_types() {
        let (filter, page) =
            query("route=a%20b&reason=expired&before=2026-01-01T00:00:00Z&limit=500").unwrap();
        assert_eq!(filter.route.as_deref(), Some("a b"));
        assert_eq!(filter.reason.unwrap().as_str(), "expired");
        assert_eq!(filter.before.unwrap().timestamp(), 1_767_225_600);
        assert_eq!((page.limit, page.cursor), (Some(500), None));
        assert_eq!(query("").unwrap(), Default::default());
    }

    #[test]
    fn each_invalid_parameter_is_named_with_what_is_expected() {
        for (sent, expected) in [
            ("destinaton=three", "`destinaton` is not a parameter of this operation"),
            ("route=a&route=b", "`route` occurs more than once"),
            ("route=%00", "`route` contains a NUL character"),
            ("route=%ff", "the percent-encoded bytes of the query are not UTF-8"),
            ("limit=0", "`limit` must be a number from 1 to 500; received `0`"),
            ("limit=many", "`limit` must be a number from 1 to 500; received `many`"),
            ("since=now", "`since` must be a time, for example `2026-01-01T00:00:00Z`; received `now`"),
            (
                "reason=No%20idea",
                "`reason` must be the name of a reason, such as `attempts_exhausted`; received `No idea`",
            ),
            (
                "error_class=",
                "`error_class` must be the name of an error class, such as `timeout`; received ``",
            ),
        ] {
            assert_eq!(query(sent), Err(expected.to_owned()), "{sent}");
        }
    }
}
