//! The server itself: connections, how many and how long, and their end.

use std::convert::Infallible;
use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::serve::Listener;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::connections::{Arriving, Connections, Standing, Turn, peer};
use super::descriptors;
use super::management::Peer;

/// What connections may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// How many there are at once. Beyond, one that has no complete request is closed; if each has one, the next waits
    /// to be accepted.
    connections: usize,
    /// How many of one peer. Beyond, the same holds for its own, but the next is closed.
    per_peer: usize,
    /// How long a client may take to send the head of its first request.
    head: Duration,
    /// How long a connection may be silent until the head of its next request has arrived.
    silence: Duration,
    /// How long clients may take to finish their requests once the server is told to stop.
    drain: Duration,
}

/// Twice what waits for the writer by default; some 20 KiB each.
const CONNECTIONS: usize = 8192;
/// Enough for a slow TLS proxy, or a packet that is lost three times.
const HEAD: Duration = Duration::from_secs(10);
/// Longer than proxies commonly leave connections idle (60 s): they should be the ones to close them, since
/// a request may be on its way meanwhile.
const SILENCE: Duration = Duration::from_secs(75);
/// How often is looked whether a connection may be closed for the next one, when none could.
const LOOK: Duration = Duration::from_millis(20);
/// How often at most is logged that connections are closed for others.
const LOG: Duration = Duration::from_secs(10);

impl Bounds {
    /// Those of the listener for clients.
    pub(crate) fn of_clients(per_peer: usize, drain: Duration) -> Self {
        let connections = descriptors::connections(CONNECTIONS);
        Self { connections, per_peer, head: HEAD, silence: SILENCE, drain }
    }

    /// Those of the listener for health checks, which few ask, each at once.
    pub(crate) fn of_health_checks() -> Self {
        Self { connections: 64, per_peer: 64, head: HEAD, silence: SILENCE, drain: Duration::from_secs(1) }
    }
}

/// Serves until told to stop, then answers what it has taken in. A client that has not finished its
/// request by the end of `drain` is cut off: it has no answer, and nothing of it was kept.
pub(crate) async fn serve(
    bounds: Bounds,
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let server = Server { bounds, router, stop, connections: Connections::new(), closed: Closed::default() };
    server.run(listener).await;
    Ok(())
}

struct Server {
    bounds: Bounds,
    router: Router,
    stop: CancellationToken,
    connections: Connections,
    closed: Closed,
}

impl Server {
    async fn run(mut self, mut listener: TcpListener) {
        let stop = self.stop.clone();
        loop {
            // In any order: neither those that end nor those that come may keep the others waiting.
            tokio::select! {
                () = stop.cancelled() => break,
                Some(()) = self.connections.ended() => {}
                (stream, address) = Listener::accept(&mut listener) => {
                    if stop.run_until_cancelled(self.accept(stream, address)).await.is_none() {
                        break;
                    }
                }
            }
        }
        drop(listener);
        let all_ended = async { while self.connections.ended().await.is_some() {} };
        if timeout(self.bounds.drain, all_ended).await.is_err() {
            tracing::warn!(drain = ?self.bounds.drain, "cut off clients that had not finished their requests");
        }
    }

    /// Serves a connection, as soon as there is a place for it.
    async fn accept(&mut self, stream: TcpStream, address: SocketAddr) {
        let peer = peer(address.ip());
        if self.connections.of(peer) >= self.bounds.per_peer && !self.shed(Some(peer)) {
            self.closed.add(1);
            return;
        }
        while self.connections.len() >= self.bounds.connections && !self.shed(None) {
            tokio::select! {
                _ = self.connections.ended() => {}
                () = sleep(LOOK) => {}
            }
        }
        let (router, stop, bounds) = (self.router.clone(), self.stop.clone(), self.bounds);
        let address = Peer(address.ip());
        self.connections.add(peer, |standing| connect(stream, address, router, stop, bounds, standing));
    }

    /// Closes some connections, if that can be.
    fn shed(&mut self, peer: Option<IpAddr>) -> bool {
        let closed = self.connections.shed(peer);
        self.closed.add(closed);
        closed > 0
    }
}

/// Logs, now and then, how many connections were closed for others.
#[derive(Default)]
struct Closed {
    since: usize,
    logged_at: Option<Instant>,
}

impl Closed {
    fn add(&mut self, connections: usize) {
        self.since += connections;
        if self.since > 0 && self.logged_at.is_none_or(|at| at.elapsed() >= LOG) {
            tracing::warn!(
                event = "connections_closed",
                connections = self.since,
                "closed connections without a request, or beyond the bound of their address, to keep room for others"
            );
            *self = Self { since: 0, logged_at: Some(Instant::now()) };
        }
    }
}

/// Speaks HTTP/1 or HTTP/2 with a client, until it goes, is silent for too long, or has the answer to what
/// it sent before the stop.
async fn connect(
    stream: TcpStream,
    address: Peer,
    router: Router,
    stop: CancellationToken,
    bounds: Bounds,
    standing: Arc<Standing>,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(bounds.silence).max_buf_size(HEADERS);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(bounds.silence);
    builder.http2().max_header_list_size(u32::try_from(HEADERS).unwrap_or(u32::MAX));
    let heard = CancellationToken::new();
    let on_request = heard.clone();
    let service = tower::service_fn(move |mut request: Request<_>| {
        on_request.cancel();
        request.extensions_mut().insert(address);
        let turn = Turn::new(Arc::clone(&standing));
        let request = request.map(|body| Body::new(Arriving::new(body, Arc::clone(&turn))));
        let answer = router.clone().oneshot(request);
        async move {
            let _turn = turn;
            answer.await
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = pin!(connection);
    // hyper's own time-out begins only when it has seen which of the two versions it is.
    let never_heard = async {
        if timeout(bounds.head, heard.cancelled()).await.is_ok() {
            pending::<()>().await;
        }
    };
    // However a connection ends, it is only its client's business.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = never_heard => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// The most that is kept of a head before it is complete: above the limit of [`head`](super::head), so that the answer
/// is a problem.
const HEADERS: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::Ipv4Addr;

    use axum::routing::{get, post};
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpSocket;
    use tokio::sync::Semaphore;
    use tokio::task::JoinHandle;

    use super::*;

    /// For whatever is to happen; it happens within milliseconds.
    const SOON: Duration = Duration::from_secs(30);
    /// Far longer than a test.
    const LONG: Duration = Duration::from_hours(1);
    const BOUNDS: Bounds = Bounds { connections: 10, per_peer: 10, head: LONG, silence: LONG, drain: LONG };

    /// Requests for `/slow`: how many have come to be answered, and how many may be.
    struct Slow {
        begun: Semaphore,
        answers: Semaphore,
    }

    impl Slow {
        /// A connection with such a request, which has begun to be answered.
        async fn request(&self, address: SocketAddr) -> TcpStream {
            let head = b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            let client = sent(address, head).await;
            timeout(SOON, self.begun.acquire()).await.expect("it begins").unwrap().forget();
            client
        }
    }

    /// A server with the paths `/slow` and `/post`.
    async fn slow_server(bounds: Bounds) -> (CancellationToken, SocketAddr, Arc<Slow>) {
        let slow = Arc::new(Slow { begun: Semaphore::new(0), answers: Semaphore::new(0) });
        let handler = {
            let slow = Arc::clone(&slow);
            move || {
                let slow = Arc::clone(&slow);
                async move {
                    slow.begun.add_permits(1);
                    slow.answers.acquire().await.unwrap().forget();
                    "hello"
                }
            }
        };
        let router = Router::new().route("/", get(async || "hello")).route("/slow", get(handler));
        let router = router.route("/post", post(async |body: Bytes| body));
        let (_, stop, address) = serving(bounds, router).await;
        (stop, address, slow)
    }

    async fn server(bounds: Bounds) -> (JoinHandle<()>, CancellationToken, SocketAddr) {
        serving(bounds, Router::new().route("/", get(async || "hello"))).await
    }

    async fn serving(bounds: Bounds, router: Router) -> (JoinHandle<()>, CancellationToken, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let until = stop.clone();
        let server = tokio::spawn(async move { serve(bounds, listener, router, until).await.unwrap() });
        (server, stop, address)
    }

    /// All that a client gets until the server closes.
    async fn rest(mut client: TcpStream) -> io::Result<String> {
        let mut text = String::new();
        timeout(SOON, client.read_to_string(&mut text)).await.expect("the server closes")?;
        Ok(text)
    }

    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    /// Asks, and waits for the whole answer; the connection stays.
    async fn ask(client: &mut TcpStream) {
        client.write_all(GET).await.unwrap();
        let mut answer = Vec::new();
        let answered =
            async { while !answer.ends_with(b"hello") && client.read_buf(&mut answer).await.unwrap() > 0 {} };
        timeout(SOON, answered).await.expect("an answer");
    }

    /// Connects from another address of this machine.
    async fn connect_from(last: u8, address: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into()).unwrap();
        socket.connect(address).await.unwrap()
    }

    /// A connection on which a client has sent this.
    async fn sent(address: SocketAddr, bytes: &[u8]) -> TcpStream {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(bytes).await.unwrap();
        client
    }

    #[tokio::test]
    async fn clients_that_finish_no_request_keep_nobody_out() {
        let (_stop, address, _) = slow_server(BOUNDS).await;
        let stalled: &[&[u8]] =
            &[b"", b"GET / HTTP/1.1\r\n", b"POST /post HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"];
        for bytes in stalled {
            let mut clients = Vec::new();
            for _ in 0..3 * BOUNDS.connections {
                clients.push(sent(address, bytes).await);
            }
            ask(&mut TcpStream::connect(address).await.unwrap()).await;
            let first = clients.swap_remove(0);
            // Reset, where it had sent what nobody read.
            assert_eq!(rest(first).await.unwrap_or_default(), "");
        }
    }

    #[tokio::test]
    async fn while_all_are_being_answered_the_next_waits() {
        let (_stop, address, slow) = slow_server(Bounds { connections: 1, ..BOUNDS }).await;
        let first = slow.request(address).await;
        let second = sent(address, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        slow.answers.add_permits(1);
        for client in [first, second] {
            assert!(rest(client).await.unwrap().ends_with("hello"));
        }
    }

    #[tokio::test]
    async fn an_address_has_its_bound_and_others_are_served() {
        let (_stop, address, slow) = slow_server(Bounds { per_peer: 2, ..BOUNDS }).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        ask(&mut idle).await;
        let first = slow.request(address).await;
        // One that is idle gives way; of two that are not, neither does.
        let second = slow.request(address).await;
        assert_eq!(rest(idle).await.unwrap(), "");
        assert_eq!(rest(TcpStream::connect(address).await.unwrap()).await.unwrap_or_default(), "");
        ask(&mut connect_from(2, address).await).await;
        slow.answers.add_permits(2);
        for client in [first, second] {
            assert!(rest(client).await.unwrap().ends_with("hello"));
        }
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_head_is_cut_off() {
        let (_running, _stop, address) =
            server(Bounds { head: Duration::from_millis(50), silence: Duration::from_millis(50), ..BOUNDS })
                .await;
        for beginning in
            ["", "P", "GET / HTTP/1.1\r\nhost:", "GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\n"]
        {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(beginning.as_bytes()).await.unwrap();
            let answer = rest(client).await.unwrap();
            let is_answered = beginning.matches("GET").count() == 2;
            assert_eq!(answer.ends_with("hello"), is_answered, "{beginning:?}: {answer}");
        }
    }

    /// What a client hears that sends such a head, all of it or up to where it is cut off.
    async fn answer_to(head: String, address: SocketAddr) -> String {
        let mut client = TcpStream::connect(address).await.unwrap();
        // The server does not wait for the end of what it will not read.
        let _ = timeout(SOON, client.write_all(head.as_bytes())).await.expect("the server reads or closes");
        let mut answer = Vec::new();
        let closed = async { while let Ok(1..) = client.read_buf(&mut answer).await {} };
        timeout(SOON, closed).await.expect("the server closes");
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_to_be_read_is_refused_without_a_body() {
        let (_running, _stop, address) = server(BOUNDS).await;
        let large = "x".repeat(1 << 20);
        for (head, status) in [
            (format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(100)), "431"),
            (format!("GET / HTTP/1.1\r\nhost: x\r\na: {large}\r\n\r\n"), "431"),
            (format!("GET / HTTP/1.1\r\nhost: x\r\na: {large}"), "431"),
            (format!("GET /{large}"), "431"),
            (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", &large[..70_000]), "431"),
        ] {
            let answer = answer_to(head, address).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer:?}");
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.contains("connection: close") && head.contains("content-length: 0"), "{head}");
            assert_eq!(body, "");
        }
        let most = format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{}\r\n", "a: b\r\n".repeat(98));
        assert!(answer_to(most, address).await.starts_with("HTTP/1.1 200 OK"));
    }

    #[tokio::test]
    async fn at_the_stop_clients_that_ask_for_nothing_are_let_go_at_once() {
        let (running, stop, address) = server(BOUNDS).await;
        let silent = TcpStream::connect(address).await.unwrap();
        let mut idle = TcpStream::connect(address).await.unwrap();
        ask(&mut idle).await;
        stop.cancel();
        timeout(SOON, running).await.expect("the server ends").unwrap();
        for client in [silent, idle] {
            assert_eq!(rest(client).await.unwrap(), "");
        }
    }

    #[tokio::test]
    async fn at_the_stop_a_client_that_does_not_finish_is_cut_off_when_patience_ends() {
        let (running, stop, address) = server(Bounds { drain: Duration::from_millis(50), ..BOUNDS }).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        // Who is served now came after it.
        ask(&mut TcpStream::connect(address).await.unwrap()).await;
        stop.cancel();
        timeout(SOON, running).await.expect("the server ends").unwrap();
        // Closed, or reset with what was never read.
        let _ = rest(slow).await;
    }
}
