//! What goes wrong, and for how long.

use std::fmt;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use throughline_testkit::{Container, Service};
use tokio::time::sleep;

use crate::cast::{REPLICAS, Replica};
use crate::scene::Scene;
use crate::third_party::{Mood, TokenMood};

/// How long a program stands still: longer than its node's lease and its consumers' sessions, so that both have
/// gone to others when it goes on.
const STANDSTILL: Duration = Duration::from_secs(12);
/// How long the broker is away before an ingest dies behind it: what it accepts meanwhile is not published.
const BEHIND: Duration = Duration::from_secs(2);

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The third party is in a bad mood.
    ThirdParty(Mood),
    /// Its token endpoint is.
    Tokens(TokenMood),
    /// All replicas are restarted, one after the other.
    RollingRestart,
    /// A server does not answer.
    Freeze(Server),
    /// A server is killed.
    Kill(Server),
    /// A replica is killed.
    KillReplica(Service),
    /// One replica more joins the others, works with them for a while, and leaves.
    Join(Service, Leave),
    /// An ingest is killed while the broker does not answer.
    KillIngestBehindBroker,
    /// A replica stands still, and goes on as a zombie.
    FreezeReplica(Service),
    /// A topic is deleted, with records in it that nobody has read, and created again. All replicas are restarted,
    /// because librdkafka may wait for the old topic's partitions and offsets for good.
    DeleteTopic(Topic),
}

/// How a replica leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It is told to.
    Stop,
    Kill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Broker,
    Database,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    Requests,
    Retries,
    Outcomes,
}

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
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strike {
    fault: Fault,
    /// Which of the replicas it meets, from 0.
    number: usize,
    lasts: Duration,
}

/// Every fault once, in an order drawn by lot within each act: first those that are no excuse for anything, then
/// those after which the third party may be asked twice, then those that lose records. Those that wait for all to be
/// at rest come first in their act, where it is.
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

impl Fault {
    /// Whether the third party may be asked again for what it has acknowledged.
    pub(crate) fn may_repeat(self) -> bool {
        match self {
            Self::ThirdParty(_)
            | Self::Tokens(_)
            | Self::RollingRestart
            | Self::Join(_, Leave::Stop)
            | Self::Freeze(Server::Database) => false,
            Self::Freeze(Server::Broker)
            | Self::Kill(_)
            | Self::KillReplica(_)
            | Self::Join(_, Leave::Kill)
            | Self::KillIngestBehindBroker
            | Self::FreezeReplica(_)
            | Self::DeleteTopic(_) => true,
        }
    }

    /// Whether records are lost, so that only patience brings their deliveries back.
    pub(crate) fn loses_records(self) -> bool {
        matches!(self, Self::DeleteTopic(_))
    }

    /// Whether it waits until all has ended that an earlier fault has set in motion.
    fn needs_rest(self) -> bool {
        matches!(self, Self::Join(..) | Self::KillReplica(_))
    }

    /// Whether a client may wait for an answer in vain.
    pub(crate) fn keeps_clients_waiting(self) -> bool {
        match self {
            Self::FreezeReplica(service) => service == Service::Ingest,
            // Its readers stand still.
            Self::DeleteTopic(topic) => topic.readers() == Service::Ingest,
            _ => false,
        }
    }

    /// In a long run outages are as long as in life.
    fn lasts(self, minutes: u32, dice: &mut StdRng) -> Duration {
        let seconds = Duration::from_secs;
        let outage = |shortest: u64| seconds((2 * u64::from(minutes)).clamp(shortest, 60));
        match self {
            Self::ThirdParty(_) | Self::Tokens(_) => dice.random_range(outage(4) / 2..=outage(4)),
            Self::Freeze(_) => outage(10),
            Self::Kill(_) | Self::KillReplica(_) => dice.random_range(Duration::ZERO..=seconds(4)),
            Self::KillIngestBehindBroker => dice.random_range(Duration::ZERO..=seconds(3)),
            Self::Join(..) => dice.random_range(seconds(1)..=seconds(3)),
            Self::FreezeReplica(_) => STANDSTILL,
            Self::RollingRestart => Duration::ZERO,
            Self::DeleteTopic(_) => dice.random_range(seconds(1)..=seconds(2)),
        }
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

impl Topic {
    fn name(self) -> &'static str {
        match self {
            Self::Requests => "one-request-local",
            Self::Retries => "throughline.retries",
            Self::Outcomes => "throughline.outcomes",
        }
    }

    /// Who reads it.
    fn readers(self) -> Service {
        match self {
            Self::Requests | Self::Retries => Service::Dispatch,
            Self::Outcomes => Service::Ingest,
        }
    }
}

impl Strike {
    fn draw(fault: Fault, minutes: u32, dice: &mut StdRng) -> Self {
        Self { fault, number: dice.random_range(0..REPLICAS), lasts: fault.lasts(minutes, dice) }
    }

    /// Strikes, lasts, and is over.
    pub(crate) async fn run(self, scene: &mut Scene) -> anyhow::Result<Window> {
        let from = scene.watch.now();
        scene.watch.say(self);
        self.strike(scene).await?;
        sleep(self.lasts).await;
        self.heal(scene).await?;
        let to = scene.watch.now();
        Ok(Window { fault: self.fault, from, to, felt_until: Duration::MAX })
    }

    async fn strike(self, scene: &mut Scene) -> anyhow::Result<()> {
        match self.fault {
            Fault::ThirdParty(mood) => scene.third_party.be(mood),
            Fault::Tokens(mood) => scene.third_party.give_tokens(mood),
            Fault::RollingRestart => scene.cast.restart().await?,
            Fault::Freeze(server) => server.container(scene)?.freeze().await?,
            Fault::Kill(server) => server.container(scene)?.kill().await?,
            Fault::KillReplica(service) => scene.kill(self.replica(service)).await?,
            Fault::Join(service, _) => scene.grow(service).await?,
            Fault::KillIngestBehindBroker => {
                scene.broker_container()?.freeze().await?;
                sleep(BEHIND).await;
                scene.cast.kill(self.replica(Service::Ingest)).await?;
            }
            Fault::FreezeReplica(service) => scene.cast.freeze(self.replica(service))?,
            Fault::DeleteTopic(topic) => {
                for replica in readers(topic) {
                    scene.cast.freeze(replica)?;
                }
            }
        }
        Ok(())
    }

    async fn heal(self, scene: &mut Scene) -> anyhow::Result<()> {
        match self.fault {
            Fault::ThirdParty(_) => scene.third_party.be(Mood::Fine),
            Fault::Tokens(_) => scene.third_party.give_tokens(TokenMood::Fine),
            Fault::RollingRestart => {}
            Fault::Freeze(server) => server.container(scene)?.thaw().await?,
            Fault::Kill(server) => server.container(scene)?.start().await?,
            Fault::KillReplica(service) => scene.revive(self.replica(service)).await?,
            Fault::Join(service, leave) => scene.shrink(service, leave).await?,
            Fault::KillIngestBehindBroker => {
                scene.broker_container()?.thaw().await?;
                scene.cast.start(self.replica(Service::Ingest)).await?;
            }
            Fault::FreezeReplica(service) => scene.cast.thaw(self.replica(service))?,
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

    fn replica(self, service: Service) -> Replica {
        Replica { service, number: self.number }
    }
}

fn readers(topic: Topic) -> impl Iterator<Item = Replica> {
    Replica::all().filter(move |replica| replica.service == topic.readers())
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.fault)?;
        match self.fault {
            Fault::KillReplica(_) | Fault::FreezeReplica(_) | Fault::KillIngestBehindBroker => {
                write!(f, " (number {})", self.number + 1)?;
            }
            _ => {}
        }
        if self.lasts.is_zero() { Ok(()) } else { write!(f, ", for {:.1} s", self.lasts.as_secs_f64()) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ThirdParty(mood) => write!(f, "the third party {mood}"),
            Self::Tokens(mood) => write!(f, "the token endpoint {mood}"),
            Self::RollingRestart => f.write_str("all replicas are restarted, one after the other"),
            Self::Freeze(server) => write!(f, "{server} does not answer"),
            Self::Kill(server) => write!(f, "{server} is killed"),
            Self::KillReplica(service) => write!(f, "{service} is killed"),
            Self::Join(service, Leave::Stop) => write!(f, "one {service} more joins, and is told to stop"),
            Self::Join(service, Leave::Kill) => write!(f, "one {service} more joins, and is killed"),
            Self::KillIngestBehindBroker => {
                f.write_str("throughline-ingest is killed while Kafka does not answer")
            }
            Self::FreezeReplica(service) => write!(f, "{service} stands still"),
            Self::DeleteTopic(topic) => write!(f, "the topic {} is deleted", topic.name()),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broker => "Kafka",
            Self::Database => "PostgreSQL",
        })
    }
}
