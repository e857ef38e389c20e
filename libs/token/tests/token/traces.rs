//! What a trace shows of a token request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::trace::{SpanKind, Status, TracerProvider as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tokio::time::Instant;
use tracing::subscriber::DefaultGuard;
use tracing::{Instrument as _, info_span};
use tracing_subscriber::layer::SubscriberExt as _;
use wiremock::ResponseTemplate;

use crate::support::{Endpoint, eventually, pass_until, text, tokens};

#[derive(Debug, Clone, Default)]
struct Exported(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Exported {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

impl Exported {
    fn install(&self) -> DefaultGuard {
        let traces = SdkTracerProvider::builder().with_simple_exporter(self.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(traces.tracer("test"));
        tracing::subscriber::set_default(tracing_subscriber::registry().with(layer))
    }

    /// The ended token requests, by attribute; and how they are named and related.
    fn posts(&self) -> Vec<SpanData> {
        self.0.lock().unwrap().iter().filter(|span| span.name == "POST").cloned().collect()
    }

    fn named(&self, name: &str) -> SpanData {
        self.0.lock().unwrap().iter().find(|span| span.name == name).cloned().unwrap()
    }
}

fn attributes(span: &SpanData) -> BTreeMap<String, String> {
    span.attributes.iter().map(|pair| (pair.key.to_string(), pair.value.to_string())).collect()
}

#[tokio::test]
async fn the_request_is_a_client_span_of_its_first_caller() {
    let exported = Exported::default();
    let _guard = exported.install();
    let (endpoint, tokens) = (Endpoint::granting(3600).await, tokens());
    let url = format!("http://user:hidden@{}/token?key=hidden#hidden", endpoint.server.address());
    let oauth2 = crate::support::oauth2(&url);
    let first = tokens.get(&oauth2).instrument(info_span!("first"));
    let second = tokens.get(&oauth2).instrument(info_span!("second"));
    let (one, other) = futures_util::future::join(first, second).await;
    assert_eq!(text(one), text(other));
    eventually("the span ends", async || exported.posts().len() == 1).await;
    eventually("its parent ends", async || exported.0.lock().unwrap().len() == 3).await;

    let (post, first) = (exported.posts().remove(0), exported.named("first"));
    assert_eq!(post.span_kind, SpanKind::Client);
    assert_eq!(post.status, Status::Unset);
    assert_eq!(post.parent_span_id, first.span_context.span_id());
    assert_eq!(post.span_context.trace_id(), first.span_context.trace_id());
    let attributes = attributes(&post);
    let expected = [
        ("http.request.method", "POST".to_owned()),
        ("http.response.status_code", "200".to_owned()),
        ("server.address", "127.0.0.1".to_owned()),
        ("server.port", endpoint.server.address().port().to_string()),
        ("url.full", format!("http://{}/token", endpoint.server.address())),
    ];
    for (key, value) in expected {
        assert_eq!(attributes.get(key), Some(&value), "{key}");
    }
    assert!(!attributes.contains_key("error.type"));
    assert!(!format!("{post:?}").contains("hidden"));

    let traceparent = format!("00-{}-{}-01", post.span_context.trace_id(), post.span_context.span_id());
    assert_eq!(endpoint.requests().await[0].headers["traceparent"], traceparent);
}

#[tokio::test]
async fn a_renewal_is_a_separate_trace_linked_to_its_cause() {
    let exported = Exported::default();
    let _guard = exported.install();
    let (endpoint, tokens, started) = (Endpoint::granting(3600).await, tokens(), Instant::now());
    let oauth2 = endpoint.oauth2();
    text(tokens.get(&oauth2).await);
    pass_until(started, Duration::from_mins(50)).await;
    text(tokens.get(&oauth2).instrument(info_span!("user")).await);
    eventually("the renewal", async || exported.posts().len() == 2).await;

    let (renewal, user) = (exported.posts().remove(1), exported.named("user"));
    assert_ne!(renewal.span_context.trace_id(), user.span_context.trace_id());
    assert!(!renewal.parent_span_is_remote);
    assert_eq!(renewal.parent_span_id, opentelemetry::trace::SpanId::INVALID);
    let links: Vec<_> = renewal.links.iter().map(|link| link.span_context.span_id()).collect();
    assert_eq!(links, [user.span_context.span_id()]);
    assert!(user.end_time <= renewal.end_time, "no caller waits for a renewal");
}

#[tokio::test]
async fn a_failure_is_recorded_on_the_span() {
    let exported = Exported::default();
    let _guard = exported.install();
    let refusal = ResponseTemplate::new(400).set_body_string(r#"{"error":"invalid_scope"}"#);
    let (endpoint, tokens) = (Endpoint::answering(0, vec![Some(refusal)]).await, tokens());
    tokens.get(&endpoint.oauth2()).await.unwrap_err();
    drop(endpoint);
    eventually("the span ends", async || exported.posts().len() == 1).await;
    let post = exported.posts().remove(0);
    let attributes = attributes(&post);
    assert_eq!(attributes["error.type"], "400");
    assert_eq!(attributes["http.response.status_code"], "400");
    let words = "the token endpoint answered 400 Bad Request (invalid_scope)";
    assert_eq!(post.status, Status::error(words));
}
