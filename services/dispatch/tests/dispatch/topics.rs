//! Destinations that are Kafka topics.

use bytes::Bytes;
use serde_json::json;
use throughline_kafka::{self as kafka, EmbeddedBroker, Record};
use throughline_lifecycle::Shutdown;
use throughline_messages::{
    AttemptReport, DeadReason, ErrorClass, Failure, Outcome, RequestRecord, TraceContext,
};
use throughline_testkit::Reader;

use crate::world::{DEADLINE, Kafka, has, header, request};

/// The cluster of others.
struct Others {
    broker: EmbeddedBroker,
    settings: kafka::Settings,
}

impl Others {
    fn start() -> Self {
        let broker = EmbeddedBroker::start(1).unwrap();
        broker.create_topics(&["archive"]).unwrap();
        let settings =
            kafka::Settings { bootstrap_servers: broker.bootstrap_servers(), ..kafka::Settings::default() };
        Self { broker, settings }
    }

    /// Waits for the record of a request.
    async fn record(&self, of: &RequestRecord) -> Record {
        let mut reader = Reader::open(&self.settings, "archive").unwrap();
        let id = of.id.to_string();
        reader.find(DEADLINE, |record| has(record, ("ce_id", &id))).await.unwrap()
    }
}

/// Publishes a request with an ordering key, and waits for the first report on it.
async fn attempt(kafka: &Kafka, request: &RequestRecord, body: &'static str) -> AttemptReport {
    kafka.publish(request, Some("user-1"), body).await;
    kafka.heard.report(request.id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_becomes_a_record_of_another_cluster() {
    let others = Others::start();
    let kafka = Kafka::start(&json!({
        "archived": {
            "type": "kafka", "topic": "archive", "bootstrap_servers": others.settings.bootstrap_servers,
            "headers": {"team": "a"}, "filter": "{archived: .}",
        },
    }));
    let _dispatch = kafka.dispatch(Shutdown::new()).await;
    let trace = TraceContext {
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        tracestate: None,
    };
    let request = RequestRecord { trace: Some(trace), ..request("archived") };
    let report = attempt(&kafka, &request, "[1]").await;
    assert_eq!((report.outcome, report.status), (Outcome::Delivered, None));

    let record = others.record(&request).await;
    assert_eq!(
        report.response_excerpt,
        Some(format!("stored at archive/{}/{}", record.partition, record.offset))
    );
    assert_eq!(record.key, Some(Bytes::from_static(b"user-1")));
    assert_eq!(record.payload, r#"{"archived":[1]}"#);
    for (name, value) in [
        ("ce_specversion", "1.0"),
        ("ce_type", "archived"),
        ("content-type", "application/json"),
        ("team", "a"),
    ] {
        assert_eq!(header(&record, name), Some(value), "{name}");
    }
    let trace = header(&record, "traceparent").unwrap();
    assert!(trace.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{trace}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_the_own_cluster_needs_no_address() {
    let kafka = Kafka::start(&json!({"archived": {"type": "kafka", "topic": "archive"}}));
    kafka.broker().create_topics(&["archive"]).unwrap();
    let _dispatch = kafka.dispatch(Shutdown::new()).await;
    let request = request("archived");
    let report = attempt(&kafka, &request, " {} ").await;
    assert_eq!(report.outcome, Outcome::Delivered);
    let settings = kafka::Settings {
        bootstrap_servers: kafka.broker().bootstrap_servers(),
        ..kafka::Settings::default()
    };
    let mut reader = Reader::open(&settings, "archive").unwrap();
    let id = request.id.to_string();
    let record = reader.find(DEADLINE, |record| has(record, ("ce_id", &id))).await.unwrap();
    assert_eq!(record.payload, " {} ");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_cluster_costs_attempts_until_it_returns() {
    let others = Others::start();
    others.broker.down().unwrap();
    let kafka = Kafka::start(&json!({
        "archived": {
            "type": "kafka", "topic": "archive", "bootstrap_servers": others.settings.bootstrap_servers,
            "timeout": "500ms", "retry": {"immediate_retries": 0, "base": "100ms"},
        },
    }));
    let _dispatch = kafka.dispatch(Shutdown::new()).await;
    let request = request("archived");
    let report = attempt(&kafka, &request, "{}").await;
    let Outcome::Retry { due_at: Some(_), failure } = &report.outcome else { panic!("{report:?}") };
    assert_eq!(failure.class, ErrorClass::Timeout, "{failure:?}");
    others.broker.up().unwrap();
    let again = crate::world::request("archived");
    let reports = kafka.see_through(again.clone()).await;
    assert_eq!(reports.last().unwrap().outcome, Outcome::Delivered);
    others.record(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_large_is_rejected() {
    let others = Others::start();
    let kafka = Kafka::start(&json!({
        "archived": {
            "type": "kafka", "topic": "archive", "bootstrap_servers": others.settings.bootstrap_servers,
            "properties": {"message.max.bytes": 1000},
        },
    }));
    let _dispatch = kafka.dispatch(Shutdown::new()).await;
    let large: &'static str = format!("\"{}\"", "x".repeat(2000)).leak();
    let report = attempt(&kafka, &request("archived"), large).await;
    let Outcome::Dead { reason: DeadReason::Rejected, failure: Failure { class, error } } = report.outcome
    else {
        panic!("{report:?}")
    };
    assert_eq!(class, ErrorClass::Broker, "{error}");
    assert!(error.starts_with("Kafka rejected the record"), "{error}");
}
