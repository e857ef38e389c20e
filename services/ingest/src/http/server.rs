//! The server itself: connections, how many and how long, and their end.

use std::convert::Infallible;
use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// What connections may take.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// How many there are at once; who comes then waits to be accepted.
    connections: usize,
    /// How long one may be silent before its client has sent the head of a request, the first or the next.
    silence: Duration,
    /// How long clients may take to finish their requests once the server is told to stop.
    drain: Duration,
}

/// Twice what waits for the writer by default; some 20 KiB each.
const CONNECTIONS: usize = 8192;
/// Longer than proxies commonly leave connections idle (60 s): they should be the ones to close them, since
/// a request may be on its way meanwhile.
const SILENCE: Duration = Duration::from_secs(75);

/// Serves until told to stop, then answers what it has taken in. A client that has not finished its
/// request by the end of `drain` is cut off: it has no answer, and nothing of it was kept.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    drain: Duration,
) -> Result<(), Infallible> {
    let bounds = Bounds { connections: CONNECTIONS, silence: SILENCE, drain };
    serve_within(bounds, listener, router, stop).await;
    Ok(())
}

async fn serve_within(bounds: Bounds, mut listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (stream, _) = Listener::accept(&mut listener), if connections.len() < bounds.connections => {
                connections.spawn(connect(stream, router.clone(), stop.clone(), bounds.silence));
            }
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(bounds.drain, all_ended).await.is_err() {
        tracing::warn!(drain = ?bounds.drain, "cut off clients that had not finished their requests");
    }
}

/// Speaks HTTP/1 or HTTP/2 with a client, until it goes, is silent for too long, or has the answer to what
/// it sent before the stop.
async fn connect(stream: TcpStream, router: Router, stop: CancellationToken, silence: Duration) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(silence);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(silence).max_header_list_size(HEADERS);
    let heard = CancellationToken::new();
    let on_request = heard.clone();
    let router = router.map_request(move |request: Request<_>| {
        on_request.cancel();
        request
    });
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    // hyper's own time-out begins only when it has seen which of the two versions it is.
    let never_heard = async {
        if timeout(silence, heard.cancelled()).await.is_ok() {
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

/// HTTP/2's own limit: above that of [`head`](super::head), so that the answer is a problem.
const HEADERS: u32 = 128 << 10;

#[cfg(test)]
mod tests {
    use std::io;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// For whatever is to happen; it happens within milliseconds.
    const SOON: Duration = Duration::from_secs(30);
    /// Far longer than a test.
    const LONG: Duration = Duration::from_hours(1);
    const BOUNDS: Bounds = Bounds { connections: 10, silence: LONG, drain: LONG };

    /// A server, what stops it, and where it listens.
    async fn server(
        bounds: Bounds,
    ) -> (tokio::task::JoinHandle<()>, CancellationToken, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = Router::new().route("/", get(async || "hello"));
        let server = tokio::spawn(serve_within(bounds, listener, router, stop.clone()));
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

    #[tokio::test]
    async fn who_comes_when_there_are_enough_is_served_when_one_has_gone() {
        let (_running, _stop, address) = server(Bounds { connections: 1, ..BOUNDS }).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        ask(&mut first).await;
        let mut second = TcpStream::connect(address).await.unwrap();
        second.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        // The first is served again and again, the second not even heard.
        for _ in 0..20 {
            ask(&mut first).await;
        }
        assert_eq!(second.try_read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        assert!(rest(second).await.unwrap().starts_with("HTTP/1.1 200 OK"));
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_head_is_cut_off() {
        let (_running, _stop, address) =
            server(Bounds { silence: Duration::from_millis(50), ..BOUNDS }).await;
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
    async fn answer_to(head: String, address: std::net::SocketAddr) -> String {
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
            (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", &large[..70_000]), "414"),
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
