//! The faults and their durations.

use std::fmt;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use throughline_testkit::Service;

use crate::third_party::{Mood, TokenMood};

/// Duration of a freeze: longer than the lease of the node and the sessions of the consumers, so that other replicas
/// have taken over both when the program continues.
const STANDSTILL: Duration = Duration::from_secs(12);
/// Duration of a freeze while holding locks: longer than any timeout of the other replicas.
const LONG_STANDSTILL: Duration = Duration::from_mins(1);

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The third party misbehaves.
    ThirdParty(Mood),
    /// The token endpoint misbehaves.
    Tokens(TokenMood),
    /// All replicas are restarted, one after the other.
    RollingRestart,
    /// A server does not answer.
    Freeze(Server),
    /// A server is killed.
    Kill(Server),
    /// A replica is killed.
    KillReplica(Service),
    /// An additional replica joins, works for a while, and leaves.
    Join(Service, Leave),
    /// An additional dispatch joins and leaves while calls to one destination take longer than a rebalance should.
    JoinWhileSlow,
    /// An additional replica whose clock is hours ahead joins, works for a while, and leaves. If it is an ingest,
    /// deferred deliveries wait meanwhile.
    WrongClock(Service, Leave),
    /// Other programs write records with forged ids and unreadable records to the topics.
    ForeignRecords,
    /// The migration of a later version adds a column to each table while the programs run.
    AddColumns,
    /// Connections to one ingest announce large bodies and send nothing. They exceed the limit of one address, and then
    /// the limit of all connections.
    HeadFlood,
    /// Hundreds of deliveries expire while their destination is down, and are replayed after it has recovered.
    Expire,
    /// An ingest is killed while the broker does not answer.
    KillIngestBehindBroker,
    /// A replica is frozen, and continues after other replicas have replaced it.
    FreezeReplica(Service),
    /// An ingest is frozen for long within a transaction that holds locks needed by the other replicas.
    LongFreeze,
    /// A topic is deleted with unread records, and created again. All replicas are restarted, because librdkafka may
    /// wait forever for the partitions and offsets of the old topic.
    DeleteTopic(Topic),
}

/// Which calls a fault may repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeats {
    None,
    /// Calls whose records a dispatch had not committed when SIGKILL ended it, each once.
    Uncommitted,
    /// Calls that a frozen dispatch had not committed, and those that it makes when it continues, before it learns that
    /// its partitions have another owner.
    OfTheFrozen,
    /// Calls in progress, and calls whose outcomes or commits the broker did not accept.
    InWork,
    /// Calls whose outcomes the recorder had not read from the deleted topic, and those whose offsets belong to the old
    /// topic.
    Unread,
}

/// The way in which a replica leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// SIGTERM.
    Stop,
    /// SIGKILL.
    Kill,
    /// SIGKILL of an ingest that has claimed deliveries but has not published them.
    KillWithClaims,
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
    /// Returns the calls that the fault may repeat after the third party acknowledged them.
    pub(crate) fn repeats(self) -> Repeats {
        match self {
            // No dispatch loses a partition without notice. Ingest may publish records twice: those that were not
            // removed from the outbox when it was killed, lost its lease or lost the database, and those of claims that
            // have ended. The same dispatch reads both, and it recognises the attempt.
            Self::ThirdParty(_)
            | Self::Tokens(_)
            | Self::RollingRestart
            | Self::Join(_, Leave::Stop)
            | Self::Join(Service::Ingest, _)
            | Self::JoinWhileSlow
            | Self::WrongClock(_, Leave::Stop)
            | Self::WrongClock(Service::Ingest, _)
            | Self::ForeignRecords
            | Self::AddColumns
            | Self::HeadFlood
            | Self::Expire
            | Self::Freeze(Server::Database)
            | Self::Kill(Server::Database)
            | Self::KillReplica(Service::Ingest)
            | Self::FreezeReplica(Service::Ingest)
            | Self::LongFreeze => Repeats::None,
            Self::KillReplica(Service::Dispatch)
            | Self::Join(Service::Dispatch, Leave::Kill | Leave::KillWithClaims)
            | Self::WrongClock(Service::Dispatch, Leave::Kill | Leave::KillWithClaims) => {
                Repeats::Uncommitted
            }
            Self::FreezeReplica(Service::Dispatch) => Repeats::OfTheFrozen,
            // Sessions of consumers may end while the broker is down.
            Self::Freeze(Server::Broker) | Self::Kill(Server::Broker) | Self::KillIngestBehindBroker => {
                Repeats::InWork
            }
            Self::DeleteTopic(_) => Repeats::Unread,
        }
    }

    /// Whether the rates of acceptance and delivery stay the same, once load balancers have noticed the fault.
    pub(crate) fn keeps_the_rate(self) -> bool {
        matches!(
            self,
            Self::JoinWhileSlow | Self::AddColumns | Self::HeadFlood | Self::Expire | Self::LongFreeze
        )
    }

    /// Whether records are lost, so that sweepers have to publish their deliveries again.
    pub(crate) fn loses_records(self) -> bool {
        matches!(self, Self::DeleteTopic(_))
    }

    /// Whether the fault starts only after the effects of earlier faults have ended.
    ///
    /// Otherwise a rate during this fault could be low because of the breakers and back-offs of an earlier one.
    pub(crate) fn needs_rest(self) -> bool {
        self.keeps_the_rate() || matches!(self, Self::Join(..) | Self::WrongClock(..) | Self::KillReplica(_))
    }

    /// Whether clients may receive no response.
    pub(crate) fn keeps_clients_waiting(self) -> bool {
        match self {
            Self::FreezeReplica(service) => service == Service::Ingest,
            Self::LongFreeze => true,
            // Its readers stall.
            Self::DeleteTopic(topic) => topic.readers() == Service::Ingest,
            _ => false,
        }
    }

    /// Draws the duration of the fault. Long runs have outages of realistic length.
    pub(crate) fn lasts(self, minutes: u32, dice: &mut StdRng) -> Duration {
        let seconds = Duration::from_secs;
        let outage = |shortest: u64| seconds((2 * u64::from(minutes)).clamp(shortest, 60));
        match self {
            Self::ThirdParty(_) | Self::Tokens(_) => dice.random_range(outage(4) / 2..=outage(4)),
            Self::Freeze(_) => outage(10),
            Self::Kill(_) | Self::KillReplica(_) => dice.random_range(Duration::ZERO..=seconds(4)),
            Self::KillIngestBehindBroker => dice.random_range(Duration::ZERO..=seconds(3)),
            Self::Join(..) => dice.random_range(seconds(1)..=seconds(3)),
            Self::WrongClock(..) | Self::AddColumns | Self::HeadFlood => seconds(6),
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

    /// The service that reads the topic.
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
            Self::Join(service, leave) => write!(f, "an additional {service} joins, and {leave}"),
            Self::JoinWhileSlow => {
                f.write_str("an additional throughline-dispatch joins and leaves while calls take 25 s")
            }
            Self::WrongClock(service, leave) => {
                write!(f, "an additional {service}, whose clock is two hours ahead, joins, and {leave}")
            }
            Self::ForeignRecords => f.write_str("other programs produce forged and unreadable records"),
            Self::AddColumns => f.write_str("each table gets an additional column"),
            Self::HeadFlood => f.write_str("throughline-ingest is flooded with the heads of large requests"),
            Self::Expire => f.write_str("deliveries expire, and are replayed"),
            Self::KillIngestBehindBroker => {
                f.write_str("throughline-ingest is killed while Kafka does not answer")
            }
            Self::FreezeReplica(service) => write!(f, "{service} is frozen"),
            Self::LongFreeze => f.write_str("throughline-ingest is frozen within a transaction"),
            Self::DeleteTopic(topic) => write!(f, "the topic {} is deleted", topic.name()),
        }
    }
}

impl fmt::Display for Leave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stop => "is stopped",
            Self::Kill => "is killed",
            Self::KillWithClaims => "is killed while it holds claims",
        })
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
