//! Dispatch on Apache Kafka, for behaviour that the embedded broker does not have.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use throughline_lifecycle::Shutdown;
use throughline_messages::Outcome;
use throughline_testkit::{Broker, Environment, Program, eventually};
use wiremock::matchers::path;
use wiremock::{Mock, MockServer, ResponseTemplate};

use crate::world::{DEADLINE, Kafka, request};

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_whose_time_its_topic_refuses_arrives_once_the_topic_accepts_it() {
    if !Environment::engine_or_skip("an outcome with a wrong time").await.unwrap() {
        return;
    }
    let (broker, third) = (Broker::container().await.unwrap(), MockServer::start().await);
    Mock::given(wiremock::matchers::any()).respond_with(ResponseTemplate::new(200)).mount(&third).await;
    let kafka = Kafka::on(&broker, &json!({"work": {"url": third.uri()}})).await;
    let strict = "message.timestamp.type=CreateTime,message.timestamp.before.max.ms=0";
    broker.configure_topic(&kafka.topics.outcomes, strict).await.unwrap();
    let _dispatch = kafka.dispatch(Shutdown::new()).await;
    let request = request("work");
    kafka.publish(&request, None, "{}").await;
    eventually("a refusal", DEADLINE, async || {
        kafka.measured.value("messaging.client.sent.messages", &[("error.type", "InvalidTimestamp")])
    })
    .await
    .unwrap();
    broker.configure_topic(&kafka.topics.outcomes, "message.timestamp.type=LogAppendTime").await.unwrap();
    assert_eq!(kafka.heard.report(request.id).await.outcome, Outcome::Delivered);
    assert_eq!(third.received_requests().await.unwrap().len(), 1);
}

/// `docs/scaling.md` states 167 MB for a release build.
const MOST_RESIDENT: u64 = 224 << 20;

/// On Linux only: elsewhere the memory is not known.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn large_requests_for_a_destination_that_hangs_take_bounded_memory() {
    if !Environment::engine_or_skip("the memory of dispatch").await.unwrap() {
        return;
    }
    let (broker, third) = (Broker::container().await.unwrap(), MockServer::start().await);
    let quick = Mock::given(path("/quick")).respond_with(ResponseTemplate::new(200));
    quick.mount(&third).await;
    let hangs = ResponseTemplate::new(200).set_delay(Duration::from_mins(10));
    Mock::given(path("/hanging")).respond_with(hangs).mount(&third).await;
    let destination = |name: &str| json!({"url": format!("{}/{name}", third.uri()), "timeout": "10m"});
    let kafka =
        Kafka::on(&broker, &json!({"hanging": destination("hanging"), "quick": destination("quick")})).await;
    let large: &'static str = format!("\"{}\"", "x".repeat(1 << 20)).leak();
    for _ in 0..400 {
        kafka.publish(&request("hanging"), None, large).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--config", kafka.file().to_str().unwrap()];
    let executable = Path::new(env!("CARGO_BIN_EXE_throughline-dispatch"));
    let mut dispatch = Program::start(executable, &arguments, folder.path()).unwrap();
    dispatch.listening().await.unwrap();
    let mut most = 0;
    let mut quick = async || {
        let request = request("quick");
        kafka.publish(&request, None, "{}").await;
        assert_eq!(kafka.heard.report(request.id).await.outcome, Outcome::Delivered);
        most = most.max(dispatch.resident_memory().unwrap());
    };
    // Until the requests beyond its share of the budget are deferred.
    let deferred =
        |records: &[_]| kafka.heard.reports_in(records).filter(|it| it.destination == "hanging").count();
    quick().await;
    while kafka.heard.wait_for(|records| Some(deferred(records))).await < 300 {
        quick().await;
    }
    assert!(most < MOST_RESIDENT, "{} MiB", most >> 20);
}
