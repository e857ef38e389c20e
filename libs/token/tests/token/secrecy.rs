//! Whatever is printed of tokens and clients, the secrets are not in it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use serde_json::json;
use throughline_config::Secret;
use throughline_token::{Credentials, OAuth2};
use tokio::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use wiremock::ResponseTemplate;

use crate::support::{Endpoint, SECRET, eventually, pass_until, tokens};

const TOKEN: &str = "tok3n-of-the-client";
const PARAMETER: &str = "p4rameter-of-the-client";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn assert_discreet(text: &str) {
    let basic = base64::prelude::BASE64_STANDARD.encode(format!("client:{SECRET}"));
    for secret in [TOKEN, SECRET, PARAMETER, &basic] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
}

#[tokio::test]
async fn no_secret_is_logged_or_displayed() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let granted = json!({"access_token": TOKEN, "expires_in": 60});
    // An endpoint that repeats what it was sent, where an error code should be and elsewhere.
    let refused = json!({"error": SECRET, "error_description": format!("{SECRET} {PARAMETER}")});
    let answers = vec![
        Some(ResponseTemplate::new(200).set_body_json(granted)),
        Some(ResponseTemplate::new(400).set_body_json(refused)),
    ];
    for credentials in [Credentials::Basic, Credentials::Body] {
        let endpoint = Endpoint::answering(60, answers.clone()).await;
        let parameters = BTreeMap::from([("key".to_owned(), Secret::from(PARAMETER))]);
        let oauth2 = OAuth2 { credentials, parameters, ..endpoint.oauth2() };
        let (tokens, started) = (tokens(), Instant::now());
        let token = tokens.get(&oauth2).await.unwrap();
        assert_discreet(&format!("{token:?} {:?} {tokens:?} {oauth2:?}", token.authorization()));

        pass_until(started, Duration::from_secs(49)).await;
        tokens.get(&oauth2).await.unwrap();
        eventually("a renewal fails", async || log.text().contains("token.renewal_failed")).await;
        tokens.discard(&oauth2, &token).await;
        let error = tokens.get(&oauth2).await.unwrap_err();
        assert_discreet(&format!("{error} {error:?}"));
        log.0.lock().unwrap().extend_from_slice(b"\n");
        assert_discreet(&log.text());
        log.0.lock().unwrap().clear();
    }
}
