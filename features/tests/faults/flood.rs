//! Connections that announce large requests and send nothing more.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Connections that are open at the same time. The audit's attack needed 65 heads a second.
const CONNECTIONS: usize = 2000;
/// The flood comes from an address of its own, as an attacker's would.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Between a connection that the server closed and the next.
const PAUSE: Duration = Duration::from_millis(200);

const HEAD: &[u8] = b"POST /one HTTP/1.1\r\nhost: ingest\r\ncontent-type: application/json\r\n\
    content-length: 1048576\r\n\r\n";

/// The flood, which ends when dropped.
#[derive(Debug)]
pub(crate) struct Flood {
    _connections: JoinSet<()>,
}

impl Flood {
    pub(crate) fn begin(target: SocketAddr) -> Self {
        let mut connections = JoinSet::new();
        for _ in 0..CONNECTIONS {
            connections.spawn(async move {
                loop {
                    // However a connection ends, the next one follows.
                    let _ = stall(target).await;
                    sleep(PAUSE).await;
                }
            });
        }
        Self { _connections: connections }
    }
}

/// Sends a head, and waits until the server closes the connection.
async fn stall(target: SocketAddr) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((ATTACKER, 0).into())?;
    let mut stream: TcpStream = socket.connect(target).await?;
    stream.write_all(HEAD).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(())
}
