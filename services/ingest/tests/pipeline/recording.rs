use chrono::DateTime;
use throughline_messages::{AttemptReport, DeadReason, ErrorClass, Failure, Outcome, RetryRecord};
use throughline_snowflake::RequestId;

use crate::world::World;

fn report(id: RequestId, outcome: Outcome) -> Vec<u8> {
    let report = AttemptReport {
        request_id: id,
        destination: "three".to_owned(),
        attempt: 1,
        started_at: DateTime::from_timestamp(1_767_225_600, 0).unwrap(),
        duration_ms: 12,
        trace_id: Some("0af7651916cd43dd8448eb211c80319c".to_owned()),
        status: Some(400),
        response_excerpt: Some("no".to_owned()),
        outcome,
    };
    serde_json::to_vec(&report).unwrap()
}

#[tokio::test]
async fn an_outcome_becomes_an_attempt_and_the_state_of_its_delivery() {
    let world = World::new("");
    let ingest = world.start().await;
    let outcomes = world.topics().outcomes;
    let (good, bad) = (world.accepted(&ingest, "{}").await, world.accepted(&ingest, "{}").await);
    let dead = Outcome::Dead {
        reason: DeadReason::Rejected,
        failure: Failure { class: ErrorClass::ClientError, error: "400 Bad Request".to_owned() },
    };
    // What cannot be read goes to dead letters and holds nothing up; what comes twice counts once.
    world.produce(&outcomes, Vec::new(), "{").await;
    for _ in 0..2 {
        world.produce(&outcomes, Vec::new(), report(good, Outcome::Delivered)).await;
        world.produce(&outcomes, Vec::new(), report(bad, dead.clone())).await;
    }
    let ended =
        |state: &'static str| move |status: &serde_json::Value| status["deliveries"][0]["state"] == state;
    let status = world.status_when(&ingest, bad, ended("dead")).await;
    let delivery = &status["deliveries"][0];
    assert_eq!((&delivery["destination"], &delivery["reason"]), (&"three".into(), &"rejected".into()));
    assert_eq!(delivery["attempts"].as_array().map(Vec::len), Some(1));
    assert_eq!(delivery["attempts"][0]["error_class"], "client_error");
    assert_eq!(delivery["attempts"][0]["response_excerpt"], "no");
    let status = world.status_when(&ingest, good, ended("delivered")).await;
    assert_eq!(status["deliveries"][0]["attempts"][0]["status"], 400);
    assert_eq!(world.records(&world.topics().dead_letters, 1).await[0].payload, "{");
    ingest.stop().await;
}

#[tokio::test]
async fn a_delivery_that_nothing_is_heard_of_is_published_again_for_its_destination() {
    let world = World::new("ingest: { patience: 1s }");
    let ingest = world.start().await;
    let id = world.accepted(&ingest, r#"{"user":"u"}"#).await;
    let retries = world.topics().retries;
    let retry = world.records(&retries, 1).await.remove(0);
    let read = RetryRecord::from_headers(&retry.headers).unwrap();
    assert_eq!((read.request.id, read.destination.as_str(), read.attempt), (id, "three", 1));
    assert_eq!((retry.payload.as_ref(), retry.key.as_deref()), (&br#"{"user":"u"}"#[..], Some(&b"u"[..])));
    ingest.stop().await;
}

#[tokio::test]
async fn an_unknown_request_and_an_id_that_is_none_have_a_problem_each() {
    let world = World::new("");
    let ingest = world.start().await;
    let get = |id: &'static str| world.http.get(format!("{}/v1/requests/{id}", ingest.base)).send();
    assert_eq!(get("00000000000000000042").await.unwrap().status(), 404);
    assert_eq!(get("42").await.unwrap().status(), 400);
    ingest.stop().await;
}
