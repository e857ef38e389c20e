//! From our settings to librdkafka's.

use std::thread;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError as Native;
use rdkafka::types::RDKafkaConfRes;
use throughline_config::Kafka;

use crate::KafkaError;

/// Properties that are not open to change, each with the reason a person is told.
const RESERVED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set kafka.bootstrap_servers"),
    ("metadata.broker.list", "set kafka.bootstrap_servers"),
    ("compression.codec", "set kafka.compression"),
    ("compression.type", "set kafka.compression"),
    ("group.id", "groups are named by kafka.prefix"),
    ("group.instance.id", "set kafka.group_instance_id"),
    ("acks", ACKNOWLEDGED),
    ("request.required.acks", ACKNOWLEDGED),
    ("enable.idempotence", ORDERED),
    ("delivery.timeout.ms", ORDERED),
    ("message.timeout.ms", ORDERED),
    ("message.send.max.retries", ORDERED),
    ("retries", ORDERED),
    ("transactional.id", "records are produced without transactions"),
    ("auto.commit.enable", COMMITTED),
    ("enable.auto.commit", COMMITTED),
    ("enable.auto.offset.store", COMMITTED),
    ("auto.offset.reset", "a new group starts at the beginning, or requests would be lost"),
    ("enable.partition.eof", "the end of a partition is not an event here"),
    ("group.protocol", HANDED_OVER),
    ("partition.assignment.strategy", HANDED_OVER),
    ("test.mock.num.brokers", "the broker is named by kafka.bootstrap_servers"),
];

const ACKNOWLEDGED: &str = "a record counts as published only when all replicas in sync have it";
const ORDERED: &str = "records must keep their order, and outlast an outage";
const COMMITTED: &str = "an offset is committed only when its record is finished";
const HANDED_OVER: &str = "partitions change hands cooperatively, after their records are finished";

/// A configuration for any client: the connection, then `ours`, then `kafka.properties`.
pub(crate) fn config(settings: &Kafka, ours: &[(&str, &str)]) -> Result<ClientConfig, KafkaError> {
    let mut config = ClientConfig::new();
    // What is worth showing is decided where the lines are taken (see `log`), not in librdkafka; but what nobody asked
    // it to look at, it need not even format.
    let is_debugged = settings.properties.contains_key("debug");
    config.set_log_level(if is_debugged { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
    config.set("bootstrap.servers", &settings.bootstrap_servers);
    config.set("client.id", "throughline");
    // Brokers drop idle connections after some minutes, which is not worth a line.
    config.set("log.connection.close", "false");
    // By default librdkafka waits up to 10 s before it tries again: long, after a short outage.
    config.set("reconnect.backoff.max.ms", "2000");
    // By default a topic or partition that was added is noticed after 5 min.
    config.set("topic.metadata.refresh.interval.ms", "60000");
    if !settings.properties.keys().any(|name| name.starts_with("ssl.ca.")) {
        // OpenSSL is linked in and knows no directory of certificates; this finds the system's.
        config.set("ssl.ca.location", "probe");
    }
    for (name, value) in ours {
        config.set(*name, *value);
    }
    for (name, value) in &settings.properties {
        if let Some((_, reason)) = RESERVED.iter().find(|(reserved, _)| reserved == name) {
            return Err(KafkaError::ReservedProperty { name: name.clone(), reason });
        }
        config.set(preferred(name), value.expose());
    }
    Ok(config)
}

/// Drops a client beside the caller, who is not to wait: its own thread looks up only ten times a second, and what it
/// cannot reach it gives up late.
pub(crate) fn let_go(client: impl Send + 'static) {
    thread::spawn(move || drop(client));
}

/// The name under which we set a property that has two, so that ours and theirs do not both apply.
fn preferred(name: &str) -> &str {
    match name {
        "queue.buffering.max.ms" => "linger.ms",
        other => other,
    }
}

/// Why a client was not created. librdkafka repeats the value it dislikes, which may be a secret.
pub(crate) fn not_created(error: Native) -> KafkaError {
    match error {
        Native::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, name, _) => {
            KafkaError::Property { name, reason: "librdkafka knows no such property" }
        }
        Native::ClientConfig(_, _, name, _) => {
            KafkaError::Property { name, reason: "librdkafka does not take this value" }
        }
        other => KafkaError::Client(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use throughline_testkit::unmeasured;

    use super::*;
    use crate::{Consumer, Producer};

    fn settings(properties: &[(&str, &str)]) -> Kafka {
        let properties =
            properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        Kafka { bootstrap_servers: "localhost:1".to_owned(), properties, ..Kafka::default() }
    }

    #[test]
    fn what_promises_rest_on_cannot_be_overridden() {
        for (name, _) in RESERVED {
            let error = config(&settings(&[(name, "x")]), &[]).unwrap_err();
            assert!(error.to_string().starts_with(&format!("kafka.properties: `{name}` cannot be set")));
        }
    }

    #[test]
    fn properties_override_ours_under_either_name() {
        for name in ["linger.ms", "queue.buffering.max.ms"] {
            let config = config(&settings(&[(name, "77")]), &[("linger.ms", "2")]).unwrap();
            assert_eq!(config.get("linger.ms"), Some("77"));
            assert_eq!(config.get("queue.buffering.max.ms"), None);
        }
    }

    #[test]
    fn debugging_is_heard_when_asked_for() {
        let level = |properties| config(&settings(properties), &[]).unwrap().log_level;
        assert!(matches!(level(&[]), RDKafkaLogLevel::Info));
        assert!(matches!(level(&[("debug", "broker,metadata")]), RDKafkaLogLevel::Debug));
    }

    #[test]
    fn an_error_names_the_property_and_withholds_its_value() {
        for (name, reason) in [("sasl.pasword", "knows no such property"), ("security.protocol", "value")] {
            let error = Producer::new(&settings(&[(name, "hunter2")]), "test", &unmeasured()).err().unwrap();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(name) && shown.contains(reason), "{shown}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[tokio::test]
    async fn tls_and_sasl_pass_through_to_producers_and_consumers() {
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let settings = settings(&[
                ("security.protocol", "sasl_ssl"),
                ("sasl.mechanism", mechanism),
                ("sasl.username", "someone"),
                ("sasl.password", "hunter2"),
                ("ssl.endpoint.identification.algorithm", "https"),
                ("fetch.min.bytes", "1"),
                ("batch.num.messages", "100"),
            ]);
            Producer::new(&settings, "test", &unmeasured()).unwrap();
            Consumer::subscribe(&settings, "group", &["topic"], 1, &unmeasured()).unwrap();
        }
        let certificate = settings(&[("security.protocol", "ssl"), ("ssl.ca.pem", "no certificate")]);
        let error = Producer::new(&certificate, "test", &unmeasured()).err().unwrap();
        assert!(matches!(error, KafkaError::Client(_)), "{error:?}");
    }
}
