//! What goes wrong, and for how long.

use std::fmt;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use throughline_testkit::Service;

use crate::third_party::{Mood, TokenMood};

/// How long a program stands still: longer than its node's lease and its consumers' sessions, so that both have
/// gone to others when it goes on.
const STANDSTILL: Duration = Duration::from_secs(12);
/// How long one stands still that holds locks: longer than any time-out of the others.
const LONG_STANDSTILL: Duration = Duration::from_mins(1);

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
    /// One dispatch more joins and leaves while calls to one destination take longer than a rebalance should.
    JoinWhileSlow,
    /// A replica whose clock is hours ahead joins the others, works with them for a while, and leaves.
    WrongClock(Service),
    /// Other programs produce onto the topics: records with forged ids, and records that cannot be read.
    ForeignRecords,
    /// A later version's migration adds a column to each table while the programs run.
    AddColumns,
    /// Thousands of connections to one ingest announce large bodies and send nothing.
    HeadFlood,
    /// Deliveries expire by the hundred while their destination is down; when it is back, they are replayed.
    Expire,
    /// An ingest is killed while the broker does not answer.
    KillIngestBehindBroker,
    /// A replica stands still, and goes on as a zombie.
    FreezeReplica(Service),
    /// An ingest stands still for long, if possible within a transaction whose locks the others need.
    LongFreeze,
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

impl Fault {
    /// Whether the third party may be asked again for what it has acknowledged.
    pub(crate) fn may_repeat(self) -> bool {
        match self {
            Self::ThirdParty(_)
            | Self::Tokens(_)
            | Self::RollingRestart
            | Self::Join(_, Leave::Stop)
            | Self::JoinWhileSlow
            | Self::WrongClock(_)
            | Self::ForeignRecords
            | Self::AddColumns
            | Self::HeadFlood
            | Self::Expire
            | Self::Freeze(Server::Database) => false,
            Self::Freeze(Server::Broker)
            | Self::Kill(_)
            | Self::KillReplica(_)
            | Self::Join(_, Leave::Kill)
            | Self::KillIngestBehindBroker
            | Self::FreezeReplica(_)
            | Self::LongFreeze
            | Self::DeleteTopic(_) => true,
        }
    }

    /// Whether requests are accepted and delivered as fast as before, as soon as load balancers know of it.
    pub(crate) fn keeps_the_rate(self) -> bool {
        matches!(
            self,
            Self::JoinWhileSlow | Self::AddColumns | Self::HeadFlood | Self::Expire | Self::LongFreeze
        )
    }

    /// Whether records are lost, so that only patience brings their deliveries back.
    pub(crate) fn loses_records(self) -> bool {
        matches!(self, Self::DeleteTopic(_))
    }

    /// Whether it waits until all has ended that an earlier fault has set in motion.
    pub(crate) fn needs_rest(self) -> bool {
        matches!(
            self,
            Self::Join(..)
                | Self::JoinWhileSlow
                | Self::WrongClock(_)
                | Self::HeadFlood
                | Self::Expire
                | Self::KillReplica(_)
        )
    }

    /// Whether a client may wait for an answer in vain.
    pub(crate) fn keeps_clients_waiting(self) -> bool {
        match self {
            Self::FreezeReplica(service) => service == Service::Ingest,
            Self::LongFreeze => true,
            // Its readers stand still.
            Self::DeleteTopic(topic) => topic.readers() == Service::Ingest,
            _ => false,
        }
    }

    /// In a long run outages are as long as in life.
    pub(crate) fn lasts(self, minutes: u32, dice: &mut StdRng) -> Duration {
        let seconds = Duration::from_secs;
        let outage = |shortest: u64| seconds((2 * u64::from(minutes)).clamp(shortest, 60));
        match self {
            Self::ThirdParty(_) | Self::Tokens(_) => dice.random_range(outage(4) / 2..=outage(4)),
            Self::Freeze(_) => outage(10),
            Self::Kill(_) | Self::KillReplica(_) => dice.random_range(Duration::ZERO..=seconds(4)),
            Self::KillIngestBehindBroker => dice.random_range(Duration::ZERO..=seconds(3)),
            Self::Join(..) => dice.random_range(seconds(1)..=seconds(3)),
            Self::WrongClock(_) | Self::AddColumns | Self::HeadFlood => seconds(6),
            Self::FreezeReplica(_) => STANDSTILL,
            Self::LongFreeze => LONG_STANDSTILL,
            Self::RollingRestart | Self::JoinWhileSlow | Self::ForeignRecords | Self::Expire => {
                Duration::ZERO
            }
            Self::DeleteTopic(_) => dice.random_range(seconds(1)..=seconds(2)),
        }
    }
}

impl Topic {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Requests => "one-request-local",
            Self::Retries => "throughline.retries",
            Self::Outcomes => "throughline.outcomes",
        }
    }

    /// Which service reads it.
    pub(crate) fn readers(self) -> Service {
        match self {
            Self::Requests | Self::Retries => Service::Dispatch,
            Self::Outcomes => Service::Ingest,
        }
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
            Self::JoinWhileSlow => {
                f.write_str("one throughline-dispatch more joins and leaves while calls take 25 s")
            }
            Self::WrongClock(service) => {
                write!(f, "one {service} more joins, whose clock is two hours ahead")
            }
            Self::ForeignRecords => f.write_str("others produce forged and unreadable records"),
            Self::AddColumns => f.write_str("each table gets a column more"),
            Self::HeadFlood => f.write_str("throughline-ingest is flooded with heads of large requests"),
            Self::Expire => f.write_str("deliveries expire, and are replayed"),
            Self::KillIngestBehindBroker => {
                f.write_str("throughline-ingest is killed while Kafka does not answer")
            }
            Self::FreezeReplica(service) => write!(f, "{service} stands still"),
            Self::LongFreeze => f.write_str("throughline-ingest stands still within a transaction"),
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
