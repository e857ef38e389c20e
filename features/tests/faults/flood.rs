//! Connections that announce large requests and send nothing more, and connections with unfinished heads.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use throughline_testkit::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Number of connections of one address: more than `http.connections_per_address` (400 here), and fewer than the limit
/// of all connections (1,024, see [`crate::cast`]).
const OF_ONE: usize = 800;
/// The address that opens them, which differs from that of the regular clients.
const ONE: u8 = 2;
/// Number of connections of each further address: fewer than the limit of an address; but together with the 400 of the
/// first address, more than the limit of all connections.
const OF_EACH: usize = 150;
const CROWD: std::ops::Range<u8> = 3..13;
/// Pause between a connection that the server closed and the next one.
const PAUSE: Duration = Duration::from_secs(1);
/// Deadline for connections to be closed early.
const MET: Duration = Duration::from_secs(20);

/// The data that a connection sends before it stalls. If the server closes it before `early`, it does so only to admit
/// another connection.
#[derive(Debug, Clone, Copy)]
struct Stall {
    sends: &'static [u8],
    early: Duration,
}

/// The body has a timeout of 2 s (`http.timeout`).
const BODY: Stall = Stall { sends: HEAD, early: Duration::from_millis(1500) };
/// The first head of a connection has a timeout of 10 s. A busy machine needs this long to exceed the limit of all
/// connections.
const UNFINISHED_HEAD: Stall = Stall { sends: b"POST /one HTTP/1.1\r\n", early: Duration::from_secs(8) };

const HEAD: &[u8] = b"POST /one HTTP/1.1\r\nhost: ingest\r\ncontent-type: application/json\r\n\
    content-length: 1048576\r\n\r\n";

/// The flood, which ends when dropped.
#[derive(Debug)]
pub(crate) struct Flood {
    target: SocketAddr,
    connections: JoinSet<()>,
}

impl Flood {
    /// Floods an ingest until it closes connections because one address exceeds its limit, and then because all addresses
    /// together exceed the limit. Continues with both.
    pub(crate) async fn begin(target: SocketAddr) -> anyhow::Result<Self> {
        let mut flood = Self { target, connections: JoinSet::new() };
        let closed = Arc::default();
        flood.open(ONE, OF_ONE, BODY, &closed);
        meets("the limit of an address", &closed).await?;
        let closed = Arc::default();
        for address in CROWD {
            flood.open(address, OF_EACH, UNFINISHED_HEAD, &closed);
        }
        meets("the limit of all addresses", &closed).await?;
        Ok(flood)
    }

    /// Keeps connections of an address open, and counts the connections that the server closes early.
    fn open(&mut self, address: u8, count: usize, stall: Stall, closed: &Arc<AtomicUsize>) {
        let target = self.target;
        for _ in 0..count {
            let closed = Arc::clone(closed);
            self.connections.spawn(async move {
                loop {
                    // The next connection follows, however this one ended.
                    if let Ok(lasted) = stall.in_connection(address, target).await
                        && lasted < stall.early
                    {
                        closed.fetch_add(1, Ordering::Relaxed);
                    }
                    sleep(PAUSE).await;
                }
            });
        }
    }
}

async fn meets(what: &str, closed: &AtomicUsize) -> anyhow::Result<()> {
    eventually(&format!("the flood to exceed {what}"), MET, async || {
        ensure!(closed.load(Ordering::Relaxed) > 0, "the server has closed no connection early");
        Ok(())
    })
    .await
}

impl Stall {
    /// Connects, waits until the server closes the connection, and returns how long this took.
    async fn in_connection(self, address: u8, target: SocketAddr) -> std::io::Result<Duration> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::new(127, 0, 0, address), 0).into())?;
        let mut stream: TcpStream = socket.connect(target).await?;
        stream.write_all(self.sends).await?;
        let sent = Instant::now();
        // The server resets a connection with unread data, which is an error here.
        let _ = stream.read_to_end(&mut Vec::new()).await;
        Ok(sent.elapsed())
    }
}
