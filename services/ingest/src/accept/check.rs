//! Checks a payload before it is stored: it must be JSON, match its route's schema, and have a valid ordering key.

use bytes::Bytes;
use http::HeaderValue;
use serde::de::IgnoredAny;
use serde_json::Value;
use throughline_settings::Route;

use super::AcceptError;
use crate::error::StartError;

/// The compiled requirements of a route for payloads.
#[derive(Debug)]
pub(super) struct Check {
    schema: Option<jsonschema::Validator>,
    ordering_key: Option<String>,
}

/// The route does not accept the media type.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnsupportedMediaType;

/// A position in the body that violates the route's requirements, and the reason.
#[derive(Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub(crate) struct Violation {
    /// JSON pointer (RFC 6901) to the position.
    pub(crate) pointer: String,
    /// Description of the violation.
    pub(crate) detail: String,
}

/// Maximum length of an ordering key, in characters: as long as an `Idempotency-Key`, and far below PostgreSQL's limit
/// for an index row (2,704 bytes), which must also hold the names of route and destination.
pub(crate) const LONGEST_ORDERING_KEY: usize = 255;

/// Maximum number of violations listed for a body: enough to correct it, too few to flood an answer.
const MOST_VIOLATIONS: usize = 20;

impl Check {
    /// # Errors
    /// If the route's schema does not compile.
    pub(super) fn new(name: &str, route: &Route) -> Result<Self, StartError> {
        let compile = |schema| {
            jsonschema::validator_for(schema)
                .map_err(|error| StartError::Schema { route: name.to_owned(), problem: error.to_string() })
        };
        Ok(Self {
            schema: route.schema.as_ref().map(|schema| compile(schema.document())).transpose()?,
            ordering_key: route.ordering_key.clone(),
        })
    }

    /// Returns the media type of a payload whose sender declares this one, as declared.
    ///
    /// # Errors
    /// If it is not the media type of JSON: `application/json`, or one that ends in `+json` (RFC 6839).
    pub(super) fn media_type(&self, declared: Option<&str>) -> Result<String, UnsupportedMediaType> {
        let text = declared.unwrap_or_default();
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let is_json = essence == "application/json" || (essence.contains('/') && essence.ends_with("+json"));
        if is_json { Ok(text.to_owned()) } else { Err(UnsupportedMediaType) }
    }

    /// Returns the media type of a payload whose sender may declare any: the declared one, if HTTP can carry it to a
    /// third party.
    pub(super) fn media_type_or_default(&self, declared: Option<&str>) -> String {
        let declared = declared.filter(|declared| HeaderValue::from_str(declared).is_ok());
        declared.unwrap_or("application/json").to_owned()
    }

    /// Checks a payload and returns its ordering key.
    ///
    /// The payload itself is never rewritten. It is parsed into a tree only if the route needs its content.
    pub(super) fn payload(&self, body: &Bytes) -> Result<Option<String>, AcceptError> {
        let text =
            std::str::from_utf8(body).map_err(|error| AcceptError::NotJson(format!("not UTF-8: {error}")))?;
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| AcceptError::NotJson(error.to_string()))?;
        if self.schema.is_none() && self.ordering_key.is_none() {
            return Ok(None);
        }
        // Valid JSON may still be more than a tree can hold: 1e400, or ten thousand nested arrays.
        let tree = serde_json::from_str::<Value>(text)
            .map_err(|error| violation("", format!("cannot be checked: {error}")))?;
        self.check_schema(&tree)?;
        self.find_ordering_key(&tree)
    }

    fn check_schema(&self, tree: &Value) -> Result<(), AcceptError> {
        let Some(schema) = &self.schema else { return Ok(()) };
        let violations: Vec<_> = schema
            .iter_errors(tree)
            .take(MOST_VIOLATIONS)
            .map(|error| Violation {
                pointer: error.instance_path().to_string(),
                detail: error.masked().to_string(),
            })
            .collect();
        if violations.is_empty() { Ok(()) } else { Err(AcceptError::Violation(violations)) }
    }

    fn find_ordering_key(&self, tree: &Value) -> Result<Option<String>, AcceptError> {
        let Some(pointer) = &self.ordering_key else { return Ok(None) };
        let key = match tree.pointer(pointer) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(key)) => key.clone(),
            Some(key @ (Value::Number(_) | Value::Bool(_))) => key.to_string(),
            Some(Value::Array(_) | Value::Object(_)) => {
                let detail = "the ordering key must be a string, a number or a boolean";
                return Err(violation(pointer, detail.to_owned()));
            }
        };
        if key.chars().count() > LONGEST_ORDERING_KEY {
            let detail = format!("the ordering key must have at most {LONGEST_ORDERING_KEY} characters");
            return Err(violation(pointer, detail));
        }
        Ok(Some(key))
    }
}

fn violation(pointer: &str, detail: String) -> AcceptError {
    AcceptError::Violation(vec![Violation { pointer: pointer.to_owned(), detail }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn requirements(schema: Option<Value>, ordering_key: Option<&str>) -> Check {
        Check {
            schema: schema.map(|schema| jsonschema::validator_for(&schema).unwrap()),
            ordering_key: ordering_key.map(str::to_owned),
        }
    }

    fn check(check: &Check, body: &str) -> Result<Option<String>, AcceptError> {
        check.payload(&Bytes::copy_from_slice(body.as_bytes()))
    }

    #[test]
    fn any_json_is_accepted_without_schema_and_ordering_key() {
        let open = requirements(None, None);
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        for body in
            ["{}", " [1e400, 1.0, -0] ", r#"{"a":1,"a":2}"#, r#""\ud83d\ude00""#, "null", "\n\t1\r\n", &deep]
        {
            assert_eq!(check(&open, body), Ok(None), "{}", &body[..body.len().min(40)]);
        }
    }

    #[test]
    fn json_media_types_are_accepted_and_kept_as_sent() {
        let open = requirements(None, None);
        for sent in ["application/json", "Application/JSON; charset=utf-8", "application/cloudevents+json"] {
            assert_eq!(open.media_type(Some(sent)).as_deref(), Ok(sent));
        }
        for sent in
            ["", "text/plain", "text/json", "application/jsonp", "+json", "application/x-www-form-urlencoded"]
        {
            assert_eq!(open.media_type(Some(sent)), Err(UnsupportedMediaType), "{sent}");
        }
        assert_eq!(open.media_type(None), Err(UnsupportedMediaType));
    }

    #[test]
    fn invalid_json_is_rejected_with_its_position() {
        let open = requirements(None, None);
        for body in ["", "{", "{'a':1}", "[1,]", "01", "{} {}", "\u{feff}{}", "nul", "\"\t\""] {
            assert!(matches!(check(&open, body), Err(AcceptError::NotJson(_))), "{body:?}");
        }
        let Err(AcceptError::NotJson(detail)) = check(&open, "{\"a\":\n tru}") else { panic!() };
        assert!(detail.contains("line 2"), "{detail}");
        let not_utf8 = open.payload(&Bytes::from_static(b"\"\xff\""));
        assert!(matches!(not_utf8, Err(AcceptError::NotJson(_))));
    }

    #[test]
    fn every_violation_of_the_schema_is_reported_with_its_pointer_and_without_the_value() {
        let schema =
            json!({"type": "object", "required": ["id"], "properties": {"age": {"type": "integer"}}});
        let Err(AcceptError::Violation(violations)) =
            check(&requirements(Some(schema), None), r#"{"age":"s3cret"}"#)
        else {
            panic!()
        };
        let pointers: Vec<_> = violations.iter().map(|v| v.pointer.as_str()).collect();
        assert_eq!(pointers.len(), 2);
        assert!(pointers.contains(&"/age") && pointers.contains(&""), "{pointers:?}");
        assert!(violations.iter().all(|v| !v.detail.contains("s3cret")), "{violations:?}");
    }

    #[test]
    fn json_beyond_the_limits_of_a_tree_is_rejected_only_if_a_tree_is_needed() {
        let keyed = requirements(None, Some("/user"));
        let Err(AcceptError::Violation(violations)) = check(&keyed, r#"{"user":"u","n":1e400}"#) else {
            panic!()
        };
        assert!(violations[0].detail.contains("cannot be checked"), "{violations:?}");
    }

    #[test]
    fn the_ordering_key_is_a_scalar_of_the_body() {
        let keyed = requirements(None, Some("/user/id"));
        assert_eq!(check(&keyed, r#"{"user":{"id":"u-1"}}"#), Ok(Some("u-1".to_owned())));
        assert_eq!(check(&keyed, r#"{"user":{"id":7}}"#), Ok(Some("7".to_owned())));
        assert_eq!(check(&keyed, r#"{"user":{"id":null}}"#), Ok(None));
        assert_eq!(check(&keyed, "[]"), Ok(None));
        assert!(matches!(check(&keyed, r#"{"user":{"id":[]}}"#), Err(AcceptError::Violation(_))));
    }

    /// A longer key might not fit into an index, and the database would refuse the whole batch.
    #[test]
    fn an_ordering_key_has_at_most_255_characters() {
        let keyed = requirements(None, Some("/user"));
        for character in ["x", "\u{1f600}"] {
            let body = |length| format!(r#"{{"user":"{}"}}"#, character.repeat(length));
            assert_eq!(check(&keyed, &body(255)), Ok(Some(character.repeat(255))));
            let Err(AcceptError::Violation(violations)) = check(&keyed, &body(256)) else {
                panic!("{character}")
            };
            assert_eq!(violations[0].pointer, "/user");
            assert!(violations[0].detail.contains("255 characters"), "{violations:?}");
        }
    }
}
