//! Records of other producers on the topics: some mistaken, some forged.

use std::time::Duration;

use chrono::SecondsFormat;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;
use throughline_clock::Clock;
use throughline_snowflake::RequestId;

const ROUTE_TOPIC: &str = "one-request-local";
/// Deadline for the broker to acknowledge a record.
const ACKNOWLEDGED: Duration = Duration::from_secs(30);

/// A record that was produced onto a route's topic.
#[derive(Clone, Debug)]
pub(crate) struct ForeignRecord {
    /// Unique text in its body.
    pub(crate) prompt: String,
    /// Whether it must be delivered; otherwise it may also end as a dead letter.
    pub(crate) is_deliverable: bool,
}

/// Produces one record of each kind. `real` is the id of a request that the third party rejects; `number` is unique for
/// each call.
pub(crate) async fn produce(
    broker: &str,
    real: RequestId,
    number: usize,
) -> anyhow::Result<Vec<ForeignRecord>> {
    let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", broker).create()?;
    let mut records = Vec::new();
    let now = Clock::system().now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let far = "+262142-12-31T23:59:59Z";
    let unused = RequestId::from_i64(1)?.to_string();
    let real = real.to_string();
    // The claimed identities: none, a request that was never accepted, an accepted one, and one of the far future.
    let on_the_route = [
        ("plain", None, "application/json", true),
        ("unused-id", Some((unused.as_str(), now.as_str())), "application/json", true),
        ("real-id", Some((real.as_str(), now.as_str())), "application/json", true),
        ("far-time", Some((real.as_str(), far)), "application/json", true),
        ("control-character", None, "application/json\u{1}", false),
    ];
    for (kind, pretended, content_type, is_deliverable) in on_the_route {
        let prompt = format!("foreign-{number}-{kind}");
        let mut headers = OwnedHeaders::new().insert(header("content-type", content_type));
        if let Some((id, time)) = pretended {
            headers = events(headers, id, time);
        }
        let body = json!({"wish": "accept", "prompt": prompt}).to_string();
        send(&producer, ROUTE_TOPIC, headers, &body).await?;
        records.push(ForeignRecord { prompt, is_deliverable });
    }
    let retry = [
        ("throughline-destination", "three"),
        ("throughline-attempt", "2"),
        ("throughline-window-started-at", far),
    ];
    let retry = retry.map(|(name, value)| header(name, value));
    let retry = retry.into_iter().fold(events(OwnedHeaders::new(), &real, &now), OwnedHeaders::insert);
    let body = json!({"wish": "accept", "prompt": format!("forged-retry-{number}")}).to_string();
    send(&producer, "throughline.retries", retry, &body).await?;
    let outcome = json!({
        "request_id": real, "destination": "three", "attempt": 1, "counted_attempts": 1, "started_at": now,
        "duration_ms": 1, "status": 200, "outcome": "delivered",
    });
    send(&producer, "throughline.outcomes", OwnedHeaders::new(), &outcome.to_string()).await?;
    for topic in ["throughline.retries", "throughline.outcomes", "throughline.adoptions"] {
        send(&producer, topic, OwnedHeaders::new(), "an unexpected payload").await?;
    }
    Ok(records)
}

fn events(headers: OwnedHeaders, id: &str, time: &str) -> OwnedHeaders {
    let events = [
        ("ce_specversion", "1.0"),
        ("ce_id", id),
        ("ce_source", "/throughline/ingest"),
        ("ce_type", "one"),
        ("ce_time", time),
    ];
    events.iter().fold(headers, |headers, (name, value)| headers.insert(header(name, value)))
}

fn header<'a>(key: &'a str, value: &'a str) -> Header<'a, &'a str> {
    Header { key, value: Some(value) }
}

async fn send(
    producer: &FutureProducer,
    topic: &str,
    headers: OwnedHeaders,
    body: &str,
) -> anyhow::Result<()> {
    let record = FutureRecord::<(), _>::to(topic).payload(body).headers(headers);
    producer.send(record, ACKNOWLEDGED).await.map_err(|(error, _)| error)?;
    Ok(())
}
