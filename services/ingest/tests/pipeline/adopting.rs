//! Foreign records, which dispatch forwards.

use chrono::{DateTime, TimeDelta};
use throughline_clock::Clock;
use throughline_kafka::{Outgoing, Producer, Record};
use throughline_messages::{Adoption, DeadReason, Keys, Kind, Origin, RequestRecord, name};
use throughline_store::ConnectionTrait as _;
use throughline_testkit::{eventually, unmeasured};

use crate::world::{DEADLINE, FILES, FILES_TOPIC, TOPIC, World, ids};

/// As dispatch forwards it.
fn adoption(offset: i64) -> Adoption {
    let origin = Origin { topic: TOPIC.to_owned(), partition: 0, offset };
    let origin_time = DateTime::from_timestamp_millis(1_767_225_600_123);
    Adoption { route: "one".to_owned(), origin, origin_time, content_type: None, trace: None }
}

impl World {
    async fn forward(&self, adoption: &Adoption, body: impl Into<bytes::Bytes>) {
        self.produce_signed(&self.topics().adoptions, (Kind::Adoption, adoption.to_headers()), body).await;
    }

    /// Returns the first dead letters, each with its reason and the error.
    async fn letters(&self, count: usize) -> Vec<(Record, String, String)> {
        let records = self.records(&self.topics().dead_letters, count).await;
        let letter = |record: Record| {
            let [reason, error] = [name::REASON, name::ERROR].map(|header| text(&record, header));
            (record, reason, error)
        };
        records.into_iter().map(letter).collect()
    }
}

fn text(record: &Record, header: &str) -> String {
    let values: Vec<_> = record.headers.iter().filter(|(name, _)| name == header).collect();
    let [(_, value)] = values[..] else { panic!("{} times {header}", values.len()) };
    String::from_utf8(value.to_vec()).unwrap()
}

#[tokio::test]
async fn a_foreign_record_is_adopted_once_however_often_it_is_forwarded() {
    let world = World::new("");
    let ingest = world.start().await;
    for _ in 0..2 {
        world.forward(&adoption(41), r#"{"n":1e400}"#.replace("1e400", "1.0")).await;
    }
    world.forward(&adoption(42), "not JSON").await;
    let (dead, reason, _) = world.letters(1).await.remove(0);
    assert_eq!((dead.payload.as_ref(), reason.as_str()), (&b"not JSON"[..], "malformed"));
    // One more by HTTP shows that no other record is between them.
    let last = world.accepted(&ingest, "{}").await;
    let records = world.records(TOPIC, 2).await;
    assert_eq!(records[0].payload, r#"{"n":1.0}"#);
    assert_eq!(ids(&records)[1], last);
    ingest.stop().await;
}

#[tokio::test]
async fn a_record_that_is_forwarded_again_much_later_is_not_adopted_twice() {
    let world = World::new("ingest: { idempotency_window: 1h }");
    let clock = Clock::manual(Clock::system().now() - TimeDelta::days(2));
    let ingest = world.start_at(clock.clone()).await;
    world.forward(&adoption(41), r#"{"n":1}"#).await;
    world.records(TOPIC, 1).await;
    clock.advance(TimeDelta::days(2));
    world.forward(&adoption(41), r#"{"n":1}"#).await;
    world.forward(&adoption(42), r#"{"n":2}"#).await;
    let bodies: Vec<_> = world.records(TOPIC, 2).await.into_iter().map(|record| record.payload).collect();
    assert_eq!(bodies, [r#"{"n":1}"#, r#"{"n":2}"#]);
    ingest.stop().await;
}

/// A recreated topic begins at offset 0 again.
#[tokio::test]
async fn a_record_at_the_same_offset_of_a_recreated_topic_is_adopted() {
    let world = World::new("");
    let ingest = world.start().await;
    let later = Adoption { origin_time: DateTime::from_timestamp_millis(1_767_225_600_124), ..adoption(0) };
    for adoption in [adoption(0), later] {
        world.forward(&adoption, r#"{"heartbeat":true}"#).await;
    }
    let records = world.records(TOPIC, 2).await;
    assert_ne!(ids(&records)[0], ids(&records)[1]);
    for id in ids(&records) {
        assert_eq!(world.status_when(&ingest, id, |_| true).await["origin"], "one-requests/0/0");
    }
    ingest.stop().await;
}

/// For example, because a privilege or a table is missing.
#[tokio::test]
async fn records_wait_while_the_database_refuses_every_request() {
    let world = World::new("");
    let ingest = world.start().await;
    world.forward(&adoption(1), r#"{"n":1}"#).await;
    world.records(TOPIC, 1).await;
    let store = world.store().await;
    let run = async |sql| store.connection().execute_unprepared(sql).await.unwrap();
    run("CREATE TRIGGER broken BEFORE INSERT ON requests BEGIN INSERT INTO missing VALUES (1); END").await;
    let tries = || world.measured.count("db.client.operation.duration", &[("db.operation.name", "accept")]);
    let before = tries().unwrap();
    world.forward(&adoption(2), r#"{"n":2}"#).await;
    eventually("a second refusal of the record", DEADLINE, async || {
        let more = tries()? - before;
        anyhow::ensure!(more >= 2, "{more} tries");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(world.post(&ingest, "{}").await.status(), 500);
    run("DROP TRIGGER broken").await;
    assert_eq!(world.records(TOPIC, 2).await[1].payload, r#"{"n":2}"#);
    ingest.stop().await;
}

#[tokio::test]
async fn a_record_without_the_signature_of_dispatch_is_not_adopted() {
    let world = World::new("");
    let ingest = world.start().await;
    world.produce(&world.topics().adoptions, adoption(1).to_headers(), "{}").await;
    let (letter, reason, error) = world.letters(1).await.remove(0);
    assert_eq!((letter.payload.as_ref(), reason.as_str()), (&b"{}"[..], "malformed"));
    assert!(error.contains("throughline-signature"), "{error}");
    ingest.stop().await;
}

/// For example, a value that was read from a file, with its line break.
#[tokio::test]
async fn a_media_type_that_is_invalid_in_http_becomes_application_json() {
    let world = World::new("");
    let ingest = world.start().await;
    for (offset, content_type) in [(1, "application/json\n"), (2, "a\u{1}b"), (3, "application/vnd.api+json")]
    {
        let content_type = Some(content_type.to_owned());
        world.forward(&Adoption { content_type, ..adoption(offset) }, "{}").await;
    }
    let mut types: Vec<_> = world
        .records(TOPIC, 3)
        .await
        .iter()
        .map(|record| RequestRecord::from_headers(&record.headers).unwrap().content_type)
        .collect();
    types.sort_unstable();
    assert_eq!(types, ["application/json", "application/json", "application/vnd.api+json"]);
    ingest.stop().await;
}

#[tokio::test]
async fn a_route_without_a_path_adopts_records_of_any_content() {
    let world = World::new(&FILES.replace("path: /files, ", ""));
    let ingest = world.start().await;
    let nowhere = world.http.post(format!("{}/files", ingest.base)).send().await.unwrap();
    assert_eq!(nowhere.status(), 404);
    for (offset, content_type) in [(1, Some("text/csv")), (2, None), (3, Some("a\u{1}b"))] {
        let content_type = content_type.map(str::to_owned);
        let adoption = Adoption { route: "files".to_owned(), content_type, ..adoption(offset) };
        world.forward(&adoption, b"\xff,\0".as_slice()).await;
    }
    let records = world.records(FILES_TOPIC, 3).await;
    assert!(records.iter().all(|record| record.payload == b"\xff,\0".as_slice()));
    let read = |record: &Record| RequestRecord::from_headers(&record.headers).unwrap().content_type;
    let mut types: Vec<_> = records.iter().map(read).collect();
    types.sort_unstable();
    assert_eq!(types, ["application/octet-stream", "application/octet-stream", "text/csv"]);
    ingest.stop().await;
}

#[tokio::test]
async fn a_record_that_cannot_be_adopted_becomes_a_counted_dead_letter_and_blocks_no_other() {
    // After the last member of a group has left, the embedded broker makes the next member wait for a session's length.
    let world = World::new("kafka: {properties: {session.timeout.ms: '3000', heartbeat.interval.ms: '500'}}");
    let ingest = world.start().await;
    let poison = "CREATE TRIGGER poison BEFORE INSERT ON requests WHEN NEW.content_type LIKE '%poison%' \
                  BEGIN SELECT RAISE(ABORT, 'from within'); END";
    world.store().await.connection().execute_unprepared(poison).await.unwrap();
    let refused = [
        (
            Adoption { content_type: Some("application/poison".to_owned()), ..adoption(1) },
            ("malformed", "it cannot be stored"),
        ),
        (
            Adoption { route: "gone".to_owned(), ..adoption(2) },
            ("unroutable", "the configuration has no route gone"),
        ),
    ];
    for (number, (adoption, why)) in refused.iter().enumerate() {
        let body = format!(r#"{{"n":{number}}}"#);
        world.forward(adoption, body.clone()).await;
        let (letter, reason, error) = world.letters(number + 1).await.remove(number);
        assert_eq!((reason.as_str(), error.as_str()), *why);
        assert_eq!(letter.payload, body, "as it came");
        assert_eq!(text(&letter, name::ORIGIN), format!("{TOPIC}/0/{}", number + 1), "its original position");
    }
    world.forward(&adoption(3), "{}").await;
    assert_eq!(world.records(TOPIC, 1).await[0].payload, "{}");
    for reason in ["malformed", "unroutable"] {
        world.measures("throughline.dead_letters", &[("throughline.reason", reason)], 1).await;
    }
    ingest.stop().await;
    // The offset is committed: a restarted ingest refuses nothing again.
    let next = world.start().await;
    world.forward(&adoption(4), "[]").await;
    assert_eq!(world.records(TOPIC, 2).await[1].payload, "[]");
    for reason in ["malformed", "unroutable"] {
        world.measures("throughline.dead_letters", &[("throughline.reason", reason)], 1).await;
    }
    next.stop().await;
}

#[tokio::test]
async fn an_adopted_request_that_the_broker_refuses_ends_as_a_counted_dead_letter() {
    let world = World::new("{http: {body_limit: 1KiB}, kafka: {properties: {message.max.bytes: '100000'}}}");
    let ingest = world.start().await;
    // Our limits do not apply to foreign records, and dispatch may be allowed to send larger ones.
    let large = format!("\"{}\"", "x".repeat(150_000));
    let mut kafka = world.settings().kafka;
    kafka.properties.clear();
    let producer = Producer::new(&kafka, "test", &unmeasured()).unwrap();
    let topic = world.topics().adoptions;
    let mut headers = adoption(1).to_headers();
    Keys::new(kafka.signing_key(), None).sign(Kind::Adoption, &mut headers, large.as_bytes());
    producer.send(&Outgoing { topic, key: None, headers, payload: large.into() }).await.unwrap();
    world.forward(&adoption(2), "{}").await;

    let (letter, reason, _) = world.letters(1).await.remove(0);
    assert_eq!((reason.as_str(), letter.payload.len()), (DeadReason::Unpublishable.as_str(), 0));
    let id = ids(&[letter])[0];
    let status = world.status_when(&ingest, id, |status| status["deliveries"][0]["state"] == "dead").await;
    let delivery = &status["deliveries"][0];
    assert_eq!(
        (&delivery["reason"], &delivery["last_error_class"]),
        (&"unpublishable".into(), &"broker".into())
    );
    assert_eq!(status["origin"], "one-requests/0/1");
    let three = ("throughline.destination", "three");
    let refused = [three, ("throughline.reason", "unpublishable"), ("error.type", "broker")];
    world.measures("throughline.dead_letters", &refused, 1).await;
    world.measures("throughline.deliveries", &[three, ("throughline.outcome", "dead")], 1).await;
    assert_eq!(world.records(TOPIC, 1).await[0].payload, "{}", "the one behind it");
    world.outbox_empty().await;
    ingest.stop().await;
}
