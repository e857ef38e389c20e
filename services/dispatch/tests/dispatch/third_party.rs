//! Third parties that behave, and some that do not.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

/// A destination for each test, most of them at `third`.
pub(crate) fn routes(third: &str) -> Value {
    let Value::Object(mut routes) = usual(third) else { unreachable!() };
    let Value::Object(others) = resilient(third) else { unreachable!() };
    routes.extend(others);
    routes.into()
}

fn client(third: &str, name: &str) -> Value {
    json!({"token_url": format!("{third}/token/{name}"), "client_id": name, "client_secret": "s3cret"})
}

fn usual(third: &str) -> Value {
    let client = |name| client(third, name);
    json!({
        "transformed": {
            "url": format!("{third}/transformed"),
            "headers": {"language": "en"},
            "filter": "{id: $id, route: $route, attempt: $attempt, accepted_at: $accepted_at, one_request: .}",
            "oauth2": client("transformed"),
        },
        "plain": {"url": format!("{third}/plain")},
        "configured": {"url": format!("{third}/configured"), "headers": {"content-type": "text/x-own"}},
        "traced": {"url": format!("{third}/traced")},
        "late": {"url": format!("{third}/late")},
        "repeated": {"url": format!("{third}/repeated")},
        "repeated-rejection": {"url": format!("{third}/repeated-rejection")},
        "replayed": {"url": format!("{third}/replayed")},
        "revoking": {"url": format!("{third}/revoking"), "oauth2": client("revoking")},
        "forbidding": {"url": format!("{third}/forbidding"), "oauth2": client("forbidding")},
        "many": {"url": format!("{third}/many"), "oauth2": client("many")},
        "ordered": {"url": format!("{third}/ordered")},
        "left": {"url": format!("{third}/left")},
        "right": {"url": format!("{third}/right")},
        "rejecting": {"url": format!("{third}/rejecting")},
        "refusing": {"url": format!("http://{}/?key=s3cret", unused())},
        "slow": {"url": format!("{third}/slow"), "timeout": "150ms"},
        "redirecting": {"url": format!("{third}/redirecting")},
        "untransformable": {"url": format!("{third}/untransformable"), "filter": ".a.b"},
        "running-away": {"url": format!("{third}/running-away"), "filter": "[range(1e9) | [.]]"},
        "beside": {"url": format!("{third}/beside"), "filter": "{beside: .}"},
        "untrusted": {"url": format!("https://localhost:{}/", untrusted().port())},
        "plaintext": {"url": format!("{third}/plaintext").replace("http:", "https:")},
        "endless": {"url": format!("http://{}/", endless()), "response_limit": "4KiB"},
        "breaking": {"url": format!("http://{}/", breaking())},
        "large-header": {"url": format!("http://{}/", headed(format!("x: {}\r\n", "y".repeat(1 << 20))))},
        "many-headers": {"url": format!("http://{}/", headed("x: y\r\n".repeat(10_000)))},
        "no-status": {"url": format!("http://{}/", statusless())},
        "foreign": {"url": format!("{third}/foreign")},
        "readable": {"url": format!("{third}/readable")},
        "measured": {"url": format!("{third}/measured")},
        "counting-tokens": {"url": format!("{third}/counting-tokens"), "oauth2": client("counting-tokens")},
        "measured-tokenless": {"url": format!("{third}/tokenless"), "oauth2": client("measured-tokenless")},
    })
}

/// Where it matters what follows a failure.
fn resilient(third: &str) -> Value {
    let client = |name| client(third, name);
    json!({
        "failing": {"url": format!("{third}/failing")},
        "recovering": {"url": format!("{third}/recovering"), "retry": {"base": "10ms"}},
        "exhausting": {"url": format!("{third}/exhausting"), "retry": {"schedule": ["1h"]}},
        "expiring": {"url": format!("{third}/expiring")},
        "putting-off": {"url": format!("{third}/putting-off")},
        "dated": {"url": format!("{third}/dated")},
        "put-off-too-long": {"url": format!("{third}/put-off-too-long"), "retry": {"window": "1h"}},
        "flaky": {"url": format!("http://{}/", flaky())},
        "conflicting": {"url": format!("{third}/conflicting"), "statuses": {"409": "delivered"}},
        "ailing": {
            "url": format!("{third}/ailing"),
            "breaker": {"consecutive": 2, "open": "200ms", "probes": 1},
        },
        "reopening": {"url": format!("{third}/reopening"), "breaker": {"consecutive": 1, "open": "100ms"}},
        "failing-measured": {
            "url": format!("{third}/failing-measured"),
            "breaker": {"consecutive": 2, "open": "1h", "max_open": "1h"},
        },
        "unauthorised": {"url": format!("{third}/unauthorised"), "oauth2": client("unauthorised")},
        "patient": {"url": format!("{third}/patient"), "oauth2": client("patient")},
        "narrow": {"url": format!("http://{}/", crowded()), "limits": {"concurrency": 3, "max_wait": "30s"}},
        "full": {"url": format!("{third}/full"), "limits": {"concurrency": 1, "max_wait": "50ms"}},
        "paced": {"url": format!("{third}/paced"), "limits": {"rate": "5/s", "max_wait": "30s"}},
        "tokenless": {
            "url": format!("{third}/tokenless"),
            "oauth2": {
                "token_url": format!("http://{}/token", unused()),
                "client_id": "tokenless", "client_secret": "s3cret",
            },
        },
    })
}

/// An address without a listener: the port was free a moment ago.
fn unused() -> SocketAddr {
    listener().0
}

/// Answers 200 with a body that never ends.
fn endless() -> SocketAddr {
    answering(|mut connection| {
        read_request(&mut connection)?;
        write!(connection, "HTTP/1.1 200 OK\r\n\r\n")?;
        loop {
            connection.write_all(&[b'x'; 1024])?;
        }
    })
}

/// Answers 200 and breaks off in the middle of the body.
fn breaking() -> SocketAddr {
    answering(|mut connection| {
        read_request(&mut connection)?;
        write!(connection, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
    })
}

/// Answers 200 with these headers, and ends.
fn headed(headers: String) -> SocketAddr {
    answering(move |mut connection| {
        read_request(&mut connection)?;
        write!(connection, "HTTP/1.1 200 OK\r\n{headers}content-length: 0\r\n\r\n")
    })
}

/// The bytes that a client has read from [`statusless`].
pub(crate) static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Answers with a status line that never ends.
fn statusless() -> SocketAddr {
    answering(|mut connection| {
        read_request(&mut connection)?;
        write!(connection, "HTTP/1.1 200 ")?;
        loop {
            connection.write_all(&[b'x'; 1024])?;
            TAKEN.fetch_add(1024, Ordering::SeqCst);
        }
    })
}

/// Closes the first connection without a response, and answers on the others.
fn flaky() -> SocketAddr {
    let mut is_first = true;
    answering(move |mut connection| {
        read_request(&mut connection)?;
        if !std::mem::replace(&mut is_first, false) {
            write!(connection, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
        }
        Ok(())
    })
}

/// The most calls that [`crowded`] ever had at once.
pub(crate) static CROWD: AtomicUsize = AtomicUsize::new(0);

/// Takes a while for each call, many at once, and counts them.
fn crowded() -> SocketAddr {
    let (address, listener) = listener();
    let present = Arc::new(AtomicUsize::new(0));
    thread::spawn(move || {
        for connection in listener.incoming() {
            let (mut connection, present) = (connection.unwrap(), Arc::clone(&present));
            thread::spawn(move || {
                let _ = read_request(&mut connection);
                CROWD.fetch_max(present.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                #[expect(clippy::disallowed_methods, reason = "the third party is slow")]
                thread::sleep(Duration::from_millis(40));
                present.fetch_sub(1, Ordering::SeqCst);
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = connection.write_all(answer.as_bytes());
            });
        }
    });
    address
}

/// Presents a self-signed certificate.
fn untrusted() -> SocketAddr {
    let pem = include_bytes!("self-signed.pem");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(pem).unwrap()],
            PrivateKeyDer::from_pem_slice(pem).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    answering(move |mut connection| {
        let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).map_err(std::io::Error::other)?;
        tls.complete_io(&mut connection).map(|_| ())
    })
}

/// As much as comes at once: these requests are small.
fn read_request(connection: &mut TcpStream) -> std::io::Result<()> {
    connection.read(&mut [0; 4096]).map(|_| ())
}

/// Answers one connection after the other.
fn answering(mut answer: impl FnMut(TcpStream) -> std::io::Result<()> + Send + 'static) -> SocketAddr {
    let (address, listener) = listener();
    thread::spawn(move || {
        for connection in listener.incoming() {
            // The client closes the connection: that is tested here.
            let _ = answer(connection.unwrap());
        }
    });
    address
}

fn listener() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (listener.local_addr().unwrap(), listener)
}
