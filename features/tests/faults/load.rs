//! Clients that post continuously, also during faults.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use serde::Serialize;
use throughline_snowflake::RequestId;
use throughline_testkit::Service;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::cast::{REPLICAS, Replica};
use crate::third_party::Wish;
use crate::watch::Watch;

/// Number of concurrent clients; each posts one request after the other.
const CLIENTS: u32 = 16;
/// Number of ordering keys of a client.
const ACCOUNTS: u32 = 4;

/// The route whose requests are delivered in strict order.
const STRICT: &str = "/strict";
/// Number of clients that post to it beside the others, each with an ordering key of its own.
const STRICT_CLIENTS: u32 = 4;
/// Time between the requests of one of them. It is long, because after an outage a queue empties one delivery at a time.
const STRICT_EVERY: Duration = Duration::from_secs(2);

/// Number of tries before a client gives up on a request.
const TRIES: u32 = 6;
/// The increase of the pause after each try.
const PAUSE: Duration = Duration::from_millis(400);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout for a response: covers ingest's own timeouts for body and commit, and a busy machine.
const TIMEOUT: Duration = Duration::from_secs(6);
/// How long clients avoid a replica that did not respond, if there is another.
const AVOIDED: Duration = Duration::from_secs(3);

/// A posted request, with all its tries.
#[derive(Clone, Debug)]
pub(crate) struct Posted {
    /// Its `Idempotency-Key`.
    pub(crate) key: String,
    /// Its ordering key.
    pub(crate) account: Option<String>,
    /// Whether its route keeps strict order.
    pub(crate) is_strict: bool,
    pub(crate) wish: Wish,
    /// The id from the 201 response, if any.
    pub(crate) id: Option<RequestId>,
    /// The time of this response.
    pub(crate) at: Duration,
    /// The process that made the id; known only if the first try returned it, because an earlier try may have created it.
    pub(crate) made_by: Option<Maker>,
}

/// An ingest process, which makes ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Maker {
    /// The number of the ingest replica, from 0.
    pub(crate) door: usize,
    /// The number of starts of this replica.
    pub(crate) life: u32,
}

/// An established connection without a response before the timeout.
#[derive(Clone, Debug)]
pub(crate) struct Silence {
    /// The number of the ingest replica, from 0.
    pub(crate) door: usize,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}

/// The observations of clients.
#[derive(Debug, Default)]
pub(crate) struct Experience {
    pub(crate) posted: Vec<Posted>,
    /// Times of responses 503, or 409 with `Retry-After`.
    pub(crate) refused: Vec<Duration>,
    /// Times of failed and broken connections.
    pub(crate) broken: Vec<Duration>,
    pub(crate) silences: Vec<Silence>,
    /// Unexpected responses.
    pub(crate) odd: Vec<String>,
}

/// The addresses of the ingest replicas. Clients still use the address of a replica that has exited, except for that of
/// the additional replica, which is removed.
#[derive(Debug, Default)]
pub(crate) struct Doors([Mutex<Door>; REPLICAS + 1]);

#[derive(Debug, Default)]
struct Door {
    address: Option<SocketAddr>,
    /// The number of starts of this replica.
    life: u32,
    avoided_until: Duration,
}

/// The running clients.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    clients: JoinSet<Experience>,
}

impl Load {
    /// Starts the clients, which together post `rate` requests per second, beside those in strict order.
    pub(crate) fn begin(watch: Watch, doors: &Arc<Doors>, rate: u32) -> anyhow::Result<Self> {
        let http = client()?;
        let (stop, accepted) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut clients = JoinSet::new();
        let common = (0..CLIENTS).map(|number| (number, "client", "/one"));
        let strict = (0..STRICT_CLIENTS).map(|number| (number, "strict-client", STRICT));
        for (number, name, path) in common.chain(strict) {
            let client = Client {
                number,
                name: format!("{name}-{number}"),
                path,
                watch,
                http: http.clone(),
                doors: Arc::clone(doors),
                accepted: Arc::clone(&accepted),
                seen: Experience::default(),
            };
            let every = if path == STRICT { STRICT_EVERY } else { Duration::from_secs(1) * CLIENTS / rate };
            clients.spawn(client.run(every, Arc::clone(&stop)));
        }
        Ok(Self { stop, accepted, clients })
    }

    /// The number of requests accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Stops the clients after their current requests.
    pub(crate) async fn end(self) -> Experience {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Experience::default();
        for seen in self.clients.join_all().await {
            all.add(seen);
        }
        all
    }
}

impl Experience {
    pub(crate) fn add(&mut self, other: Self) {
        self.posted.extend(other.posted);
        self.refused.extend(other.refused);
        self.broken.extend(other.broken);
        self.silences.extend(other.silences);
        self.odd.extend(other.odd);
    }
}

/// Posts requests with one wish to `path` in addition to the load, and returns when each of them was accepted or given
/// up. `name` makes their `Idempotency-Key`s unique.
pub(crate) async fn burst(
    watch: Watch,
    doors: &Arc<Doors>,
    name: &str,
    path: &'static str,
    wish: Wish,
    count: u32,
) -> anyhow::Result<Experience> {
    let http = client()?;
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS.min(count) {
        let mut client = Client {
            number,
            name: format!("{name}-{number}"),
            path,
            watch,
            http: http.clone(),
            doors: Arc::clone(doors),
            accepted: Arc::default(),
            seen: Experience::default(),
        };
        let share = (number..count).step_by(CLIENTS as usize);
        clients.spawn(async move {
            for number in share {
                let posted = client.post_plain(number, wish).await;
                client.seen.posted.push(posted);
            }
            client.seen
        });
    }
    let mut all = Experience::default();
    for seen in clients.join_all().await {
        all.add(seen);
    }
    Ok(all)
}

fn client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).timeout(TIMEOUT).build()
}

impl Doors {
    /// Records that an ingest replica listens at an address.
    pub(crate) fn open(&self, door: usize, address: SocketAddr) {
        let mut door = self.door(door);
        *door = Door { address: Some(address), life: door.life + 1, avoided_until: Duration::ZERO };
    }

    /// Removes the address of the additional replica before it leaves.
    pub(crate) fn give_up(&self, replica: Replica) {
        if replica == Replica::newcomer(Service::Ingest) {
            self.door(replica.number).address = None;
        }
    }

    /// Returns the preferred replica, unless it is avoided and another one is not.
    fn choose(&self, preferred: usize, now: Duration) -> Option<(Maker, SocketAddr)> {
        let maker = |number: usize| {
            let door = self.door(number);
            Some((Maker { door: number, life: door.life }, door.address?))
        };
        let mut open: Vec<_> = (0..self.0.len()).filter_map(maker).collect();
        let first = preferred.checked_rem(open.len())?;
        open.rotate_left(first);
        let well = open.iter().find(|(maker, _)| now >= self.door(maker.door).avoided_until);
        well.or_else(|| open.first()).copied()
    }

    /// The address of an ingest replica.
    pub(crate) fn address(&self, door: usize) -> anyhow::Result<SocketAddr> {
        self.door(door).address.context("this ingest has not listened yet")
    }

    /// Makes clients avoid a replica until a time, if there is another one.
    pub(crate) fn avoid(&self, door: usize, until: Duration) {
        let mut door = self.door(door);
        door.avoided_until = door.avoided_until.max(until);
    }

    fn door(&self, door: usize) -> MutexGuard<'_, Door> {
        self.0[door].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Client {
    number: u32,
    /// The prefix of its `Idempotency-Key`s.
    name: String,
    path: &'static str,
    watch: Watch,
    http: reqwest::Client,
    doors: Arc<Doors>,
    accepted: Arc<AtomicUsize>,
    seen: Experience,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<&'a str>,
    wish: Wish,
    prompt: &'a str,
}

/// The result of one try.
enum Tried {
    Accepted(RequestId),
    Refused,
    Broken,
    Silent,
    Odd(String),
}

impl Client {
    async fn run(mut self, every: Duration, stop: Arc<AtomicBool>) -> Experience {
        let mut pace = interval(every);
        // Missed ticks are not made up for.
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0_u32.. {
            pace.tick().await;
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let posted =
                if self.path == STRICT { self.post_strict(number).await } else { self.post(number).await };
            self.seen.posted.push(posted);
        }
        self.seen
    }

    /// Posts a request with the ordering key of this client, each to another ingest.
    async fn post_strict(&mut self, number: u32) -> Posted {
        let wish = match (number + self.number) % 6 {
            2 => Wish::Stumble,
            5 => Wish::Reject,
            _ => Wish::Accept,
        };
        self.post_as(number, Some(format!("strict-{}", self.number)), wish, number as usize).await
    }

    /// Posts a request; every second one has an ordering key. Such requests are posted one after the other, always to the
    /// same ingest as long as it responds.
    async fn post(&mut self, number: u32) -> Posted {
        let account =
            number.is_multiple_of(2).then(|| format!("account-{}-{}", self.number, number / 2 % ACCOUNTS));
        // Failing requests are distributed over the clients, because simultaneous failures look like an outage.
        let wish = match (number + 2 * self.number) % 30 {
            7 | 17 | 27 => Wish::Stumble,
            12 => Wish::Reject,
            _ => Wish::Accept,
        };
        let preferred = if account.is_some() { self.number } else { number / 2 } as usize;
        self.post_as(number, account, wish, preferred).await
    }

    /// Posts a request without an ordering key.
    async fn post_plain(&mut self, number: u32, wish: Wish) -> Posted {
        self.post_as(number, None, wish, number as usize).await
    }

    async fn post_as(
        &mut self,
        number: u32,
        account: Option<String>,
        wish: Wish,
        preferred: usize,
    ) -> Posted {
        let key = format!("{}-request-{number}", self.name);
        let body = Body { account: account.as_deref(), wish, prompt: &key };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let (id, made_by) = self.see_through(preferred, &key, &body).await.unzip();
        let is_strict = self.path == STRICT;
        Posted { key, account, is_strict, wish, id, at: self.watch.now(), made_by: made_by.flatten() }
    }

    /// Sends a request until it receives a 201 or has no tries left.
    async fn see_through(
        &mut self,
        preferred: usize,
        key: &str,
        body: &[u8],
    ) -> Option<(RequestId, Option<Maker>)> {
        for tries in 1..=TRIES {
            let from = self.watch.now();
            let (maker, address) = self.doors.choose(preferred, from)?;
            let door = maker.door;
            let tried = self.try_once(address, key, body).await;
            let to = self.watch.now();
            match tried {
                Tried::Accepted(id) => {
                    self.accepted.fetch_add(1, Ordering::Relaxed);
                    return Some((id, (tries == 1).then_some(maker)));
                }
                Tried::Refused => self.seen.refused.push(to),
                Tried::Odd(what) => self.seen.odd.push(what),
                Tried::Broken => {
                    self.seen.broken.push(to);
                    self.doors.avoid(door, to + AVOIDED);
                }
                Tried::Silent => {
                    self.seen.silences.push(Silence { door, from, to });
                    self.doors.avoid(door, to + AVOIDED);
                }
            }
            sleep(PAUSE * tries).await;
        }
        None
    }

    async fn try_once(&self, to: SocketAddr, key: &str, body: &[u8]) -> Tried {
        let request = self
            .http
            .post(format!("http://{to}{}", self.path))
            .header(CONTENT_TYPE, "application/json")
            .header("idempotency-key", key)
            .body(body.to_vec());
        match request.send().await {
            Ok(answer) => read(answer).await,
            Err(error) => Tried::of(&error),
        }
    }
}

impl Tried {
    fn of(error: &reqwest::Error) -> Self {
        if error.is_timeout() && !error.is_connect() { Self::Silent } else { Self::Broken }
    }
}

async fn read(answer: Response) -> Tried {
    let (status, has_retry_after) = (answer.status(), answer.headers().contains_key(RETRY_AFTER));
    let body = match answer.text().await {
        Ok(body) => body,
        Err(error) => return Tried::of(&error),
    };
    match (status, request_id(&body)) {
        (StatusCode::CREATED, Some(id)) => Tried::Accepted(id),
        // 409: a frozen ingest holds the transaction of an earlier try.
        (StatusCode::SERVICE_UNAVAILABLE | StatusCode::CONFLICT, _) if has_retry_after => Tried::Refused,
        _ => Tried::Odd(format!("{status}: {body}")),
    }
}

fn request_id(body: &str) -> Option<RequestId> {
    let body: serde_json::Value = serde_json::from_str(body).ok()?;
    body.get("request_id")?.as_str()?.parse().ok()
}
