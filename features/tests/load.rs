//! Concurrent requests.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt as _, stream};
use tokio::task::JoinSet;

use crate::client::{Answer, Client, Question};

/// Number of concurrent clients: enough that requests are always in progress.
const CLIENTS: usize = 8;

/// Posts all bodies with limited concurrency, and returns the answers in the order of the bodies.
pub(crate) async fn post_all(
    client: &Client,
    to: SocketAddr,
    path: &str,
    bodies: impl IntoIterator<Item = Vec<u8>>,
) -> reqwest::Result<Vec<Answer>> {
    let posts = bodies.into_iter().map(|body| client.send(to, Question::post(path, body)));
    let answers: Vec<_> = stream::iter(posts).buffered(CLIENTS).collect().await;
    answers.into_iter().collect()
}

/// Clients that post one request after the other, until they are stopped or ingest is unreachable.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
    answers: Arc<Mutex<Vec<Answer>>>,
}

impl Load {
    /// Starts the clients.
    pub(crate) fn begin(client: &Client, to: SocketAddr, path: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(Mutex::new(Vec::new()));
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let (client, answers, stop) = (client.clone(), Arc::clone(&answers), Arc::clone(&stop));
            clients.spawn(async move {
                for round in 0_u64.. {
                    let body = format!(r#"{{"client": {number}, "round": {round}}}"#);
                    let Ok(answer) = client.send(to, Question::post(path, body)).await else { return };
                    answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        Self { stop, clients, answers }
    }

    /// Number of requests accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.iter().filter(|answer| answer.request_id().is_some()).count()
    }

    /// Stops the clients, and returns all their answers.
    pub(crate) async fn end(self) -> Vec<Answer> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.join_all().await;
        std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
