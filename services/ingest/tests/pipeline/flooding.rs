//! Clients that open connections and send little or nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use throughline_testkit::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::world::{DEADLINE, Running, World};

/// Announces a body of 1 MiB, which never arrives.
const HEAD: &[u8] =
    b"POST /one HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1048576\r\n\r\n";

fn address(ingest: &Running) -> SocketAddr {
    ingest.base.trim_start_matches("http://").parse().unwrap()
}

#[tokio::test]
async fn announced_bodies_that_never_arrive_use_no_budget() {
    let world = World::new("");
    let ingest = world.start().await;
    let mut stalled = Vec::new();
    // 256 announced bodies would fill the queue.
    for _ in 0..300 {
        let mut client = TcpStream::connect(address(&ingest)).await.unwrap();
        client.write_all(HEAD).await.unwrap();
        stalled.push(client);
    }
    // Answered after all of them, so ingest has seen them.
    for _ in 0..20 {
        world.accepted(&ingest, "{}").await;
    }
    ingest.stop().await;
}

/// Stalled heads, from several addresses of this machine, each opened again when it is closed.
struct Flood {
    _clients: JoinSet<()>,
    /// How many heads were sent.
    sent: Arc<AtomicUsize>,
}

impl Flood {
    fn begin(to: SocketAddr) -> Self {
        let (mut clients, sent) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        for number in 0..HEADS {
            let (from, sent) =
                (Ipv4Addr::new(127, 0, 0, 2 + u8::try_from(number % 4).unwrap()), Arc::clone(&sent));
            clients.spawn(async move {
                loop {
                    // The connection may be refused; the next one follows.
                    let _ = stall(from, to, &sent).await;
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        Self { _clients: clients, sent }
    }
}

async fn stall(from: Ipv4Addr, to: SocketAddr, sent: &AtomicUsize) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let mut client = socket.connect(to).await?;
    client.write_all(HEAD).await?;
    sent.fetch_add(1, Ordering::Relaxed);
    client.read_to_end(&mut Vec::new()).await.map(drop)
}

/// As many connections as each of the addresses may have at once.
const BOUND: usize = 50;
/// Several times as many as all of them.
const HEADS: usize = 600;
/// How long a client waits before it connects again: a tight loop would only measure the machine.
const PAUSE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_stalled_heads_blocks_neither_clients_nor_health_checks() {
    let world = World::new(&format!("http: {{connections_per_address: {BOUND}}}"));
    let ingest = world.start().await;
    let flood = Flood::begin(address(&ingest));
    eventually("the flood", 4 * DEADLINE, async || {
        let sent = flood.sent.load(Ordering::Relaxed);
        anyhow::ensure!(sent >= HEADS, "{sent} heads");
        Ok(())
    })
    .await
    .unwrap();
    for _ in 0..20 {
        // A connection of its own each time.
        let client = reqwest::Client::new();
        let post = client.post(format!("{}/one", ingest.base)).header("content-type", "application/json");
        assert_eq!(post.body("{}").send().await.unwrap().status(), 201);
        for path in ["/healthz", "/readyz"] {
            let health = client.get(format!("{}{path}", ingest.health)).send().await.unwrap();
            assert_eq!(health.status(), 200, "{path}");
        }
    }
    drop(flood);
    ingest.stop().await;
}

#[tokio::test]
async fn the_health_listener_answers_health_checks_only() {
    let world = World::new("http: {connections_per_address: 1}");
    let ingest = world.start().await;
    // The only connection that this address may have to the other listener.
    let mut busy = TcpStream::connect(address(&ingest)).await.unwrap();
    busy.write_all(HEAD).await.unwrap();
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/one", 404), ("/v1/requests/1", 404)] {
        let answer = reqwest::Client::new().get(format!("{}{path}", ingest.health)).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
    }
    ingest.stop().await;
}
