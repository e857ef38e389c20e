//! Topics at start.

use throughline_kafka::{EmbeddedBroker, KafkaError, ensure_topics};

use crate::container::Container;
use crate::support::{self, Broker, SOON};

#[tokio::test]
async fn missing_topics_are_reported_with_what_to_change() {
    let broker = Broker::start("there", 1).await;
    let mut settings = broker.settings.clone();
    settings.topics.create = false;
    let error = ensure_topics(&settings, &[&broker.topic, "gone", "lost"], SOON).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "missing topics: gone, lost: create them, or set kafka.topics.create to true"
    );
    ensure_topics(&settings, &[&broker.topic], SOON).await.unwrap();
}

#[tokio::test]
async fn an_unreachable_broker_is_reported_with_its_address() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let settings = support::settings(broker.bootstrap_servers(), 1);
    broker.down().unwrap();
    let soon = std::time::Duration::from_millis(300);
    let error = ensure_topics(&settings, &["any"], soon).await.unwrap_err();
    assert!(matches!(error, KafkaError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&broker.bootstrap_servers()));
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn missing_topics_are_created_when_configured() {
    let Some(container) = Container::needed().await else { return };
    let mut settings = support::settings(container.open.clone(), 3);
    settings.topics.create = true;
    let names = ["created", "created-too"];
    ensure_topics(&settings, &names[..1], SOON).await.unwrap();
    ensure_topics(&settings, &names, SOON).await.unwrap();
    settings.topics.create = false;
    ensure_topics(&settings, &names, SOON).await.unwrap();
}

#[tokio::test]
async fn a_topic_that_was_not_created_is_reported() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let mut settings = support::settings(broker.bootstrap_servers(), 1);
    settings.topics.create = true;
    let soon = std::time::Duration::from_millis(300);
    let error = ensure_topics(&settings, &["wanted"], soon).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot create the topic wanted");
}
