//! After a panic, dispatch processes the record once more; other records are not affected.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;
use throughline_dispatch::Dispatch;
use throughline_lifecycle::Shutdown;
use throughline_messages::{DeadReason, ErrorClass, Outcome, name};
use tracing::Subscriber;
use tracing::span::{Attributes, Id};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::world::{Kafka, header, of_route, request};

/// The span of a record, and the one of a call in it.
const RECORD: &str = "process";
const CALL: &str = "call";

/// Panics when a span of this name begins, as often as `left` says.
struct Defect {
    span: &'static str,
    left: AtomicU32,
}

impl<S: Subscriber> Layer<S> for Defect {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        let is_left = |left: u32| left.checked_sub(1);
        if attributes.metadata().name() == self.span
            && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, is_left).is_ok()
        {
            panic!("a defect");
        }
    }
}

/// A dispatch with a defect. All its tasks run on the single thread of the test.
struct Defective {
    third: MockServer,
    kafka: Kafka,
    shutdown: Shutdown,
    _dispatch: Dispatch,
    _defect: DefaultGuard,
}

impl Defective {
    async fn start(span: &'static str, times: u32) -> Self {
        let defect = tracing_subscriber::registry().with(Defect { span, left: times.into() });
        let defect = tracing::subscriber::set_default(defect);
        let third = MockServer::start().await;
        Mock::given(any()).respond_with(ResponseTemplate::new(200)).mount(&third).await;
        let kafka = Kafka::start(&json!({"one": {"url": third.uri()}}));
        let shutdown = Shutdown::new();
        let dispatch = kafka.dispatch(shutdown.clone()).await;
        Self { third, kafka, shutdown, _dispatch: dispatch, _defect: defect }
    }

    /// Publishes a request that must be delivered by the first attempt.
    async fn delivers(&self) {
        let request = request("one");
        self.kafka.publish(&request, None, "{}").await;
        let report = self.kafka.heard.report(request.id).await;
        assert_eq!((report.outcome, report.attempt), (Outcome::Delivered, 1));
    }

    async fn calls(&self) -> usize {
        self.third.received_requests().await.unwrap().len()
    }
}

impl Drop for Defective {
    fn drop(&mut self) {
        self.shutdown.force();
    }
}

#[tokio::test]
async fn a_record_at_which_dispatch_panics_once_is_delivered_once() {
    for span in [RECORD, CALL] {
        let world = Defective::start(span, 1).await;
        world.delivers().await;
        assert_eq!(world.calls().await, 1, "{span}");
    }
}

#[tokio::test]
async fn a_record_at_which_dispatch_panics_twice_becomes_a_dead_letter_and_the_next_is_delivered() {
    let world = Defective::start(RECORD, 2).await;
    let request = request("one");
    world.kafka.publish(&request, None, "its body").await;
    let (letters, id) = (&world.kafka.topics.dead_letters, request.id.to_string());
    let letter = world.kafka.heard.record(letters, (name::CE_ID, &id)).await;
    assert_eq!((header(&letter, name::REASON), &letter.payload[..]), (Some("internal"), &b"its body"[..]));
    assert_eq!(header(&letter, name::ERROR), Some("dispatch panicked twice: a defect"));
    let report = world.kafka.heard.report(request.id).await;
    let Outcome::Dead { reason, failure } = report.outcome else { panic!("has not ended dead") };
    assert_eq!((reason, failure.class, report.called), (DeadReason::Internal, ErrorClass::Internal, false));
    world.delivers().await;
    assert_eq!(world.calls().await, 1);
}

/// Its headers prove nothing: they must not end the delivery that they name.
#[tokio::test]
async fn an_unsigned_record_at_which_dispatch_panics_twice_becomes_a_dead_letter_and_ends_no_delivery() {
    let world = Defective::start(RECORD, 2).await;
    let request = request("one");
    world.kafka.produce("one-requests", None, of_route(&request).to_headers(), "its body").await;
    let (letters, id) = (&world.kafka.topics.dead_letters, request.id.to_string());
    let letter = world.kafka.heard.record(letters, (name::CE_ID, &id)).await;
    assert_eq!((header(&letter, name::REASON), &letter.payload[..]), (Some("internal"), &b"its body"[..]));
    // The outcome of a later record comes after those of earlier ones.
    world.delivers().await;
    let reported = world.kafka.heard.wait_for(|records| {
        Some(world.kafka.heard.reports_in(records).any(|report| report.request_id == request.id))
    });
    assert!(!reported.await);
}

#[tokio::test]
async fn a_delivery_at_which_dispatch_panics_twice_is_reported_dead_and_the_next_is_delivered() {
    let world = Defective::start(CALL, 2).await;
    let request = request("one");
    world.kafka.publish(&request, None, "{}").await;
    let report = world.kafka.heard.report(request.id).await;
    let Outcome::Dead { reason, failure } = report.outcome else { panic!("has not ended dead") };
    assert_eq!((reason, failure.class), (DeadReason::Internal, ErrorClass::Internal));
    assert_eq!((failure.error.as_str(), report.called), ("dispatch panicked twice: a defect", false));
    world.delivers().await;
    assert_eq!(world.calls().await, 1);
}
