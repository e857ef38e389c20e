//! Starts faults, keeps them for their duration, and ends them.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use anyhow::ensure;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use throughline_testkit::{Container, Service};
use tokio::time::sleep;

use crate::cast::{REPLICAS, Replica};
use crate::faults::{Fault, Leave, Server, Topic};
use crate::flood::Flood;
use crate::scene::Scene;
use crate::third_party::{Mood, TokenMood, Wish};

/// How long the broker is unreachable before an ingest is killed, which cannot publish the requests that it accepts
/// meanwhile.
const BEHIND: Duration = Duration::from_secs(2);
/// Time until a load balancer's health checks remove a replica that does not respond.
const TAKEN_OUT: Duration = Duration::from_secs(5);
/// Deadline for all accepted requests to end while one ingest is frozen: other replicas take over its partitions and its
/// outbox, and PostgreSQL ends its open transaction.
const WITHOUT_IT: Duration = Duration::from_secs(45);
/// Number of bursts of requests while an ingest is flooded. The clients of each burst have their own connections.
const BURSTS: usize = 10;
const BURST: u32 = 16;
/// Number of requests that expire. A sweeper that ended one of them per second would miss the deadline by far.
const EXPIRED_REQUESTS: u32 = 600;
/// Deadline for them to expire, and for later requests to be delivered.
const EXPIRED: Duration = Duration::from_secs(40);
/// Deadline for claims of a killed ingest to end, which takes 30 s, and for deferred deliveries to be made.
const UNCLAIMED: Duration = Duration::from_secs(90);

/// A fault, with its start and its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) fault: Fault,
    /// Which of the replicas it meets, from 0, if it meets one.
    pub(crate) number: usize,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    /// When all requests accepted before its end had ended.
    pub(crate) felt_until: Duration,
}

/// A fault to inject.
#[derive(Debug)]
pub(crate) struct Strike {
    fault: Fault,
    /// The affected replica, from 0.
    number: usize,
    lasts: Duration,
    flood: Option<Flood>,
    /// The partitions in which finished records follow a record whose call is slow.
    shared: BTreeSet<(String, i32)>,
}

/// Every fault once, in a random order within each act: first faults that excuse no deviation, then faults that may
/// cause repeated calls, then faults that lose records. Faults that need the effects of earlier faults to end come first
/// in their act, when this is already the case.
pub(crate) fn round(minutes: u32, dice: &mut StdRng) -> [Vec<Strike>; 3] {
    let acts = [
        vec![
            Fault::ThirdParty(Mood::Unavailable),
            Fault::ThirdParty(Mood::Later),
            Fault::ThirdParty(Mood::TooMany),
            Fault::ThirdParty(Mood::BlackHole),
            Fault::ThirdParty(Mood::Reset),
            Fault::ThirdParty(Mood::Treacle),
            Fault::Tokens(TokenMood::Down),
            Fault::Tokens(TokenMood::Reset),
            Fault::RollingRestart,
            Fault::Join(Service::Ingest, Leave::Stop),
            Fault::Join(Service::Dispatch, Leave::Stop),
            Fault::JoinWhileSlow,
            Fault::WrongClock(Service::Ingest, Leave::Stop),
            Fault::WrongClock(Service::Dispatch, Leave::Stop),
            Fault::ForeignRecords,
            Fault::AddColumns,
            Fault::HeadFlood,
            Fault::Expire,
            Fault::Freeze(Server::Database),
        ],
        vec![
            Fault::Freeze(Server::Broker),
            Fault::Kill(Server::Broker),
            Fault::Kill(Server::Database),
            Fault::KillReplica(Service::Ingest),
            Fault::KillReplica(Service::Dispatch),
            Fault::Join(Service::Ingest, Leave::Kill),
            Fault::Join(Service::Dispatch, Leave::Kill),
            Fault::WrongClock(Service::Ingest, Leave::KillWithClaims),
            Fault::KillIngestBehindBroker,
            Fault::FreezeReplica(Service::Ingest),
            Fault::FreezeReplica(Service::Dispatch),
            Fault::LongFreeze,
        ],
        vec![
            Fault::DeleteTopic(Topic::Requests),
            Fault::DeleteTopic(Topic::Retries),
            Fault::DeleteTopic(Topic::Outcomes),
        ],
    ];
    acts.map(|mut act| {
        act.shuffle(dice);
        act.sort_by_key(|fault| !fault.needs_rest());
        act.into_iter().map(|fault| Strike::draw(fault, minutes, dice)).collect()
    })
}

impl Strike {
    fn draw(fault: Fault, minutes: u32, dice: &mut StdRng) -> Self {
        let (number, lasts) = (dice.random_range(0..REPLICAS), fault.lasts(minutes, dice));
        Self { fault, number, lasts, flood: None, shared: BTreeSet::new() }
    }

    /// Starts the fault, waits for its duration, and ends it.
    pub(crate) async fn run(mut self, scene: &mut Scene) -> anyhow::Result<Window> {
        if self.fault.needs_rest() {
            scene.settle().await?;
        }
        let from = scene.watch.now();
        scene.watch.say(&self);
        self.strike(scene).await?;
        sleep(self.lasts).await;
        self.heal(scene).await?;
        let to = scene.watch.now();
        Ok(Window { fault: self.fault, number: self.number, from, to, felt_until: Duration::MAX })
    }

    async fn strike(&mut self, scene: &mut Scene) -> anyhow::Result<()> {
        match self.fault {
            Fault::ThirdParty(mood) => scene.third_party.be(mood),
            Fault::Tokens(mood) => scene.third_party.give_tokens(mood),
            Fault::RollingRestart => scene.cast.restart().await?,
            Fault::Freeze(server) => server.container(scene)?.freeze().await?,
            Fault::Kill(server) => server.container(scene)?.kill().await?,
            Fault::KillReplica(service) => scene.kill(self.replica(service)).await?,
            Fault::Join(service, _) => drop(scene.grow(service, None).await?),
            Fault::JoinWhileSlow => {
                let shared = scene.call_slowly().await?;
                let moved = scene.grow(Service::Dispatch, None).await?;
                some_have_moved(&shared, &moved)?;
                // The additional replica has its share of these when it leaves.
                self.shared = scene.call_slowly().await?;
            }
            Fault::WrongClock(service, _) => {
                if service == Service::Ingest {
                    scene.defer().await?;
                }
                scene.grow(service, Some("7200")).await?;
                if service == Service::Ingest {
                    // It refuses requests and is not ready, so a load balancer removes it.
                    scene.doors.avoid(REPLICAS, Duration::MAX);
                }
            }
            Fault::ForeignRecords => scene.produce_foreign_records().await?,
            Fault::AddColumns => scene.add_columns().await?,
            Fault::HeadFlood => {
                self.flood = Some(Flood::begin(scene.doors.address(self.number)?).await?);
                for _ in 0..BURSTS {
                    scene.post("/one", Wish::Accept, BURST).await?;
                }
            }
            Fault::Expire => {
                scene.third_party.close_shop(true);
                scene.post("/perishable", Wish::Accept, EXPIRED_REQUESTS).await?;
                scene.wait_until_dead("perishable", EXPIRED).await?;
            }
            Fault::KillIngestBehindBroker => {
                scene.broker_container()?.freeze().await?;
                sleep(BEHIND).await;
                scene.cast.kill(self.replica(Service::Ingest)).await?;
            }
            Fault::FreezeReplica(service) => scene.cast.freeze(self.replica(service))?,
            Fault::LongFreeze => {
                scene.freeze_in_transaction(self.replica(Service::Ingest)).await?;
                sleep(TAKEN_OUT).await;
                scene.doors.avoid(self.number, scene.watch.now() + self.lasts);
            }
            Fault::DeleteTopic(topic) => {
                for replica in readers(topic) {
                    scene.cast.freeze(replica)?;
                }
            }
        }
        Ok(())
    }

    async fn heal(&mut self, scene: &mut Scene) -> anyhow::Result<()> {
        match self.fault {
            Fault::ThirdParty(_) => scene.third_party.be(Mood::Fine),
            Fault::Tokens(_) => scene.third_party.give_tokens(TokenMood::Fine),
            Fault::RollingRestart | Fault::ForeignRecords | Fault::AddColumns => {}
            Fault::Freeze(server) => server.container(scene)?.thaw().await?,
            Fault::Kill(server) => server.container(scene)?.start().await?,
            Fault::KillReplica(service) => scene.revive(self.replica(service)).await?,
            Fault::Join(service, leave) => drop(scene.shrink(service, leave).await?),
            Fault::JoinWhileSlow => {
                let moved = scene.shrink(Service::Dispatch, Leave::Stop).await?;
                some_have_moved(&self.shared, &moved)?;
            }
            Fault::WrongClock(service, leave) => {
                if service == Service::Ingest {
                    scene.defer().await?;
                }
                scene.shrink(service, leave).await?;
                scene.third_party.close_shop(false);
                scene.settle_within(UNCLAIMED).await?;
            }
            Fault::HeadFlood => drop(self.flood.take()),
            Fault::Expire => {
                scene.third_party.close_shop(false);
                // Accepted after the expired ones, but must not wait for them.
                scene.post("/perishable", Wish::Accept, EXPIRED_REQUESTS / 10).await?;
                scene.settle_within(EXPIRED).await?;
                scene.replay("perishable").await?;
            }
            Fault::KillIngestBehindBroker => {
                scene.broker_container()?.thaw().await?;
                scene.cast.start(self.replica(Service::Ingest)).await?;
            }
            Fault::FreezeReplica(service) => scene.cast.thaw(self.replica(service))?,
            Fault::LongFreeze => {
                let ended = scene.settle_within(WITHOUT_IT).await;
                scene.cast.thaw(self.replica(Service::Ingest))?;
                ended?;
            }
            Fault::DeleteTopic(topic) => {
                scene.delete_topic(topic.name()).await?;
                for replica in readers(topic) {
                    scene.cast.thaw(replica)?;
                }
                scene.cast.restart().await?;
            }
        }
        Ok(())
    }

    fn replica(&self, service: Service) -> Replica {
        Replica { service, number: self.number }
    }
}

impl Server {
    fn container(self, scene: &Scene) -> anyhow::Result<&Container> {
        match self {
            Self::Broker => scene.broker_container(),
            Self::Database => Ok(scene.database.container()),
        }
    }
}

/// Verifies that a partition has moved in which finished records follow a record whose call is slow.
fn some_have_moved(shared: &BTreeSet<(String, i32)>, moved: &BTreeSet<(String, i32)>) -> anyhow::Result<()> {
    ensure!(!shared.is_disjoint(moved), "no partition with slow and quick calls has moved: {moved:?}");
    Ok(())
}

fn readers(topic: Topic) -> impl Iterator<Item = Replica> {
    Replica::all().filter(move |replica| replica.service == topic.readers())
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.fault)?;
        match self.fault {
            Fault::KillReplica(_)
            | Fault::FreezeReplica(_)
            | Fault::LongFreeze
            | Fault::HeadFlood
            | Fault::KillIngestBehindBroker => write!(f, " (number {})", self.number + 1)?,
            _ => {}
        }
        if self.lasts.is_zero() { Ok(()) } else { write!(f, ", for {:.1} s", self.lasts.as_secs_f64()) }
    }
}
