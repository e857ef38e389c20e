//! Checks a payload before it is stored: unless the route accepts any content, it must be JSON, match the route's
//! schema, and have a valid ordering key.

use bytes::Bytes;
use http::HeaderValue;
use serde::de::IgnoredAny;
use serde_json::Value;
use throughline_api::Violation;
use throughline_settings::{Content, Route};

use super::AcceptError;
use crate::error::StartError;

/// The compiled requirements of a route for payloads.
#[derive(Debug)]
pub(super) struct Check {
    content: Content,
    schema: Option<jsonschema::Validator>,
    ordering_key: Option<String>,
}

/// The route does not accept the media type; holds the content that it accepts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnsupportedMediaType(pub(crate) Content);

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
            content: route.content,
            schema: route.schema.as_ref().map(|schema| compile(schema.document())).transpose()?,
            ordering_key: route.ordering_key.clone(),
        })
    }

    /// Returns the media type of a payload whose sender declares this one, as declared, or the default if the sender
    /// declares none and the route accepts any content.
    ///
    /// # Errors
    /// If the route accepts JSON, and this is not its media type: `application/json`, or one that ends in `+json`
    /// (RFC 6839). Or if it is not a media type at all.
    pub(super) fn media_type(&self, declared: Option<&str>) -> Result<String, UnsupportedMediaType> {
        let unsupported = UnsupportedMediaType(self.content);
        let Some(declared) = declared else {
            return if self.content == Content::Any {
                Ok(self.default_media_type())
            } else {
                Err(unsupported)
            };
        };
        let essence = declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let Some((kind, subtype)) = essence.split_once('/') else { return Err(unsupported) };
        let is_accepted = match self.content {
            Content::Json => essence == "application/json" || subtype.ends_with("+json"),
            Content::Any => is_token(kind) && is_token(subtype),
        };
        if is_accepted { Ok(declared.to_owned()) } else { Err(unsupported) }
    }

    /// Returns the media type of a payload whose sender may declare any: the declared one, if HTTP can carry it to a
    /// third party, or else the default.
    pub(super) fn media_type_or_default(&self, declared: Option<&str>) -> String {
        let declared = declared.filter(|declared| HeaderValue::from_str(declared).is_ok());
        declared.map_or_else(|| self.default_media_type(), str::to_owned)
    }

    fn default_media_type(&self) -> String {
        let default = match self.content {
            Content::Json => "application/json",
            Content::Any => "application/octet-stream",
        };
        default.to_owned()
    }

    /// Checks a payload and returns its ordering key.
    ///
    /// The payload itself is never rewritten. It is parsed into a tree only if the route needs its content.
    pub(super) fn payload(&self, body: &Bytes) -> Result<Option<String>, AcceptError> {
        match self.content {
            Content::Json => self.json(body),
            Content::Any => Ok(None),
        }
    }

    fn json(&self, body: &Bytes) -> Result<Option<String>, AcceptError> {
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

/// Returns whether this is a token (RFC 9110, 5.6.2).
fn is_token(text: &str) -> bool {
    let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token_byte)
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
            content: Content::Json,
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
            assert_eq!(open.media_type(Some(sent)), Err(UnsupportedMediaType(Content::Json)), "{sent}");
        }
        assert_eq!(open.media_type(None), Err(UnsupportedMediaType(Content::Json)));
    }

    #[test]
    fn a_route_for_any_content_accepts_every_media_type_and_payload() {
        let any = Check { content: Content::Any, ..requirements(None, None) };
        for sent in ["application/json", "text/csv; charset=utf-8", "Image/PNG", "application/vnd.a.b+xml"] {
            assert_eq!(any.media_type(Some(sent)).as_deref(), Ok(sent));
        }
        assert_eq!(any.media_type(None).as_deref(), Ok("application/octet-stream"));
        for sent in ["", "text", "/", "text/", "/csv", "text/c sv", "text/c,sv", ";a/b"] {
            assert_eq!(any.media_type(Some(sent)), Err(UnsupportedMediaType(Content::Any)), "{sent}");
        }
        for payload in [&b""[..], b"\xff\0", b"{}", b"a,b\r\n"] {
            assert_eq!(any.payload(&Bytes::from_static(payload)), Ok(None));
        }
    }

    #[test]
    fn a_default_replaces_a_media_type_that_http_cannot_carry() {
        for (content, default) in
            [(Content::Json, "application/json"), (Content::Any, "application/octet-stream")]
        {
            let check = Check { content, ..requirements(None, None) };
            for declared in [None, Some("text/plain\n"), Some("a\u{1}b")] {
                assert_eq!(check.media_type_or_default(declared), default, "{declared:?}");
            }
            assert_eq!(check.media_type_or_default(Some("text/plain")), "text/plain");
        }
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
