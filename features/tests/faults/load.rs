//! Clients that post all the time, whatever happens.

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

/// Clients that post at once, each one request after the other.
const CLIENTS: u32 = 16;
/// Ordering keys of a client.
const ACCOUNTS: u32 = 4;

/// How often a client sends a request before it gives up.
const TRIES: u32 = 6;
/// How much longer it waits after each try.
const PAUSE: Duration = Duration::from_millis(400);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// For an answer: ingest's own time-outs, for the body and for the commit, and a busy machine.
const TIMEOUT: Duration = Duration::from_secs(6);
/// How long a door that did not answer is passed by if there is another.
const AVOIDED: Duration = Duration::from_secs(3);

/// A request that was posted, however often.
#[derive(Clone, Debug)]
pub(crate) struct Posted {
    /// Its `Idempotency-Key`.
    pub(crate) key: String,
    /// Its ordering key.
    pub(crate) account: Option<String>,
    pub(crate) wish: Wish,
    /// The id it got, if there was a 201.
    pub(crate) id: Option<RequestId>,
    /// When it got it.
    pub(crate) at: Duration,
    /// Who made the id; known if the first try got it, since otherwise an earlier one may have.
    pub(crate) made_by: Option<Maker>,
}

/// A process that makes ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Maker {
    /// Which ingest it is, from 0.
    pub(crate) door: usize,
    /// How often that one has been started.
    pub(crate) life: u32,
}

/// A client that waited in vain for an answer over a connection that stood.
#[derive(Clone, Debug)]
pub(crate) struct Silence {
    /// Which ingest it was, from 0.
    pub(crate) door: usize,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}

/// What clients have seen.
#[derive(Debug, Default)]
pub(crate) struct Experience {
    pub(crate) posted: Vec<Posted>,
    /// When there were answers 503 or 409 with `Retry-After`.
    pub(crate) refused: Vec<Duration>,
    /// Connections that were not to be had, or broke.
    pub(crate) broken: usize,
    pub(crate) silences: Vec<Silence>,
    /// Answers that nobody should get.
    pub(crate) odd: Vec<String>,
}

/// Where the replicas of ingest listen. One that is gone stays where it was, and clients find nobody there; but a
/// newcomer that leaves again is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Doors([Mutex<Door>; REPLICAS + 1]);

#[derive(Debug, Default)]
struct Door {
    address: Option<SocketAddr>,
    /// How often somebody has begun to listen there.
    life: u32,
    avoided_until: Duration,
}

/// The clients, at work.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    clients: JoinSet<Experience>,
}

impl Load {
    /// They begin, and post so many requests a second together.
    pub(crate) fn begin(watch: Watch, doors: &Arc<Doors>, rate: u32) -> anyhow::Result<Self> {
        let http = client()?;
        let (stop, accepted) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let client = Client {
                number,
                name: format!("client-{number}"),
                path: "/one",
                watch,
                http: http.clone(),
                doors: Arc::clone(doors),
                accepted: Arc::clone(&accepted),
                seen: Experience::default(),
            };
            clients.spawn(client.run(Duration::from_secs(1) * CLIENTS / rate, Arc::clone(&stop)));
        }
        Ok(Self { stop, accepted, clients })
    }

    /// How many requests were accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// They see through what they have begun, and stop.
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
        self.broken += other.broken;
        self.silences.extend(other.silences);
        self.odd.extend(other.odd);
    }
}

/// Posts some requests to `path` beside the load, and returns when each of them was accepted or given up. `name` makes
/// their `Idempotency-Key`s differ from all others.
pub(crate) async fn burst(
    watch: Watch,
    doors: &Arc<Doors>,
    name: &str,
    path: &'static str,
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
                let posted = client.post_plain(number).await;
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
    /// An ingest listens here from now on.
    pub(crate) fn open(&self, door: usize, address: SocketAddr) {
        let mut door = self.door(door);
        *door = Door { address: Some(address), life: door.life + 1, avoided_until: Duration::ZERO };
    }

    /// A newcomer is about to leave: nobody is to go there any more.
    pub(crate) fn give_up(&self, replica: Replica) {
        if replica == Replica::newcomer(Service::Ingest) {
            self.door(replica.number).address = None;
        }
    }

    /// The preferred one, unless it is to be avoided and another is not.
    fn choose(&self, preferred: usize, now: Duration) -> Option<(Maker, SocketAddr)> {
        let who = |number: usize| {
            let door = self.door(number);
            Some((Maker { door: number, life: door.life }, door.address?))
        };
        let mut open: Vec<_> = (0..self.0.len()).filter_map(who).collect();
        let first = preferred.checked_rem(open.len())?;
        open.rotate_left(first);
        let well = open.iter().find(|(maker, _)| now >= self.door(maker.door).avoided_until);
        well.or_else(|| open.first()).copied()
    }

    /// Where a replica of ingest listens.
    pub(crate) fn address(&self, door: usize) -> anyhow::Result<SocketAddr> {
        self.door(door).address.context("this ingest has never listened")
    }

    /// Passes a door by for some time if there is another.
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
    /// What its `Idempotency-Key`s begin with.
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

/// What became of one try.
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
        // What was missed is not made up for.
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0_u32.. {
            pace.tick().await;
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let posted = self.post(number).await;
            self.seen.posted.push(posted);
        }
        self.seen
    }

    /// Every second request has an ordering key; its order is that in which this client posts, always to the same
    /// ingest as long as that is there.
    async fn post(&mut self, number: u32) -> Posted {
        let account =
            number.is_multiple_of(2).then(|| format!("account-{}-{}", self.number, number / 2 % ACCOUNTS));
        // Spread over the clients, because those that fail together look like an outage.
        let wish = match (number + 2 * self.number) % 30 {
            7 | 17 | 27 => Wish::Stumble,
            12 => Wish::Reject,
            _ => Wish::Accept,
        };
        let preferred = if account.is_some() { self.number } else { number / 2 } as usize;
        self.post_as(number, account, wish, preferred).await
    }

    /// Without an ordering key, to be accepted.
    async fn post_plain(&mut self, number: u32) -> Posted {
        self.post_as(number, None, Wish::Accept, number as usize).await
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
        Posted { key, account, wish, id, at: self.watch.now(), made_by: made_by.flatten() }
    }

    /// Sends until there is a 201, in vain if need be.
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
                    self.seen.broken += 1;
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
        // The latter while an ingest that stands still holds the transaction of the try before.
        (StatusCode::SERVICE_UNAVAILABLE | StatusCode::CONFLICT, _) if has_retry_after => Tried::Refused,
        _ => Tried::Odd(format!("{status}: {body}")),
    }
}

fn request_id(body: &str) -> Option<RequestId> {
    let body: serde_json::Value = serde_json::from_str(body).ok()?;
    body.get("request_id")?.as_str()?.parse().ok()
}
