use std::time::Duration;

use http::StatusCode;
use throughline_token::{AccessToken, OAuth2, TokenError};
use tokio::net::TcpListener;
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::{Endpoint, Gate, oauth2, text, tokens};

const GRANTED: &str = r#"{"access_token":"t","expires_in":3600}"#;

async fn answered(answer: ResponseTemplate) -> Result<AccessToken, TokenError> {
    let endpoint = Endpoint::answering(0, vec![Some(answer)]).await;
    tokens().get(&endpoint.oauth2()).await
}

#[tokio::test]
async fn the_content_type_of_an_answer_does_not_matter() {
    for content_type in ["application/json", "text/plain", "text/html; charset=utf-16", "nonsense"] {
        let answer = ResponseTemplate::new(200).set_body_raw(GRANTED, content_type);
        assert_eq!(text(answered(answer).await), "t", "{content_type}");
    }
    assert_eq!(text(answered(ResponseTemplate::new(201).set_body_bytes(GRANTED)).await), "t");
}

#[tokio::test]
async fn a_refusal_reports_only_status_and_code() {
    let answer = ResponseTemplate::new(401)
        .set_body_string(r#"{"error":"invalid_client","error_description":"s3cr3t is wrong"}"#);
    let error = answered(answer).await.unwrap_err();
    let code = Some("invalid_client");
    assert_eq!(error, TokenError::Refused { status: StatusCode::UNAUTHORIZED, code });
    assert!(!format!("{error} {error:?}").contains("s3cr3t"));
}

#[tokio::test]
async fn an_answer_beyond_64_kib_is_not_read() {
    let padded = |length: usize| {
        ResponseTemplate::new(200).set_body_string(GRANTED.to_owned() + &" ".repeat(length - GRANTED.len()))
    };
    assert_eq!(text(answered(padded(64 * 1024)).await), "t");
    assert_eq!(answered(padded(64 * 1024 + 1)).await.unwrap_err(), TokenError::TooLong(64 * 1024));
    let long = ResponseTemplate::new(500).set_body_string(" ".repeat(100_000));
    let (status, code) = (StatusCode::INTERNAL_SERVER_ERROR, None);
    assert_eq!(answered(long).await.unwrap_err(), TokenError::Refused { status, code });
}

#[tokio::test]
async fn a_redirect_is_a_refusal() {
    let server = MockServer::start().await;
    let elsewhere = ResponseTemplate::new(307).insert_header("location", "/elsewhere");
    Mock::given(path("/token")).respond_with(elsewhere).mount(&server).await;
    let error = tokens().get(&oauth2(&format!("{}/token", server.uri()))).await.unwrap_err();
    let (status, code) = (StatusCode::TEMPORARY_REDIRECT, None);
    assert_eq!(error, TokenError::Refused { status, code });
    assert_eq!(server.received_requests().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_endpoint_that_does_not_respond_fails_after_the_timeout() {
    let ((mut gate, oauth2), tokens) = (Gate::shut().await, tokens());
    let limit = Duration::from_secs(7);
    let hasty = OAuth2 { timeout: limit, ..oauth2 };
    let waiting = tokens.get(&hasty);
    let silence = async {
        gate.arrival().await;
        // Nothing is left but to wait, so time leaps to the time-out.
        tokio::time::pause();
    };
    let (got, ()) = futures_util::future::join(waiting, silence).await;
    assert_eq!(got.unwrap_err(), TokenError::Timeout(limit));
}

#[tokio::test]
async fn an_endpoint_that_is_down_or_closes_the_connection_is_reported_without_its_url() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = oauth2(&format!("http://user:hidden@{address}/token?key=hidden"));
    let hang_up = async { drop(listener.accept().await.unwrap()) };
    let (first, second) = (tokens(), tokens());
    let (got, ()) = futures_util::future::join(first.get(&asked), hang_up).await;
    let broken = got.unwrap_err();
    assert!(matches!(broken, TokenError::Transport(_)), "{broken}");
    drop(listener);
    let down = second.get(&asked).await.unwrap_err();
    assert!(matches!(&down, TokenError::Connect(why) if why.contains("refused")), "{down}");
    assert!(!format!("{broken} {broken:?} {down} {down:?}").contains("hidden"));
}
