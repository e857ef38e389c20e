//! How a fault strikes, lasts, and is over.

use std::fmt;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use throughline_testkit::{Container, Service};
use tokio::time::sleep;

use crate::cast::{REPLICAS, Replica};
use crate::faults::{Fault, Leave, Server, Topic};
use crate::flood::Flood;
use crate::scene::Scene;
use crate::third_party::{Mood, TokenMood};

/// How long the broker is away before an ingest dies behind it: what it accepts meanwhile is not published.
const BEHIND: Duration = Duration::from_secs(2);
/// How soon a load balancer's health checks take a replica out that does not answer.
const TAKEN_OUT: Duration = Duration::from_secs(5);
/// For everything accepted so far to end while one ingest stands still: its partitions and its outbox go to others, and
/// PostgreSQL ends its open transaction.
const WITHOUT_IT: Duration = Duration::from_secs(45);
/// Requests whose calls take [`crate::third_party::SLOW`] each: several for each dispatch.
const SLOW_REQUESTS: u32 = 18;
/// Requests that expire. A sweeper that ended one of them a second would be far from done in time.
const EXPIRED_REQUESTS: u32 = 600;
/// For them to expire, and for those that follow to be delivered.
const EXPIRED: Duration = Duration::from_secs(40);

/// A fault, when it struck and when it was over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) fault: Fault,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    /// When all had ended that was accepted before it was over.
    pub(crate) felt_until: Duration,
}

/// A fault that is about to strike.
#[derive(Debug)]
pub(crate) struct Strike {
    fault: Fault,
    /// Which of the replicas it meets, from 0.
    number: usize,
    lasts: Duration,
    flood: Option<Flood>,
}

/// Every fault once, in a random order within each act: first those that excuse nothing, then those after which the
/// third party may be asked twice, then those that lose records. Those that wait until earlier faults have no effect any
/// more come first in their act, where that is the case already.
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
            Fault::WrongClock(Service::Ingest),
            Fault::WrongClock(Service::Dispatch),
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
        Self { fault, number, lasts, flood: None }
    }

    /// Strikes, lasts, and is over.
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
        Ok(Window { fault: self.fault, from, to, felt_until: Duration::MAX })
    }

    async fn strike(&mut self, scene: &mut Scene) -> anyhow::Result<()> {
        match self.fault {
            Fault::ThirdParty(mood) => scene.third_party.be(mood),
            Fault::Tokens(mood) => scene.third_party.give_tokens(mood),
            Fault::RollingRestart => scene.cast.restart().await?,
            Fault::Freeze(server) => server.container(scene)?.freeze().await?,
            Fault::Kill(server) => server.container(scene)?.kill().await?,
            Fault::KillReplica(service) => scene.kill(self.replica(service)).await?,
            Fault::Join(service, _) => scene.grow(service, None).await?,
            Fault::JoinWhileSlow => {
                scene.call_slowly(SLOW_REQUESTS).await?;
                scene.grow(Service::Dispatch, None).await?;
                // The newcomer has its share of these when it leaves.
                scene.call_slowly(SLOW_REQUESTS).await?;
            }
            Fault::WrongClock(service) => scene.grow(service, Some("7200")).await?,
            Fault::ForeignRecords => scene.produce_foreign_records().await?,
            Fault::AddColumns => scene.add_columns().await?,
            Fault::HeadFlood => self.flood = Some(Flood::begin(scene.doors.address(self.number)?)),
            Fault::Expire => {
                scene.third_party.close_shop(true);
                scene.post("/perishable", EXPIRED_REQUESTS).await?;
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
            Fault::Join(service, leave) => scene.shrink(service, leave).await?,
            Fault::JoinWhileSlow => scene.shrink(Service::Dispatch, Leave::Stop).await?,
            Fault::WrongClock(service) => scene.shrink(service, Leave::Stop).await?,
            Fault::HeadFlood => drop(self.flood.take()),
            Fault::Expire => {
                scene.third_party.close_shop(false);
                // Behind those that expired, but not made to wait for them.
                scene.post("/perishable", EXPIRED_REQUESTS / 10).await?;
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
