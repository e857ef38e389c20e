//! The requests that one look sends.

use std::sync::atomic::{AtomicUsize, Ordering};

use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};

use super::*;
use crate::EmbeddedBroker;

const SOON: Duration = Duration::from_secs(30);

/// Counts requests by the lines that librdkafka logs when it sends them.
#[derive(Clone, Default)]
struct Requests {
    list_offsets: Arc<AtomicUsize>,
    offset_fetch: Arc<AtomicUsize>,
    metadata: Arc<AtomicUsize>,
}

impl Requests {
    /// Returns how many requests of each kind were sent before this one for metadata. The lines arrive in order, as the
    /// client is polled.
    fn sent(&self, client: &BaseConsumer<Self>) -> [usize; 2] {
        let before = self.metadata.load(Ordering::SeqCst);
        client.fetch_metadata(Some("topic"), SOON).unwrap();
        let deadline = Instant::now() + SOON;
        while self.metadata.load(Ordering::SeqCst) == before {
            assert!(Instant::now() < deadline, "no line tells of the request for metadata");
            client.poll(Duration::from_millis(10));
        }
        [&self.list_offsets, &self.offset_fetch].map(|count| count.load(Ordering::SeqCst))
    }
}

impl ClientContext for Requests {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, text: &str) {
        let counts = [
            ("Sent ListOffsetsRequest", &self.list_offsets),
            ("Sent OffsetFetchRequest", &self.offset_fetch),
            ("Sent MetadataRequest", &self.metadata),
        ];
        for (line, count) in counts {
            count.fetch_add(usize::from(text.contains(line)), Ordering::SeqCst);
        }
    }
}

impl ConsumerContext for Requests {}

#[test]
fn one_request_asks_for_very_many_partitions() {
    const PARTITIONS: u16 = 100;
    let broker = EmbeddedBroker::start(PARTITIONS.into()).unwrap();
    broker.create_topics(&["topic"]).unwrap();
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", broker.bootstrap_servers())
        .set("group.id", "group")
        .set("debug", "protocol");
    config.set_log_level(RDKafkaLogLevel::Debug);
    let requests = Requests::default();
    let client = BaseConsumer::from_config_and_context(&config, requests.clone()).unwrap();
    let partitions = (0..PARTITIONS).map(|number| ("topic".to_owned(), number.into())).collect();
    // The client learns of the leaders and of the coordinator.
    ends(&client, &partitions, SOON).unwrap();
    committed(&client, &partitions, SOON).unwrap();
    let [list_offsets, offset_fetch] = requests.sent(&client);
    assert_eq!(ends(&client, &partitions, SOON).unwrap().len(), usize::from(PARTITIONS));
    assert_eq!(committed(&client, &partitions, SOON).unwrap(), BTreeMap::new());
    assert_eq!(requests.sent(&client), [list_offsets + 1, offset_fetch + 1]);
}
