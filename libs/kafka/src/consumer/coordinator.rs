//! Sends requests to the group's coordinator and to the partitions' brokers, on a thread of its own: an answer may take
//! as long as a session lasts, and the consumer's thread must continue meanwhile.

use std::sync::Weak;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::warn;

use super::clients::list;
use super::group::Context;
use crate::KafkaError;
use crate::assignment::Name;
use crate::progress::ends;

/// How long the coordinator may take to return committed offsets before it is asked again.
const LOOK: Duration = Duration::from_secs(5);

/// How long brokers may take to return the ends of partitions. Commits wait meanwhile, and the next check comes soon.
const ENDS: Duration = Duration::from_secs(1);

/// An offset with its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: Name,
    pub(super) offset: i64,
    pub(super) metadata: String,
}

#[derive(Debug)]
enum Request {
    Commit(Vec<Entry>),
    Look(Vec<Name>),
    Ends(Vec<Name>),
}

/// An answer of the coordinator.
#[derive(Debug)]
pub(super) enum Answer {
    /// The result of a commit; an error applies to all partitions of the commit.
    Committed(Result<(), Code>),
    /// The committed offsets of these partitions; `None` where nothing is committed.
    Offsets(Result<Vec<(Name, Option<Entry>)>, Native>),
    /// One after the last offset of each partition.
    Ends(Result<Vec<(Name, i64)>, Native>),
}

pub(super) struct Coordinator {
    requests: Sender<Request>,
    answers: Receiver<Answer>,
}

impl Coordinator {
    pub(super) fn of(member: Weak<BaseConsumer<Context>>) -> Result<Self, KafkaError> {
        let (requests, to_ask) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let ask = move || {
            for request in to_ask {
                // Held no longer than a request takes, so that the consumer's thread is the one that closes the
                // client.
                let Some(member) = member.upgrade() else { return };
                let said = match request {
                    Request::Commit(entries) => Answer::Committed(commit(&member, &entries)),
                    Request::Look(names) => Answer::Offsets(look(&member, &names)),
                    Request::Ends(names) => Answer::Ends(ends_of(&member, names)),
                };
                drop(member);
                if answer.send(said).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("kafka-offsets".to_owned()).spawn(ask).map_err(KafkaError::Thread)?;
        Ok(Self { requests, answers })
    }

    pub(super) fn commit(&self, entries: Vec<Entry>) {
        self.ask(Request::Commit(entries));
    }

    pub(super) fn look(&self, names: Vec<Name>) {
        self.ask(Request::Look(names));
    }

    pub(super) fn ends(&self, names: Vec<Name>) {
        self.ask(Request::Ends(names));
    }

    fn ask(&self, request: Request) {
        // The thread lives as long as this end of its channel.
        if self.requests.send(request).is_err() {
            warn!(event = "offsets.thread_ended", "the thread that commits offsets has ended");
        }
    }

    /// Returns the next answer, if one has arrived.
    pub(super) fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

fn commit(member: &BaseConsumer<Context>, entries: &[Entry]) -> Result<(), Code> {
    let mut list = TopicPartitionList::with_capacity(entries.len());
    for Entry { name, offset, metadata } in entries {
        let mut element = list.add_partition(&name.topic, name.number);
        if let Err(error) = element.set_offset(Offset::Offset(*offset)) {
            warn!(
                event = "offsets.rejected", partition = %name, offset, %error,
                "cannot commit an invalid offset"
            );
        }
        if !metadata.is_empty() {
            element.set_metadata(metadata);
        }
    }
    let committed = member.commit(&list, CommitMode::Sync);
    committed.map_err(|error| error.rdkafka_error_code().unwrap_or(Code::Unknown))
}

fn look(member: &BaseConsumer<Context>, names: &[Name]) -> Result<Vec<(Name, Option<Entry>)>, Native> {
    let committed = member.committed_offsets(list(names), LOOK)?;
    let found = names.iter().map(|name| {
        let Some(element) = committed.find_partition(&name.topic, name.number) else {
            return Ok((name.clone(), None));
        };
        element.error()?;
        let Offset::Offset(offset) = element.offset() else { return Ok((name.clone(), None)) };
        let metadata = element.metadata().to_owned();
        Ok((name.clone(), Some(Entry { name: name.clone(), offset, metadata })))
    });
    found.collect()
}

fn ends_of(member: &BaseConsumer<Context>, names: Vec<Name>) -> Result<Vec<(Name, i64)>, Native> {
    let partitions = names.into_iter().map(|name| (name.topic, name.number)).collect();
    let ends = ends(member, &partitions, ENDS)?;
    Ok(ends.into_iter().map(|((topic, number), end)| (Name { topic, number }, end)).collect())
}
