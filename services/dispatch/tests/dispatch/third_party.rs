//! Third parties that behave, and some that do not.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

/// A destination for each test, most of them at `third`.
pub(crate) fn routes(third: &str) -> Value {
    let client = |name: &str| json!({"token_url": format!("{third}/token/{name}"), "client_id": name, "client_secret": "s3cret"});
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
        "revoking": {"url": format!("{third}/revoking"), "oauth2": client("revoking")},
        "forbidding": {"url": format!("{third}/forbidding"), "oauth2": client("forbidding")},
        "many": {"url": format!("{third}/many"), "oauth2": client("many")},
        "ordered": {"url": format!("{third}/ordered")},
        "left": {"url": format!("{third}/left")},
        "right": {"url": format!("{third}/right")},
        "rejecting": {"url": format!("{third}/rejecting")},
        "failing": {"url": format!("{third}/failing")},
        "refusing": {"url": format!("http://{}/?key=s3cret", nobody())},
        "slow": {"url": format!("{third}/slow"), "timeout": "150ms"},
        "redirecting": {"url": format!("{third}/redirecting")},
        "untransformable": {"url": format!("{third}/untransformable"), "filter": ".a.b"},
        "untrusted": {"url": format!("https://localhost:{}/", untrusted().port())},
        "plaintext": {"url": format!("{third}/plaintext").replace("http:", "https:")},
        "endless": {"url": format!("http://{}/", endless()), "response_limit": "4KiB"},
        "breaking": {"url": format!("http://{}/", breaking())},
        "tokenless": {
            "url": format!("{third}/tokenless"),
            "oauth2": {
                "token_url": format!("http://{}/token", nobody()),
                "client_id": "tokenless", "client_secret": "s3cret",
            },
        },
        "foreign": {"url": format!("{third}/foreign")},
        "readable": {"url": format!("{third}/readable")},
    })
}

/// An address where nobody listens: the port was free a moment ago.
fn nobody() -> SocketAddr {
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

/// Shows a certificate that nobody signed.
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
fn answering(answer: impl Fn(TcpStream) -> std::io::Result<()> + Send + 'static) -> SocketAddr {
    let (address, listener) = listener();
    thread::spawn(move || {
        for connection in listener.incoming() {
            // The other side hangs up, which is what the test is about.
            let _ = answer(connection.unwrap());
        }
    });
    address
}

fn listener() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (listener.local_addr().unwrap(), listener)
}
