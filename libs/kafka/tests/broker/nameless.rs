//! A cluster that names none of its brokers for a moment, like one that was frozen until a moment ago.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _};
use throughline_kafka::{Consumer, Outgoing, Producer};
use throughline_testkit::unmeasured;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::{SOON, secret, settings};

const TOPIC: &str = "topic";

/// Enough clients that at least one requests metadata in the moment in which librdkafka loses its brokers.
const CLIENTS: usize = 40;
/// Enough partitions that this moment lasts.
const PARTITIONS: i32 = 1000;

/// The part of Kafka's protocol that a client needs to find a broker: <https://kafka.apache.org/protocol>.
#[derive(Clone)]
struct Cluster {
    port: u16,
    names_itself: Arc<watch::Sender<bool>>,
    /// How often each client has received brokers, and how often none.
    asked: Arc<watch::Sender<BTreeMap<String, (u32, u32)>>>,
}

mod api {
    pub(super) const PRODUCE: i16 = 0;
    pub(super) const FETCH: i16 = 1;
    pub(super) const METADATA: i16 = 3;
    pub(super) const VERSIONS: i16 = 18;
    pub(super) const PRODUCER_ID: i16 = 22;
    pub(super) const UNSUPPORTED_VERSION: i16 = 35;
    pub(super) const LEADER_NOT_AVAILABLE: i16 = 5;
}

impl Cluster {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cluster = Self {
            port: listener.local_addr().unwrap().port(),
            names_itself: Arc::new(watch::Sender::new(true)),
            asked: Arc::default(),
        };
        let serving = cluster.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(client));
            }
        });
        cluster
    }

    /// Returns when the client disconnects.
    async fn serve(self, mut client: TcpStream) {
        while let Ok(length) = client.read_i32().await {
            let mut request = vec![0; usize::try_from(length).unwrap()];
            if client.read_exact(&mut request).await.is_err() {
                return;
            }
            let Some(answer) = self.answer(&mut request.as_slice()) else { continue };
            let length = i32::try_from(answer.len()).unwrap();
            if client.write_i32(length).await.is_err() || client.write_all(&answer).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: &mut &[u8]) -> Option<Vec<u8>> {
        let (api, version) = (request.get_i16(), request.get_i16());
        let mut answer = Vec::new();
        answer.put_i32(request.get_i32());
        let length = usize::try_from(request.get_i16()).unwrap();
        let client = String::from_utf8(request[..length].to_vec()).unwrap();
        match api {
            api::VERSIONS if version > 0 => {
                answer.put_i16(api::UNSUPPORTED_VERSION);
                answer.put_i32(0);
            }
            api::VERSIONS => {
                answer.put_i16(0);
                let known = [
                    (api::PRODUCE, 3),
                    (api::FETCH, 4),
                    (api::METADATA, 0),
                    (api::VERSIONS, 0),
                    (api::PRODUCER_ID, 0),
                ];
                answer.put_i32(5);
                for (api, newest) in known {
                    answer.put_i16(api);
                    answer.put_i16(0);
                    answer.put_i16(newest);
                }
            }
            api::METADATA => self.metadata(&client, &mut answer),
            api::PRODUCER_ID => {
                answer.put_i32(0);
                answer.put_i16(0);
                answer.put_i64(1);
                answer.put_i16(0);
            }
            _ => return None,
        }
        Some(answer)
    }

    fn metadata(&self, client: &str, answer: &mut Vec<u8>) {
        let names_itself = *self.names_itself.borrow();
        self.asked.send_modify(|asked| {
            let (with, without) = asked.entry(client.to_owned()).or_default();
            *(if names_itself { with } else { without }) += 1;
        });
        answer.put_i32(i32::from(names_itself));
        if names_itself {
            answer.put_i32(1);
            put(answer, "127.0.0.1");
            answer.put_i32(self.port.into());
        }
        answer.put_i32(1);
        answer.put_i16(0);
        put(answer, TOPIC);
        answer.put_i32(PARTITIONS);
        for partition in 0..PARTITIONS {
            answer.put_i16(if names_itself { 0 } else { api::LEADER_NOT_AVAILABLE });
            answer.put_i32(partition);
            answer.put_i32(if names_itself { 1 } else { -1 });
            for _ in ["replicas", "those in sync"] {
                answer.put_i32(1);
                answer.put_i32(1);
            }
        }
    }

    /// Waits until the counts of each client satisfy the condition, and returns them.
    async fn until(
        &self,
        what: &str,
        is_so: impl Fn(&str, (u32, u32)) -> bool,
    ) -> BTreeMap<String, (u32, u32)> {
        let mut asked = self.asked.subscribe();
        let all = |asked: &BTreeMap<_, _>| {
            asked.len() == CLIENTS
                && asked.iter().all(|(client, counts): (&String, _)| is_so(client, *counts))
        };
        if let Ok(asked) = tokio::time::timeout(SOON, asked.wait_for(all)).await {
            return asked.unwrap().clone();
        }
        let asked = self.asked.borrow();
        let late: Vec<_> = asked.iter().filter(|(client, counts)| !is_so(client, **counts)).collect();
        panic!("{what}: of {} clients not {late:?}", asked.len())
    }
}

fn put(answer: &mut Vec<u8>, text: &str) {
    answer.put_i16(i16::try_from(text.len()).unwrap());
    answer.put_slice(text.as_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_reconnects_after_a_cluster_has_listed_no_brokers() {
    let cluster = Cluster::start().await;
    let mut settings = settings(format!("127.0.0.1:{}", cluster.port), 1);
    for (name, value) in [("topic.metadata.refresh.interval.ms", "100"), ("statistics.interval.ms", "500")] {
        settings.properties.insert(name.to_owned(), secret(value));
    }
    let record = Outgoing { topic: TOPIC.to_owned(), key: None, headers: Vec::new(), payload: "x".into() };
    let clients = (0..CLIENTS / 2).map(|number| {
        let producer = Producer::new(&settings, &format!("producer {number}"), &unmeasured()).unwrap();
        // So that the client requests the topic's metadata.
        drop(producer.enqueue(&record).unwrap());
        let group = format!("consumer {number}");
        (producer, Consumer::subscribe(&settings, &group, &[TOPIC], 1, &unmeasured()).unwrap())
    });
    let _clients: Vec<_> = clients.collect();
    cluster.until("to find the broker", |_, (with, _)| with > 2).await;
    cluster.names_itself.send_replace(false);
    let lost = cluster.until("to receive no brokers", |_, (_, without)| without > 0).await;
    cluster.names_itself.send_replace(true);
    cluster.until("to find the broker again", |client, (with, _)| with >= lost[client].0 + 2).await;
}
