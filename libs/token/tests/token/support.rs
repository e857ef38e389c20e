//! A token endpoint, and a clock that advances on request.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use reqwest::redirect::Policy;
use serde_json::json;
use throughline_config::Secret;
use throughline_token::{AccessToken, Credentials, OAuth2, TokenError, Tokens};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

/// Longer than anything takes: what hangs fails.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) const SECRET: &str = "s3cr3t-of-the-client";

pub(crate) fn oauth2(token_url: &str) -> OAuth2 {
    OAuth2 {
        token_url: token_url.parse().unwrap(),
        client_id: "client".to_owned(),
        client_secret: Secret::from(SECRET),
        credentials: Credentials::Basic,
        scope: None,
        audience: None,
        parameters: BTreeMap::new(),
        timeout: Duration::from_secs(20),
    }
}

pub(crate) fn tokens() -> Tokens {
    Tokens::new(reqwest::Client::builder().redirect(Policy::none()).no_proxy().build().unwrap())
}

/// The token itself.
pub(crate) fn text(got: Result<AccessToken, TokenError>) -> String {
    let header = got.expect("there should be a token").authorization();
    header.to_str().unwrap().strip_prefix("Bearer ").unwrap().to_owned()
}

/// Passes the time until `since + elapsed`, at once. It is stopped from then on: no I/O until [`go_on`],
/// or time-outs fire.
pub(crate) async fn stop_at(since: Instant, elapsed: Duration) {
    tokio::time::pause();
    let then = since + elapsed;
    tokio::time::advance(then.checked_duration_since(Instant::now()).expect("the test is too slow")).await;
}

/// Lets time pass by itself again.
pub(crate) fn go_on() {
    tokio::time::resume();
}

pub(crate) async fn pass_until(since: Instant, elapsed: Duration) {
    stop_at(since, elapsed).await;
    go_on();
}

/// Waits until something has come about.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let mut look = tokio::time::interval(Duration::from_millis(2));
    let looking = async {
        while !is_so().await {
            look.tick().await;
        }
    };
    tokio::time::timeout(DEADLINE, looking).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// Gives tokens `t-1`, `t-2`, … until the test makes it fail.
pub(crate) struct Endpoint {
    pub(crate) server: MockServer,
}

impl Endpoint {
    /// Answers each request with the next answer, and with the last one from then on; None grants a token.
    pub(crate) async fn answering(expires_in: u64, answers: Vec<Option<ResponseTemplate>>) -> Self {
        let server = MockServer::start().await;
        let script = Script { expires_in, answers, asked: AtomicU32::new(0) };
        Mock::given(any()).respond_with(script).mount(&server).await;
        Self { server }
    }

    pub(crate) async fn granting(expires_in: u64) -> Self {
        Self::answering(expires_in, vec![None]).await
    }

    pub(crate) fn oauth2(&self) -> OAuth2 {
        oauth2(&format!("{}/token", self.server.uri()))
    }

    pub(crate) async fn requests(&self) -> Vec<Request> {
        self.server.received_requests().await.unwrap()
    }

    pub(crate) async fn asked(&self) -> usize {
        self.requests().await.len()
    }
}

struct Script {
    expires_in: u64,
    answers: Vec<Option<ResponseTemplate>>,
    asked: AtomicU32,
}

impl Respond for Script {
    fn respond(&self, _: &Request) -> ResponseTemplate {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        let answer = self.answers.get(asked as usize).or(self.answers.last()).unwrap();
        answer.clone().unwrap_or_else(|| {
            let token = format!("t-{}", asked + 1);
            ResponseTemplate::new(200).set_body_json(
                json!({"access_token": token, "token_type": "Bearer", "expires_in": self.expires_in}),
            )
        })
    }
}

/// A token endpoint that keeps every request waiting until it is let through.
pub(crate) struct Gate {
    arrivals: mpsc::UnboundedReceiver<()>,
    open: Arc<Semaphore>,
}

impl Gate {
    pub(crate) async fn shut() -> (Self, OAuth2) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let oauth2 = oauth2(&format!("http://{}/token", listener.local_addr().unwrap()));
        let (arrived, arrivals) = mpsc::unbounded_channel();
        let open = Arc::new(Semaphore::new(0));
        let gate = Arc::clone(&open);
        tokio::spawn(async move {
            for number in 1.. {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, number, arrived.clone(), Arc::clone(&gate)));
            }
        });
        (Self { arrivals, open }, oauth2)
    }

    /// Waits for a request.
    pub(crate) async fn arrival(&mut self) {
        tokio::time::timeout(DEADLINE, self.arrivals.recv()).await.expect("no request came");
    }

    /// Whether a request has arrived that no task awaits.
    pub(crate) fn has_another(&mut self) -> bool {
        self.arrivals.try_recv().is_ok()
    }

    /// Answers one request.
    pub(crate) fn let_through(&self) {
        self.open.add_permits(1);
    }
}

async fn serve(mut stream: TcpStream, number: u32, arrived: mpsc::UnboundedSender<()>, open: Arc<Semaphore>) {
    let mut request = String::new();
    while !request.ends_with("grant_type=client_credentials") {
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk).await.unwrap();
        assert!(length > 0, "the request ended early: {request}");
        request.push_str(std::str::from_utf8(&chunk[..length]).unwrap());
    }
    arrived.send(()).unwrap();
    open.acquire().await.unwrap().forget();
    let body = format!("{{\"access_token\":\"t-{number}\",\"expires_in\":3600}}");
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    // The receiver may be gone.
    let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
}
