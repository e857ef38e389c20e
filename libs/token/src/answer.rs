use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value};

use crate::access_token::AccessToken;
use crate::error::TokenError;

/// The assumed lifetime of a token without `expires_in`: long enough to be worth caching, short enough for the
/// endpoints in use.
const UNSTATED_LIFETIME: Duration = Duration::from_mins(5);

/// The longest accepted lifetime: the limit costs one more request per day, and bounds how long a wrong lifetime has
/// an effect.
const LONGEST_LIFETIME: Duration = Duration::from_hours(24);

/// The codes of the [OAuth
/// registry](https://www.iana.org/assignments/oauth-parameters/oauth-parameters.xhtml#extensions-error), and one that
/// Microsoft added. An endpoint could put any text there, even a secret, so no other codes are passed on.
const CODES: [&str; 17] = [
    "access_denied",
    "insufficient_scope",
    "invalid_client",
    "invalid_dpop_proof",
    "invalid_grant",
    "invalid_request",
    "invalid_resource",
    "invalid_scope",
    "invalid_target",
    "invalid_token",
    "server_error",
    "slow_down",
    "temporarily_unavailable",
    "unauthorized_client",
    "unsupported_grant_type",
    "unsupported_response_type",
    "use_dpop_nonce",
];

/// A token issued by an endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) token: AccessToken,
    /// Counted from the time of the request.
    pub(crate) lifetime: Duration,
}

/// Parses the response of a token endpoint.
pub(crate) fn read(status: StatusCode, body: &[u8]) -> Result<Grant, TokenError> {
    let answer = parse(body);
    if !status.is_success() {
        return Err(TokenError::Refused { status, code: answer.ok().as_ref().and_then(code) });
    }
    let answer = answer?;
    let Some(token) = answer.get("access_token").and_then(Value::as_str) else {
        return Err(match code(&answer) {
            Some(code) => TokenError::Refused { status, code: Some(code) },
            None => TokenError::Malformed("no access_token"),
        });
    };
    if !is_bearer(answer.get("token_type")) {
        return Err(TokenError::NotBearer);
    }
    let token = AccessToken::bearer(token)
        .ok_or(TokenError::Malformed("the access_token is not a valid header value"))?;
    Ok(Grant { token, lifetime: lifetime(answer.get("expires_in")) })
}

fn parse(body: &[u8]) -> Result<Map<String, Value>, TokenError> {
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    match serde_json::from_slice(body) {
        Ok(Value::Object(answer)) => Ok(answer),
        Ok(_) => Err(TokenError::Malformed("not a JSON object")),
        Err(_) => Err(TokenError::Malformed("not JSON")),
    }
}

fn code(answer: &Map<String, Value>) -> Option<&'static str> {
    let answered = answer.get("error")?.as_str()?;
    CODES.into_iter().find(|code| *code == answered)
}

fn is_bearer(token_type: Option<&Value>) -> bool {
    match token_type {
        None | Some(Value::Null) => true,
        Some(token_type) => {
            token_type.as_str().is_some_and(|text| text.trim().eq_ignore_ascii_case("bearer"))
        }
    }
}

fn lifetime(expires_in: Option<&Value>) -> Duration {
    let seconds = match expires_in {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    match seconds.filter(|seconds| seconds.is_finite()) {
        Some(seconds) => Duration::from_secs_f64(seconds.clamp(0.0, LONGEST_LIFETIME.as_secs_f64())),
        None => UNSTATED_LIFETIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(body: &str) -> Result<Grant, TokenError> {
        read(StatusCode::OK, body.as_bytes())
    }

    fn refused(status: StatusCode, body: &str) -> Option<&'static str> {
        match read(status, body.as_bytes()) {
            Err(TokenError::Refused { status: answered, code }) if answered == status => code,
            other => panic!("{other:?} from {status} {body}"),
        }
    }

    #[test]
    fn a_token_is_read_from_a_proper_answer() {
        let grant = granted(r#"{"access_token":"t-1","token_type":"Bearer","expires_in":3600}"#).unwrap();
        assert_eq!(grant.token.authorization(), "Bearer t-1");
        assert_eq!(grant.lifetime, Duration::from_hours(1));
    }

    #[test]
    fn a_lifetime_is_a_number_or_a_string_or_five_minutes() {
        let table = [
            (r#""expires_in":3600"#, 3600.0),
            (r#""expires_in":"3600""#, 3600.0),
            (r#""expires_in":" 3600 ""#, 3600.0),
            (r#""expires_in":3599.5"#, 3599.5),
            (r#""expires_in":"3599.5""#, 3599.5),
            (r#""expires_in":3.6e3"#, 3600.0),
            (r#""expires_in":0"#, 0.0),
            (r#""expires_in":-1"#, 0.0),
            (r#""expires_in":99999999999999999999999999"#, 86400.0),
            (r#""expires_in":1e308"#, 86400.0),
            (r#""expires_in":"NaN""#, 300.0),
            (r#""expires_in":"soon""#, 300.0),
            (r#""expires_in":"""#, 300.0),
            (r#""expires_in":null"#, 300.0),
            (r#""expires_in":true"#, 300.0),
            (r#""expires_in":{}"#, 300.0),
            (r#""other":1"#, 300.0),
        ];
        for (field, seconds) in table {
            let grant = granted(&format!(r#"{{"access_token":"t",{field}}}"#)).unwrap();
            assert_eq!(grant.lifetime, Duration::from_secs_f64(seconds), "{field}");
        }
    }

    #[test]
    fn a_type_is_bearer_in_any_case_or_left_out() {
        for token_type in [r#""Bearer""#, r#""bearer""#, r#""BEARER""#, r#"" bearer ""#, "null"] {
            let body = format!(r#"{{"access_token":"t","token_type":{token_type}}}"#);
            assert!(granted(&body).is_ok(), "{body}");
        }
        for token_type in [r#""mac""#, r#""DPoP""#, r#""""#, "1"] {
            let body = format!(r#"{{"access_token":"t","token_type":{token_type}}}"#);
            assert!(matches!(granted(&body), Err(TokenError::NotBearer)), "{body}");
        }
    }

    #[test]
    fn a_byte_order_mark_white_space_and_repeated_fields_are_accepted() {
        for body in [
            "\u{FEFF}{\"access_token\":\"t\"}",
            "\r\n\t {\"access_token\" : \"t\"}\r\n ",
            "\u{FEFF}\n{\"access_token\":\"x\",\"access_token\":\"t\",\"scope\":[]}\n",
        ] {
            assert_eq!(granted(body).unwrap().token.authorization(), "Bearer t", "{body:?}");
        }
    }

    #[test]
    fn a_response_without_a_token_is_an_error_with_the_reason() {
        for (body, why) in [
            ("", "not JSON"),
            ("<html>", "not JSON"),
            ("access_token=t", "not JSON"),
            ("\"t\"", "not a JSON object"),
            ("{}", "no access_token"),
            (r#"{"access_token":""}"#, "the access_token is not a valid header value"),
            (r#"{"access_token":1}"#, "no access_token"),
            (r#"{"error":"made-up"}"#, "no access_token"),
            (r#"{"access_token":"a\nb"}"#, "the access_token is not a valid header value"),
            (r#"{"access_token":"ä"}"#, "the access_token is not a valid header value"),
        ] {
            assert_eq!(granted(body).unwrap_err(), TokenError::Malformed(why), "{body}");
        }
    }

    #[test]
    fn an_error_code_is_passed_on_only_if_it_is_well_known() {
        let bad = StatusCode::BAD_REQUEST;
        assert_eq!(
            refused(bad, r#"{"error":"invalid_scope","error_description":"s3"}"#),
            Some("invalid_scope")
        );
        for body in [r#"{"error":"s3cr3t"}"#, r#"{"error":{"code":1}}"#, "[]", "", "<html>s3cr3t</html>"] {
            assert_eq!(refused(bad, body), None, "{body}");
        }
        assert_eq!(refused(StatusCode::OK, r#"{"error":"invalid_client"}"#), Some("invalid_client"));
        assert_eq!(refused(bad, r#"{"access_token":"t"}"#), None, "a token that comes with an error is none");
    }
}
