use chrono::{DateTime, TimeDelta, Utc};
use throughline_clock::Clock;
use throughline_messages::{
    AttemptReport, DeadReason, DeferralCause, ErrorClass, Failure, Keys, Kind, Outcome, RetryRecord, name,
};
use throughline_snowflake::RequestId;
use throughline_store::ConnectionTrait as _;
use throughline_store::retention::{self, Cutoff};
use throughline_testkit::{Broker, Environment, eventually};

use crate::world::{DEADLINE, World};

const NOW: DateTime<Utc> = DateTime::from_timestamp(1_767_225_600, 0).unwrap();

/// Returns the report of dispatch about an attempt that began and ended at this time.
pub(crate) fn report(id: RequestId, at: DateTime<Utc>, outcome: Outcome) -> AttemptReport {
    AttemptReport {
        request_id: id,
        destination: "three".to_owned(),
        attempt: 1,
        called: true,
        counted_attempts: 1,
        started_at: at,
        duration_ms: 0,
        trace_id: Some("0af7651916cd43dd8448eb211c80319c".to_owned()),
        origin: Some("one-requests/0/7".parse().unwrap()),
        status: Some(400),
        response_excerpt: Some("no".to_owned()),
        outcome,
    }
}

pub(crate) fn failure(error: &str) -> Failure {
    Failure { class: ErrorClass::ServerError, error: error.to_owned() }
}

pub(crate) async fn reported(world: &World, report: &AttemptReport) {
    let outcomes = world.topics().outcomes;
    world.produce_signed(&outcomes, (Kind::Outcome, Vec::new()), serde_json::to_vec(report).unwrap()).await;
}

#[tokio::test]
async fn an_outcome_becomes_an_attempt_and_the_state_of_its_delivery() {
    let world = World::new("");
    let ingest = world.start().await;
    let outcomes = world.topics().outcomes;
    let (good, bad) = (world.accepted(&ingest, "{}").await, world.accepted(&ingest, "{}").await);
    let dead = Outcome::Dead { reason: DeadReason::Rejected, failure: failure("400 Bad Request") };
    // An unreadable record goes to dead letters and delays no other; a repeated report counts once.
    world.produce_signed(&outcomes, (Kind::Outcome, Vec::new()), "{").await;
    for _ in 0..2 {
        reported(&world, &report(good, NOW, Outcome::Delivered)).await;
        reported(&world, &report(bad, NOW, dead.clone())).await;
    }
    let ended =
        |state: &'static str| move |status: &serde_json::Value| status["deliveries"][0]["state"] == state;
    let status = world.status_when(&ingest, bad, ended("dead")).await;
    let delivery = &status["deliveries"][0];
    assert_eq!((&delivery["destination"], &delivery["reason"]), (&"three".into(), &"rejected".into()));
    assert_eq!(delivery["attempts"].as_array().map(Vec::len), Some(1));
    assert_eq!(delivery["attempts"][0]["error_class"], "server_error");
    assert_eq!(delivery["attempts"][0]["response_excerpt"], "no");
    assert_eq!(delivery["attempts"][0]["origin"], "one-requests/0/7");
    let status = world.status_when(&ingest, good, ended("delivered")).await;
    assert_eq!(status["deliveries"][0]["attempts"][0]["status"], 400);
    assert_eq!(world.records(&world.topics().dead_letters, 1).await[0].payload, "{");
    ingest.stop().await;
}

#[tokio::test]
async fn an_outcome_without_the_signature_of_dispatch_changes_nothing() {
    let world = World::new("");
    let ingest = world.start().await;
    let outcomes = world.topics().outcomes;
    let id = world.accepted(&ingest, "{}").await;
    let forged = serde_json::to_vec(&report(id, NOW, Outcome::Delivered)).unwrap();
    world.produce(&outcomes, Vec::new(), forged.clone()).await;
    let mut by_another_key = Vec::new();
    Keys::new("the key of another producer", None).sign(Kind::Outcome, &mut by_another_key, &forged);
    world.produce(&outcomes, by_another_key, forged).await;
    let dead = Outcome::Dead { reason: DeadReason::Rejected, failure: failure("400 Bad Request") };
    reported(&world, &report(id, NOW, dead)).await;
    let status = world.status_when(&ingest, id, |status| state(status) != "pending").await;
    assert_eq!(state(&status), "dead");
    for letter in world.records(&world.topics().dead_letters, 2).await {
        let reason = letter.headers.iter().find(|(header, _)| header == name::REASON);
        assert_eq!(reason.map(|(_, reason)| &reason[..]), Some(&b"malformed"[..]));
    }
    ingest.stop().await;
}

/// The recorder halves the batch until the bad outcome is alone.
#[tokio::test]
async fn an_outcome_that_the_database_refuses_does_not_block_the_rest_of_its_batch() {
    const COUNT: usize = 9;
    let world = World::new("");
    let ingest = world.start().await;
    let mut requests = Vec::new();
    for _ in 0..COUNT {
        requests.push(world.accepted(&ingest, "{}").await);
    }
    let poison = "CREATE TRIGGER poison BEFORE INSERT ON attempts WHEN NEW.response_excerpt = 'poison' \
                  BEGIN SELECT RAISE(ABORT, 'bad'); END";
    let store = world.store().await;
    store.connection().execute_unprepared(poison).await.unwrap();
    // The recorder waits for the database with the first outcome, and finds the others together.
    let held = store.begin().await.unwrap();
    for (number, id) in requests.iter().enumerate() {
        let mut report = report(*id, NOW, Outcome::Delivered);
        if number == COUNT / 2 {
            report.response_excerpt = Some("poison".to_owned());
        }
        reported(&world, &report).await;
    }
    drop(held);
    let refused = requests.remove(COUNT / 2);
    for id in requests {
        world.status_when(&ingest, id, |status| state(status) == "delivered").await;
    }
    let letter = world.records(&world.topics().dead_letters, 1).await.remove(0);
    let outcome: AttemptReport = serde_json::from_slice(&letter.payload).unwrap();
    assert_eq!(outcome.request_id, refused);
    ingest.stop().await;
}

#[tokio::test]
async fn reasons_and_causes_of_a_later_version_are_recorded_unchanged() {
    let world = World::new("");
    let ingest = world.start().await;
    let (dead, deferred) = (world.accepted(&ingest, "{}").await, world.accepted(&ingest, "{}").await);
    let failure = Failure { class: ErrorClass::Other("quota".try_into().unwrap()), error: "402".to_owned() };
    let reason = DeadReason::Other("unpaid".try_into().unwrap());
    reported(&world, &report(dead, NOW, Outcome::Dead { reason, failure })).await;
    let (due_at, cause) =
        (Clock::system().now() + TimeDelta::hours(1), DeferralCause::Other("paused".try_into().unwrap()));
    reported(&world, &report(deferred, NOW, Outcome::Deferred { due_at, cause })).await;
    let status = world.status_when(&ingest, dead, |status| state(status) == "dead").await;
    let delivery = &status["deliveries"][0];
    assert_eq!((&delivery["reason"], &delivery["last_error_class"]), (&"unpaid".into(), &"quota".into()));
    let is_deferred = |status: &serde_json::Value| status["deliveries"][0]["deferred_by"] == "paused";
    world.status_when(&ingest, deferred, is_deferred).await;
    for (id, name) in [(dead, "unpaid"), (deferred, "paused")] {
        let url = format!("{}/v1/requests/{id}/explain", ingest.base);
        let explanation =
            world.http.get(url).header("accept", "text/plain").send().await.unwrap().text().await.unwrap();
        assert!(
            explanation.contains(&format!("`{name}`")) && explanation.contains("unknown to this version"),
            "{explanation}"
        );
    }
    ingest.stop().await;
}

#[tokio::test]
async fn an_outcome_of_a_purged_request_restores_nothing_and_blocks_no_other() {
    let world = World::new("");
    let ingest = world.start().await;
    let (old, other) = (world.accepted(&ingest, "{}").await, world.accepted(&ingest, "{}").await);
    world.outbox_empty().await;
    reported(&world, &report(old, NOW, Outcome::Delivered)).await;
    world.status_when(&ingest, old, |status| state(status) == "delivered").await;
    let later = Clock::system().now() + TimeDelta::minutes(1);
    let cutoff = Cutoff { delivered_before: later, dead_before: later, now: later };
    let batch = retention::purge(&world.store().await, &cutoff, None).await.unwrap();
    assert_eq!(batch.purged.requests, 1);

    // The same again, of another call, and of a destination that the request did not have.
    let dead = Outcome::Dead { reason: DeadReason::Rejected, failure: failure("400 Bad Request") };
    let elsewhere = AttemptReport { destination: "four".to_owned(), ..report(old, NOW, dead.clone()) };
    for late in [report(old, NOW, Outcome::Delivered), report(old, NOW, dead.clone()), elsewhere] {
        reported(&world, &late).await;
    }
    reported(&world, &report(other, NOW, dead)).await;
    world.status_when(&ingest, other, |status| state(status) == "dead").await;
    let status = world.status_when(&ingest, old, |_| true).await;
    assert_eq!((&status["status"], &status["title"]), (&404.into(), &"Request or delivery not found".into()));
    ingest.stop().await;
}

#[tokio::test]
async fn a_retry_is_published_when_it_is_due() {
    let clock = Clock::manual(NOW);
    let world = World::new("");
    let ingest = world.start_at(clock.clone()).await;
    let id = world.accepted(&ingest, r#"{"user":"u"}"#).await;
    let later = Outcome::Retry { due_at: Some(NOW + TimeDelta::seconds(40)), failure: failure("503") };
    reported(&world, &report(id, NOW, later)).await;
    let status = world.status_when(&ingest, id, |status| state(status) == "retrying").await;
    assert_eq!(status["deliveries"][0]["due_at"], "2026-01-01T00:00:40Z");
    clock.advance(TimeDelta::seconds(40));
    let retry = world.records(&world.topics().retries, 1).await.remove(0);
    let read = RetryRecord::from_headers(&retry.headers).unwrap();
    assert_eq!((read.request.id, read.destination.as_str()), (id, "three"));
    assert_eq!(
        (read.attempt, read.counted_attempts, read.window_started_at),
        (2, 1, read.request.accepted_at)
    );
    assert_eq!((retry.payload.as_ref(), retry.key.as_deref()), (&br#"{"user":"u"}"#[..], Some(&b"u"[..])));
    ingest.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_whose_time_its_topic_refuses_is_published_once_the_topic_accepts_it() {
    if !Environment::engine_or_skip("a retry with a wrong time").await.unwrap() {
        return;
    }
    let broker = Broker::container().await.unwrap();
    let world = World::new(&format!("kafka: {{ bootstrap_servers: \"{}\" }}", broker.bootstrap_servers()));
    let ingest = world.start().await;
    let id = world.accepted(&ingest, "{}").await;
    world.outbox_empty().await;
    let retries = world.topics().retries;
    let strict = "message.timestamp.type=CreateTime,message.timestamp.before.max.ms=0";
    broker.configure_topic(&retries, strict).await.unwrap();
    let now = Clock::system().now();
    let outcome = Outcome::Retry { due_at: Some(now), failure: failure("503") };
    reported(&world, &report(id, now, outcome)).await;
    eventually("a refusal", DEADLINE, async || {
        world.measured.value("messaging.client.sent.messages", &[("error.type", "InvalidTimestamp")])
    })
    .await
    .unwrap();
    broker.configure_topic(&retries, "message.timestamp.type=LogAppendTime").await.unwrap();
    let retry = world.records(&retries, 1).await.remove(0);
    assert_eq!(RetryRecord::from_headers(&retry.headers).unwrap().request.id, id);
    world.status_when(&ingest, id, |status| state(status) == "retrying").await;
    ingest.stop().await;
}

#[tokio::test]
async fn a_silent_delivery_is_published_again_once_dispatch_has_passed_its_record() {
    let clock = Clock::manual(NOW);
    let world = World::new("");
    let ingest = world.start_at(clock.clone()).await;
    let silent = world.accepted(&ingest, "{}").await;
    world.outbox_empty().await;
    // Dispatch is down, and the redelivery timeout ends. Two retries show that the sweeper has run meanwhile.
    clock.advance(TimeDelta::hours(1));
    for number in 1..=2 {
        let other = world.accepted(&ingest, "{}").await;
        let now = Outcome::Retry { due_at: Some(clock.now()), failure: failure("503") };
        reported(&world, &report(other, clock.now(), now)).await;
        world.records(&world.topics().retries, number).await;
    }
    world.dispatched(3 + 2).await;
    let retries = world.records(&world.topics().retries, 3).await;
    let read: Vec<_> =
        retries.iter().map(|retry| RetryRecord::from_headers(&retry.headers).unwrap()).collect();
    assert_eq!((read[2].request.id, read[2].attempt, read[2].counted_attempts), (silent, 1, 0));
    assert!(read[..2].iter().all(|retry| retry.request.id != silent));
    ingest.stop().await;
}

#[tokio::test]
async fn a_request_can_be_cancelled_until_it_has_ended() {
    let world = World::new("");
    let ingest = world.start().await;
    let id = world.accepted(&ingest, "{}").await;
    let cancel = async |id: &str| {
        let url = format!("{}/v1/requests/{id}/cancel", ingest.base);
        let response = world.http.post(url).send().await.unwrap();
        (response.status().as_u16(), response.json::<serde_json::Value>().await.unwrap())
    };
    let (status, body) = cancel(&id.to_string()).await;
    assert_eq!((status, state(&body)), (200, "cancelled"));
    let (status, body) = cancel(&id.to_string()).await;
    assert_eq!((status, &body["type"]), (409, &"https://throughline.dev/problems/has-ended".into()));
    assert_eq!(cancel("00000000000000000042").await.0, 404);
    assert_eq!(cancel("42").await.0, 400);
    ingest.stop().await;
}

fn state(status: &serde_json::Value) -> &str {
    status["deliveries"][0]["state"].as_str().unwrap()
}

#[tokio::test]
async fn an_unknown_request_and_an_invalid_id_have_different_problems() {
    let world = World::new("");
    let ingest = world.start().await;
    let get = |id: &'static str| world.http.get(format!("{}/v1/requests/{id}", ingest.base)).send();
    assert_eq!(get("00000000000000000042").await.unwrap().status(), 404);
    assert_eq!(get("42").await.unwrap().status(), 400);
    ingest.stop().await;
}
