use std::collections::BTreeMap;

use throughline_config::Secret;
use throughline_token::{Credentials, OAuth2};
use wiremock::matchers::{body_string, header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::support::{oauth2, text, tokens};

/// A request with these credentials in `Authorization`, or none, and this body gets a token.
async fn assert_sent(oauth2: impl FnOnce(OAuth2) -> OAuth2, authorization: Option<&str>, body: &str) {
    let server = MockServer::start().await;
    let granted = ResponseTemplate::new(200).set_body_string(r#"{"access_token":"t"}"#);
    let mock = Mock::given(method("POST"))
        .and(path("/token"))
        .and(header("content-type", "application/x-www-form-urlencoded"))
        .and(header("accept", "application/json"))
        .and(body_string(body));
    mock.respond_with(granted).mount(&server).await;
    let oauth2 = oauth2(self::oauth2(&format!("{}/token", server.uri())));
    let got = tokens().get(&oauth2).await;
    let requests = server.received_requests().await.unwrap();
    assert!(got.is_ok(), "{requests:#?}");
    let sent = requests[0].headers.get("authorization").map(|value| value.to_str().unwrap());
    assert_eq!(sent, authorization);
}

#[tokio::test]
async fn basic_credentials_are_form_urlencoded_before_they_are_joined() {
    let odd = |plain: OAuth2| OAuth2 {
        client_id: "a:b c".to_owned(),
        client_secret: Secret::from("p%ss+wörd&="),
        ..plain
    };
    // base64 of a%3Ab+c:p%25ss%2Bw%C3%B6rd%26%3D
    let authorization = "Basic YSUzQWIrYzpwJTI1c3MlMkJ3JUMzJUI2cmQlMjYlM0Q=";
    assert_sent(odd, Some(authorization), "grant_type=client_credentials").await;
}

#[tokio::test]
async fn body_credentials_are_fields_of_the_form() {
    let odd = |plain: OAuth2| OAuth2 {
        client_id: "a:b c".to_owned(),
        client_secret: Secret::from("p%ss&="),
        credentials: Credentials::Body,
        ..plain
    };
    let body = "grant_type=client_credentials&client_id=a%3Ab+c&client_secret=p%25ss%26%3D";
    assert_sent(odd, None, body).await;
}

#[tokio::test]
async fn scope_audience_and_parameters_are_sent_along() {
    let full = |plain: OAuth2| OAuth2 {
        client_secret: Secret::from("x"),
        scope: Some("read write".to_owned()),
        audience: Some("https://api.example/".to_owned()),
        parameters: BTreeMap::from([("resource".to_owned(), Secret::from("a&b"))]),
        ..plain
    };
    let body = "grant_type=client_credentials&scope=read+write\
                &audience=https%3A%2F%2Fapi.example%2F&resource=a%26b";
    assert_sent(full, Some("Basic Y2xpZW50Ong="), body).await;
}

#[tokio::test]
async fn a_configured_parameter_replaces_a_default_one() {
    let other = |plain: OAuth2| OAuth2 {
        client_secret: Secret::from("x"),
        parameters: BTreeMap::from([("grant_type".to_owned(), Secret::from("urn:x"))]),
        ..plain
    };
    assert_sent(other, Some("Basic Y2xpZW50Ong="), "grant_type=urn%3Ax").await;
}

#[tokio::test]
async fn the_credentials_of_the_client_win_over_those_in_the_url() {
    let server = MockServer::start().await;
    let granted = ResponseTemplate::new(200).set_body_string(r#"{"access_token":"t"}"#);
    Mock::given(header("authorization", "Basic Y2xpZW50Ong=")).respond_with(granted).mount(&server).await;
    let url = format!("http://user:password@{}/token?tenant=1", server.address());
    let with_credentials = OAuth2 { client_secret: Secret::from("x"), ..oauth2(&url) };
    text(tokens().get(&with_credentials).await);
    let requests = server.received_requests().await.unwrap();
    assert_eq!(requests[0].headers.get_all("authorization").iter().count(), 1);
    assert_eq!(requests[0].url.query(), Some("tenant=1"), "the query is part of the endpoint");
}
