//! A third party that fails on demand and records all calls.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use throughline_snowflake::RequestId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::watch::Watch;

/// Short, so that an outage of the token endpoint has an effect.
const TOKEN_LIFETIME: Duration = Duration::from_secs(4);
/// How long a token is still accepted after its stated expiry.
const TOKEN_LEEWAY: Duration = Duration::from_secs(1);

/// Duration of a call to `/slow` with [`Wish::Linger`]: longer than a rebalance of a group usually takes.
pub(crate) const SLOW: Duration = Duration::from_secs(25);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Names the calling process of dispatch.
const PROCESS: HeaderName = HeaderName::from_static("x-process");

/// The behaviour of `/three` and `/strict`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Answers within some 100 ms, as each body requests.
    Fine,
    /// 503.
    Unavailable,
    /// 503 with `Retry-After`.
    Later,
    /// 429 with `Retry-After`.
    TooMany,
    /// Takes the request and never answers.
    BlackHole,
    /// Takes the request and resets the connection.
    Reset,
    /// Some answers take almost as long as the timeout; the others never arrive.
    Treacle,
}

/// The behaviour of the token endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenMood {
    Fine,
    /// 503.
    Down,
    /// Takes the request and resets the connection.
    Reset,
}

/// The answer that a client requests from the third party, in its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Wish {
    /// 200.
    Accept,
    /// 503 the first time, then 200.
    Stumble,
    /// 400.
    Reject,
    /// 200 after [`SLOW`], at `/slow`.
    Linger,
}

/// One call to one of the destinations.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Its `Idempotency-Key`; `None` if this is not a request id.
    pub(crate) id: Option<RequestId>,
    /// Unique text in its body.
    pub(crate) prompt: Option<String>,
    pub(crate) destination: Destination,
    /// The process of dispatch that made it.
    pub(crate) process: Option<String>,
    pub(crate) began: Duration,
    /// The time and the status of the answer, if any.
    pub(crate) answered: Option<(Duration, StatusCode)>,
    /// When it was answered, or when the caller gave up or exited.
    pub(crate) ended: Option<Duration>,
}

/// The called endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// `/three`, whose answers depend on the mood.
    Three,
    /// `/strict`, likewise.
    Strict,
    /// `/slow`, which takes [`SLOW`] for a call whose body requests it, and answers 503 while it is closed.
    Slow,
    /// `/perishable`, which answers 503 while it is closed.
    Perishable,
}

/// The third party, which ends when dropped.
pub(crate) struct ThirdParty {
    address: SocketAddr,
    desk: Arc<Desk>,
    _server: JoinSet<()>,
}

struct Desk {
    watch: Watch,
    mood: Mutex<Mood>,
    token_mood: Mutex<TokenMood>,
    /// Whether `/slow` and `/perishable` answer 503.
    is_closed: AtomicBool,
    /// The expiry of each token.
    tokens: Mutex<HashMap<String, Duration>>,
    /// Requests that have already received their 503.
    stumbled: Mutex<HashSet<RequestId>>,
    calls: Mutex<Vec<Call>>,
}

#[derive(Deserialize)]
struct Body {
    wish: Wish,
    prompt: String,
}

impl ThirdParty {
    pub(crate) async fn open(watch: Watch) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let desk = Arc::new(Desk {
            watch,
            mood: Mutex::new(Mood::Fine),
            token_mood: Mutex::new(TokenMood::Fine),
            is_closed: AtomicBool::new(false),
            tokens: Mutex::default(),
            stumbled: Mutex::default(),
            calls: Mutex::default(),
        });
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::clone(&desk)));
        Ok(Self { address, desk, _server: server })
    }

    /// Its base URL, without a trailing slash.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn be(&self, mood: Mood) {
        *lock(&self.desk.mood) = mood;
    }

    pub(crate) fn give_tokens(&self, mood: TokenMood) {
        *lock(&self.desk.token_mood) = mood;
    }

    /// Closes or opens `/slow` and `/perishable`.
    pub(crate) fn close_shop(&self, is_closed: bool) {
        self.desk.is_closed.store(is_closed, Ordering::Relaxed);
    }

    /// The number of matching calls so far.
    pub(crate) fn count(&self, is_meant: impl Fn(&Call) -> bool) -> usize {
        lock(&self.desk.calls).iter().filter(|call| is_meant(call)).count()
    }

    /// All calls so far, in the order in which they began.
    pub(crate) fn calls(&self) -> Vec<Call> {
        lock(&self.desk.calls).clone()
    }
}

async fn serve(listener: TcpListener, desk: Arc<Desk>) {
    let mut conversations = JoinSet::new();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            conversations.spawn(converse(stream, Arc::clone(&desk)));
        }
        while conversations.try_join_next().is_some() {}
    }
}

async fn converse(stream: TcpStream, desk: Arc<Desk>) {
    let hang_up = Notify::new();
    let service = service_fn(async |request| Ok::<_, Infallible>(desk.receive(request, &hang_up).await));
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // Errors are ignored: only the other side ends the connection.
        _ = &mut connection => {}
        () = hang_up.notified() => {
            // Closing without lingering resets the connection. If the option cannot be set, the connection just closes.
            let _ = connection.into_parts().io.into_inner().set_zero_linger();
        }
    }
}

type Answer = Response<Full<Bytes>>;

impl Desk {
    async fn receive(&self, request: Request<Incoming>, hang_up: &Notify) -> Answer {
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return never().await };
        let destination = match head.uri.path() {
            "/three" => Some(Destination::Three),
            "/strict" => Some(Destination::Strict),
            "/slow" => Some(Destination::Slow),
            "/perishable" => Some(Destination::Perishable),
            _ => None,
        };
        let answer = match destination {
            Some(destination) => self.take(destination, &head.headers, &body.to_bytes()).await,
            None => self.token(),
        };
        if let Some(answer) = answer {
            answer
        } else {
            hang_up.notify_one();
            never().await
        }
    }

    /// `None` resets the connection.
    fn token(&self) -> Option<Answer> {
        match *lock(&self.token_mood) {
            TokenMood::Fine => {}
            TokenMood::Down => return Some(empty(StatusCode::SERVICE_UNAVAILABLE)),
            TokenMood::Reset => return None,
        }
        let mut tokens = lock(&self.tokens);
        let token = format!("token-number-{}", tokens.len() + 1);
        tokens.insert(token.clone(), self.watch.now() + TOKEN_LIFETIME + TOKEN_LEEWAY);
        let lifetime = TOKEN_LIFETIME.as_secs();
        let json = format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":{lifetime}}}"#);
        let mut answer = Response::new(Full::from(json));
        answer.headers_mut().insert(CONTENT_TYPE, const { value("application/json") });
        Some(answer)
    }

    /// `None` resets the connection.
    async fn take(&self, destination: Destination, headers: &HeaderMap, body: &[u8]) -> Option<Answer> {
        let id = headers.get(IDEMPOTENCY_KEY).and_then(|id| id.to_str().ok()?.parse().ok());
        let body: Option<Body> = serde_json::from_slice(body).ok();
        let index = self.note(Call {
            id,
            prompt: body.as_ref().map(|body| body.prompt.clone()),
            destination,
            process: headers.get(PROCESS).and_then(|name| Some(name.to_str().ok()?.to_owned())),
            began: self.watch.now(),
            answered: None,
            ended: None,
        });
        let _end = End { desk: self, index };
        let answer = if self.knows(headers) {
            self.judge(destination, id, body.as_ref()).await?
        } else {
            empty(StatusCode::UNAUTHORIZED)
        };
        if let Some(call) = lock(&self.calls).get_mut(index) {
            call.answered = Some((self.watch.now(), answer.status()));
        }
        Some(answer)
    }

    fn note(&self, call: Call) -> usize {
        let mut calls = lock(&self.calls);
        calls.push(call);
        calls.len() - 1
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let authorization = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
        let good_until = token.and_then(|token| lock(&self.tokens).get(token).copied());
        good_until.is_some_and(|until| self.watch.now() < until)
    }

    /// `None` resets the connection.
    async fn judge(
        &self,
        destination: Destination,
        id: Option<RequestId>,
        body: Option<&Body>,
    ) -> Option<Answer> {
        match destination {
            Destination::Three | Destination::Strict => self.judge_by_mood(id, body).await,
            Destination::Slow | Destination::Perishable if self.is_closed.load(Ordering::Relaxed) => {
                Some(empty(StatusCode::SERVICE_UNAVAILABLE))
            }
            Destination::Slow => {
                if body.is_some_and(|body| body.wish == Wish::Linger) {
                    sleep(SLOW).await;
                }
                Some(self.grant(id, body))
            }
            Destination::Perishable => Some(self.grant(id, body)),
        }
    }

    async fn judge_by_mood(&self, id: Option<RequestId>, body: Option<&Body>) -> Option<Answer> {
        // Differs for each request, but is the same in each run.
        let dice = id.map_or(0, RequestId::as_i64).unsigned_abs() % 101;
        let mood = *lock(&self.mood);
        match mood {
            Mood::Fine => {
                sleep(Duration::from_millis(50 + dice)).await;
                Some(self.grant(id, body))
            }
            Mood::Unavailable => Some(empty(StatusCode::SERVICE_UNAVAILABLE)),
            Mood::Later => Some(later(StatusCode::SERVICE_UNAVAILABLE)),
            Mood::TooMany => Some(later(StatusCode::TOO_MANY_REQUESTS)),
            Mood::Reset => None,
            Mood::Treacle if dice < 70 => {
                sleep(Duration::from_millis(500 + 20 * dice)).await;
                Some(self.grant(id, body))
            }
            Mood::BlackHole | Mood::Treacle => never().await,
        }
    }

    fn grant(&self, id: Option<RequestId>, body: Option<&Body>) -> Answer {
        let Some(Body { wish, .. }) = body else { return empty(StatusCode::BAD_REQUEST) };
        let status = match (wish, id) {
            (Wish::Stumble, Some(id)) if lock(&self.stumbled).insert(id) => StatusCode::SERVICE_UNAVAILABLE,
            (Wish::Accept | Wish::Stumble | Wish::Linger, _) => StatusCode::OK,
            (Wish::Reject, _) => StatusCode::BAD_REQUEST,
        };
        empty(status)
    }
}

/// Records the end of a call. hyper drops the call when the connection of its caller breaks.
struct End<'a> {
    desk: &'a Desk,
    index: usize,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if let Some(call) = lock(&self.desk.calls).get_mut(self.index) {
            call.ended = Some(self.desk.watch.now());
        }
    }
}

/// Never answers; ends when the caller closes the connection.
async fn never<T>() -> T {
    std::future::pending().await
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

fn later(status: StatusCode) -> Answer {
    let mut answer = empty(status);
    answer.headers_mut().insert(RETRY_AFTER, const { value("1") });
    answer
}

const fn value(text: &'static str) -> hyper::header::HeaderValue {
    hyper::header::HeaderValue::from_static(text)
}

impl fmt::Display for Mood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fine => "works",
            Self::Unavailable => "answers 503",
            Self::Later => "answers 503 with Retry-After",
            Self::TooMany => "answers 429",
            Self::BlackHole => "never answers",
            Self::Reset => "resets connections",
            Self::Treacle => "is extremely slow",
        })
    }
}

impl fmt::Display for TokenMood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fine => "works",
            Self::Down => "answers 503",
            Self::Reset => "resets connections",
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
