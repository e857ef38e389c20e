//! TLS and passwords, on a broker that asks for both.

use std::time::Duration;

use throughline_kafka::Settings;
use throughline_kafka::{Consumer, KafkaError, Outgoing, Producer, ensure_topics};
use throughline_testkit::unmeasured;

use crate::container::{Authority, Container, PASSWORD};
use crate::support::{self, SOON, next, secret};

/// Far less than the time of a start: a refusal is returned without retries.
const AT_ONCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_record_is_produced_and_consumed_over_tls_with_a_password() {
    let Some(broker) = Container::needed().await else { return };
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        let mut settings = settings(&broker, mechanism);
        settings.topics.create = true;
        let topic = mechanism.to_lowercase();
        ensure_topics(&settings, &[&topic], SOON).await.unwrap();
        let record = Outgoing {
            topic: topic.clone(),
            key: None,
            headers: Vec::new(),
            payload: mechanism.as_bytes().into(),
        };
        Producer::new(&settings, "test", &unmeasured()).unwrap().send(&record).await.unwrap();
        let mut consumer = Consumer::subscribe(&settings, "group", &[&topic], 1, &unmeasured()).unwrap();
        let received = next(&mut consumer).await;
        assert_eq!(received.record.payload, record.payload);
        received.receipt.done();
        consumer.close(SOON).await.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_authority_can_be_a_file() {
    let Some(broker) = Container::needed().await else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, &broker.authority).unwrap();
    let mut settings = settings(&broker, "PLAIN");
    settings.properties.remove("ssl.ca.pem");
    settings.properties.insert("ssl.ca.location".to_owned(), secret(&file.path().display().to_string()));
    Producer::new(&settings, "test", &unmeasured()).unwrap().probe(SOON).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_fails_immediately_and_the_error_says_what_to_change() {
    let Some(broker) = Container::needed().await else { return };
    for mechanism in ["PLAIN", "SCRAM-SHA-256"] {
        let mut settings = settings(&broker, mechanism);
        settings.properties.insert("sasl.password".to_owned(), secret("hunter3"));
        let line = refused(&settings, |error| matches!(error, KafkaError::Credentials { .. })).await;
        for word in [&settings.bootstrap_servers, "Authentication failed", "change sasl.mechanism, sasl."] {
            assert!(line.contains(word), "{word}: {line}");
        }
        assert!(!line.contains("hunter"), "{line}");
    }
}

#[tokio::test]
async fn an_untrusted_broker_fails_immediately_and_the_error_says_what_to_change() {
    let Some(broker) = Container::needed().await else { return };
    let mut settings = settings(&broker, "PLAIN");
    settings.properties.insert("ssl.ca.pem".to_owned(), secret(&Authority::new().pem));
    let line = refused(&settings, |error| matches!(error, KafkaError::Tls { .. })).await;
    for word in [&settings.bootstrap_servers, "certificate verify failed", "change ssl.ca.location"] {
        assert!(line.contains(word), "{word}: {line}");
    }
}

#[tokio::test]
async fn a_broker_that_requires_tls_is_distinguished_from_an_unreachable_one() {
    let Some(broker) = Container::needed().await else { return };
    let mut settings = settings(&broker, "PLAIN");
    settings.properties.insert("security.protocol".to_owned(), secret("sasl_plaintext"));
    let error = ensure_topics(&settings, &["any"], Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(error, KafkaError::HungUp { .. }), "{error:?}");
    let line = error.to_string();
    assert!(line.contains(&settings.bootstrap_servers) && line.contains("security.protocol"), "{line}");
}

/// The error at start, in one line; a probe of the broker returns the same.
async fn refused(settings: &Settings, kind: impl Fn(&KafkaError) -> bool) -> String {
    let start = tokio::time::timeout(AT_ONCE, ensure_topics(settings, &["any"], SOON));
    let error = start.await.expect("an answer at once").unwrap_err();
    assert!(kind(&error), "{error:?}");
    let probed = Producer::new(settings, "test", &unmeasured())
        .unwrap()
        .probe(Duration::from_secs(3))
        .await
        .unwrap_err();
    assert!(kind(&probed), "{probed:?}");
    let line = error.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

fn settings(broker: &Container, mechanism: &str) -> Settings {
    let mut settings = support::settings(broker.secured.clone(), 1);
    for (name, value) in [
        ("security.protocol", "sasl_ssl"),
        ("ssl.ca.pem", &broker.authority),
        ("sasl.mechanism", mechanism),
        ("sasl.username", "throughline"),
        ("sasl.password", PASSWORD),
    ] {
        settings.properties.insert(name.to_owned(), secret(value));
    }
    settings
}
