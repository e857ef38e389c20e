//! The server: accepts connections, limits their number and duration, and ends them.

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

use super::connections::{ActiveRequest, Arriving, ConnectionState, Connections, peer};
use super::descriptors;
use super::header_limits;
use super::protection::Peer;

/// The limits of connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Maximum number of connections. At the limit, a connection without a complete request is closed; if each has one,
    /// the next connection waits to be accepted.
    connections: usize,
    /// Maximum number of connections of one peer. At the limit, the same holds for the peer's connections, except that
    /// the next one is closed instead of waiting.
    per_peer: usize,
    /// How long a client may take to send the head of its first request.
    head: Duration,
    /// How long a connection may be silent before the head of its next request has arrived.
    silence: Duration,
    /// How long clients may take to finish their requests once the server stops.
    drain: Duration,
}

/// Twice the default length of the writer's queue; some 20 KiB per connection.
const CONNECTIONS: usize = 8192;
/// Enough for a slow TLS proxy, or for a packet that is lost three times.
const HEAD: Duration = Duration::from_secs(10);
/// Longer than proxies commonly leave connections idle (60 s): the proxy should close them, because a request may be on
/// its way when the server closes one.
const SILENCE: Duration = Duration::from_secs(75);
/// How often the server retries to close a connection for the next one, when none could be closed.
const LOOK: Duration = Duration::from_millis(20);
/// Minimum time between two log lines about connections that were closed for others.
const LOG: Duration = Duration::from_secs(10);

impl Bounds {
    /// Returns the limits of the listener for clients.
    pub(crate) fn of_clients(per_peer: usize, drain: Duration) -> Self {
        let connections = descriptors::connections(CONNECTIONS);
        Self { connections, per_peer, head: HEAD, silence: SILENCE, drain }
    }

    /// Returns the limits of the listener for health checks, which has few clients and answers each immediately.
    pub(crate) fn of_health_checks() -> Self {
        Self { connections: 64, per_peer: 64, head: HEAD, silence: SILENCE, drain: Duration::from_secs(1) }
    }
}

/// Serves until `stop`, then answers the requests that have arrived. A client that has not finished its request by the
/// end of `drain` is cut off: it gets no answer, and nothing of its request is stored.
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
            // In any order: neither ending nor arriving connections may delay the others.
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
            tracing::warn!(
                event = "connections.aborted", drain = ?self.bounds.drain,
                "cut off clients that had not finished their requests"
            );
        }
    }

    /// Serves a connection as soon as the limits permit it.
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
        self.connections.add(peer, |state| connect(stream, address, router, stop, bounds, state));
    }

    /// Closes some connections, if possible; returns whether any was closed.
    fn shed(&mut self, peer: Option<IpAddr>) -> bool {
        let closed = self.connections.shed(peer);
        self.closed.add(closed);
        closed > 0
    }
}

/// Logs, at most once in [`LOG`], how many connections were closed for others.
#[derive(Default)]
struct Closed {
    closed: usize,
    logged_at: Option<Instant>,
}

impl Closed {
    fn add(&mut self, connections: usize) {
        self.closed += connections;
        if self.closed > 0 && self.logged_at.is_none_or(|at| at.elapsed() >= LOG) {
            tracing::warn!(
                event = "connections.closed",
                connections = self.closed,
                "closed connections without a request, or beyond the bound of their address, to keep room for others"
            );
            *self = Self { closed: 0, logged_at: Some(Instant::now()) };
        }
    }
}

/// Serves a client over HTTP/1 or HTTP/2 until it disconnects, is silent for too long, or, after `stop`, has the
/// answers to the requests that it sent before.
async fn connect(
    stream: TcpStream,
    address: Peer,
    router: Router,
    stop: CancellationToken,
    bounds: Bounds,
    state: Arc<ConnectionState>,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(bounds.silence).max_buf_size(HEADERS);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(bounds.silence);
    builder.http2().max_header_list_size(u32::try_from(HEADERS).unwrap_or(u32::MAX));
    let request_arrived = CancellationToken::new();
    let on_request = request_arrived.clone();
    let service = tower::service_fn(move |mut request: Request<_>| {
        on_request.cancel();
        request.extensions_mut().insert(address);
        let active_request = ActiveRequest::new(Arc::clone(&state));
        let request = request.map(|body| Body::new(Arriving::new(body, Arc::clone(&active_request))));
        let answer = router.clone().oneshot(request);
        async move {
            let _active_request = active_request;
            answer.await
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut connection = pin!(connection);
    // hyper's own timeout begins only once it has detected which of the two versions the client uses.
    let no_request = async {
        if timeout(bounds.head, request_arrived.cancelled()).await.is_ok() {
            pending::<()>().await;
        }
    };
    // How a connection ends concerns only its client.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = no_request => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Maximum size of an incomplete head in memory, per connection: above the limit of [`head`](super::header_limits), so
/// that the answer is a problem.
const HEADERS: usize = header_limits::LIMIT + (4 << 10);

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

    /// Maximum time to wait for any condition, which holds within milliseconds.
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
    async fn clients_that_finish_no_request_do_not_block_other_clients() {
        let stalled: &[&[u8]] =
            &[b"", b"GET / HTTP/1.1\r\n", b"POST /post HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"];
        // Each of the two bounds alone.
        for bounds in [Bounds { per_peer: 1000, ..BOUNDS }, Bounds { connections: 1000, ..BOUNDS }] {
            let (_stop, address, _) = slow_server(bounds).await;
            for bytes in stalled {
                let mut clients = Vec::new();
                for _ in 0..30 {
                    clients.push(sent(address, bytes).await);
                }
                ask(&mut TcpStream::connect(address).await.unwrap()).await;
                let first = clients.swap_remove(0);
                // The server resets a connection with bytes that it has not read.
                assert_eq!(rest(first).await.unwrap_or_default(), "", "{bounds:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_connection_waits_while_all_others_are_being_answered() {
        let (_stop, address, slow) = slow_server(Bounds { connections: 1, ..BOUNDS }).await;
        let first = slow.request(address).await;
        let second = sent(address, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        slow.answers.add_permits(1);
        for client in [first, second] {
            assert!(rest(client).await.unwrap().ends_with("hello"));
        }
    }

    #[tokio::test]
    async fn an_address_at_its_connection_limit_does_not_affect_other_addresses() {
        let (_stop, address, slow) = slow_server(Bounds { per_peer: 2, ..BOUNDS }).await;
        // Of another address, and silent for longer than all of this one.
        let mut elsewhere = connect_from(3, address).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        ask(&mut idle).await;
        let first = slow.request(address).await;
        // One that is idle gives way; of two that are not, neither does.
        let second = slow.request(address).await;
        assert_eq!(rest(idle).await.unwrap(), "");
        assert_eq!(rest(TcpStream::connect(address).await.unwrap()).await.unwrap_or_default(), "");
        ask(&mut connect_from(2, address).await).await;
        ask(&mut elsewhere).await;
        slow.answers.add_permits(2);
        for client in [first, second] {
            assert!(rest(client).await.unwrap().ends_with("hello"));
        }
    }

    #[tokio::test]
    async fn a_client_that_never_completes_its_head_is_disconnected() {
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

    /// Returns the answer to a client that sends this head, complete or cut off.
    async fn answer_to(head: String, address: SocketAddr) -> String {
        let mut client = TcpStream::connect(address).await.unwrap();
        // The server does not wait for the end of a body that it will not read.
        let _ = timeout(SOON, client.write_all(head.as_bytes())).await.expect("the server reads or closes");
        let mut answer = Vec::new();
        let closed = async { while let Ok(1..) = client.read_buf(&mut answer).await {} };
        timeout(SOON, closed).await.expect("the server closes");
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn an_oversized_head_is_refused_without_a_body() {
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
    async fn shutdown_closes_connections_without_a_request_immediately() {
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
    async fn shutdown_disconnects_unfinished_clients_after_the_drain_time() {
        let (running, stop, address) = server(Bounds { drain: Duration::from_millis(50), ..BOUNDS }).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        // A client that is served now connected after it.
        ask(&mut TcpStream::connect(address).await.unwrap()).await;
        stop.cancel();
        timeout(SOON, running).await.expect("the server ends").unwrap();
        // Closed, or reset because of the unread bytes.
        let _ = rest(slow).await;
    }

    /// A request that outlives the server would keep its handler's state, and the writer waits for the end of that.
    #[tokio::test]
    async fn no_request_outlives_the_server() {
        for client in [reqwest::Client::builder(), reqwest::Client::builder().http2_prior_knowledge()] {
            let (held, begun) = (Arc::new(()), Arc::new(Semaphore::new(0)));
            let (left, on_request) = (Arc::downgrade(&held), Arc::clone(&begun));
            let handler = move || {
                let held = Arc::clone(&held);
                on_request.add_permits(1);
                async move {
                    pending::<()>().await;
                    drop(held);
                }
            };
            let bounds = Bounds { drain: Duration::from_millis(50), ..BOUNDS };
            let (running, stop, address) = serving(bounds, Router::new().route("/", get(handler))).await;
            let request = client.build().unwrap().get(format!("http://{address}/"));
            let request = tokio::spawn(request.send());
            timeout(SOON, begun.acquire()).await.expect("the request begins").unwrap().forget();
            stop.cancel();
            timeout(SOON, running).await.expect("the server ends").unwrap();
            assert!(timeout(SOON, request).await.expect("the client is cut off").unwrap().is_err());
            let released = async {
                while left.strong_count() > 0 {
                    tokio::task::yield_now().await;
                }
            };
            timeout(SOON, released).await.expect("nothing holds the handler");
        }
    }
}
