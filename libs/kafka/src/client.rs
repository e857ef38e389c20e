//! Translates our settings into librdkafka's.

use std::thread;

use crate::Settings;
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError as Native;
use rdkafka::types::RDKafkaConfRes;

use crate::KafkaError;

/// Properties that must not be overridden, each with the reason to report.
const RESERVED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set kafka.bootstrap_servers"),
    ("metadata.broker.list", "set kafka.bootstrap_servers"),
    ("compression.codec", "set kafka.compression"),
    ("compression.type", "set kafka.compression"),
    ("group.id", "kafka.prefix determines the names of groups"),
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
    ("enable.partition.eof", "the end of a partition is not reported as an event"),
    ("group.protocol", HANDED_OVER),
    ("partition.assignment.strategy", HANDED_OVER),
    ("test.mock.num.brokers", "set kafka.bootstrap_servers"),
];

const ACKNOWLEDGED: &str = "a record is published only when all in-sync replicas have it";
const ORDERED: &str = "records must stay in order and survive an outage";
const COMMITTED: &str = "an offset is committed only when its record is finished";
const HANDED_OVER: &str = "partitions move cooperatively, after their records are finished";

/// Builds the configuration of any client: the connection, then `ours`, then `kafka.properties`.
pub(crate) fn config(settings: &Settings, ours: &[(&str, &str)]) -> Result<ClientConfig, KafkaError> {
    let mut config = ClientConfig::new();
    // `log` decides which lines are worth showing, not librdkafka. But librdkafka need not even format debug lines
    // unless `debug` is set.
    let is_debugged = settings.properties.contains_key("debug");
    config.set_log_level(if is_debugged { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
    config.set("bootstrap.servers", &settings.bootstrap_servers);
    config.set("client.id", "throughline");
    // Brokers close idle connections after some minutes, which is not worth a log line.
    config.set("log.connection.close", "false");
    // By default librdkafka waits up to 10 s before it reconnects: too long after a short outage.
    config.set("reconnect.backoff.max.ms", "2000");
    // By default an added topic or partition is noticed after 5 min.
    config.set("topic.metadata.refresh.interval.ms", "60000");
    if !settings.properties.keys().any(|name| name.starts_with("ssl.ca.")) {
        // OpenSSL is linked in and has no default directory of certificates; this finds the system's.
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

/// Drops a client on a separate thread, so that the caller need not wait: the client's own thread checks only ten
/// times a second whether it should end, and gives up unreachable brokers late.
pub(crate) fn drop_in_background(client: impl Send + 'static) {
    thread::spawn(move || drop(client));
}

/// Returns the name under which we set a property that has two names, so that our value and the user's do not both
/// apply.
fn preferred(name: &str) -> &str {
    match name {
        "queue.buffering.max.ms" => "linger.ms",
        other => other,
    }
}

/// Returns the reason why a client was not created. It leaves librdkafka's message out, which repeats the rejected
/// value: that may be a secret.
pub(crate) fn not_created(error: Native) -> KafkaError {
    match error {
        Native::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, name, _) => {
            KafkaError::Property { name, reason: "librdkafka does not know this property" }
        }
        Native::ClientConfig(_, _, name, _) => {
            KafkaError::Property { name, reason: "librdkafka rejects this value" }
        }
        other => KafkaError::Client(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use throughline_testkit::unmeasured;

    use super::*;
    use crate::{Consumer, Producer};

    fn settings(properties: &[(&str, &str)]) -> Settings {
        let properties =
            properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        Settings { bootstrap_servers: "localhost:1".to_owned(), properties, ..Settings::default() }
    }

    #[test]
    fn properties_that_guarantees_depend_on_cannot_be_overridden() {
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
    fn debug_lines_are_logged_on_request() {
        let level = |properties| config(&settings(properties), &[]).unwrap().log_level;
        assert!(matches!(level(&[]), RDKafkaLogLevel::Info));
        assert!(matches!(level(&[("debug", "broker,metadata")]), RDKafkaLogLevel::Debug));
    }

    #[test]
    fn an_error_names_the_property_and_withholds_its_value() {
        for (name, reason) in
            [("sasl.pasword", "does not know this property"), ("security.protocol", "value")]
        {
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
