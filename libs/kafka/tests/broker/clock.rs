//! Kafka refuses a record whose timestamp is too far from the broker's clock.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use throughline_kafka::{Outgoing, SendError};
use tokio::time::timeout;

use crate::support::{Broker, SOON};

const STRICT: &str = "stamped-by-producers";
const TIMESTAMP_TYPE: &str = "message.timestamp.type";

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(SOON)).request_timeout(Some(SOON))
}

fn admin(broker: &Broker) -> AdminClient<DefaultClientContext> {
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", &broker.settings.bootstrap_servers);
    config.create().unwrap()
}

/// A topic to which the clock of each producer is wrong: its records are older than the topic takes.
async fn create_strict(admin: &AdminClient<DefaultClientContext>) {
    let topic = NewTopic::new(STRICT, 1, TopicReplication::Fixed(1))
        .set(TIMESTAMP_TYPE, "CreateTime")
        .set("message.timestamp.before.max.ms", "0");
    admin.create_topics([&topic], &options()).await.unwrap().remove(0).unwrap();
}

#[tokio::test]
async fn a_record_with_a_rejected_timestamp_is_sent_until_the_topic_accepts_it() {
    let Some(broker) = Broker::real_only("stamped-by-the-broker", 1).await else { return };
    let admin = admin(&broker);
    create_strict(&admin).await;
    let producer = broker.producer();
    let record = Outgoing { topic: STRICT.to_owned(), ..broker.record(None, "x") };
    let error = producer.send(&record).await.unwrap_err();
    assert!(
        matches!(error, SendError::Failed { .. }) && error.to_string().contains("InvalidTimestamp"),
        "{error}"
    );

    let mut sending = std::pin::pin!(producer.send_until_taken(&record));
    assert!(timeout(Duration::from_secs(1), &mut sending).await.is_err(), "as long as the topic refuses it");
    let cure = AlterConfig::new(ResourceSpecifier::Topic(STRICT)).set(TIMESTAMP_TYPE, "LogAppendTime");
    admin.alter_configs([&cure], &options()).await.unwrap().remove(0).unwrap();
    timeout(SOON, sending).await.expect("taken").unwrap();
}

#[tokio::test]
async fn records_of_a_topic_that_is_created_have_the_time_of_the_broker() {
    let Some(broker) = Broker::real_only("with-the-time-of-the-broker", 1).await else { return };
    let topic = ResourceSpecifier::Topic(&broker.topic);
    let described = admin(&broker).describe_configs([&topic], &options()).await.unwrap().remove(0).unwrap();
    let value = described.get(TIMESTAMP_TYPE).and_then(|entry| entry.value.clone());
    assert_eq!(value.as_deref(), Some("LogAppendTime"));
}
