//! What is asked of the group's coordinator, on a thread of its own: an answer may take as long as a session lasts,
//! and the consumer's thread has to go on meanwhile.

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

/// How long the coordinator may take to say what is committed, before it is asked again.
const LOOK: Duration = Duration::from_secs(5);

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
}

/// What the coordinator said.
#[derive(Debug)]
pub(super) enum Answer {
    /// To a commit; an error is that of all of its partitions.
    Committed(Result<(), Code>),
    /// What is committed of these partitions; none where nothing is.
    Offsets(Result<Vec<(Name, Option<Entry>)>, Native>),
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
                // Held no longer than a request takes: the consumer's thread is to be the one that closes it.
                let Some(member) = member.upgrade() else { return };
                let said = match request {
                    Request::Commit(entries) => Answer::Committed(commit(&member, &entries)),
                    Request::Look(names) => Answer::Offsets(look(&member, &names)),
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

    fn ask(&self, request: Request) {
        // The thread lives as long as this end of its channel.
        if self.requests.send(request).is_err() {
            warn!("the thread for offsets has ended");
        }
    }

    /// The next answer, if there is one.
    pub(super) fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

fn commit(member: &BaseConsumer<Context>, entries: &[Entry]) -> Result<(), Code> {
    let mut list = TopicPartitionList::with_capacity(entries.len());
    for Entry { name, offset, metadata } in entries {
        let mut element = list.add_partition(&name.topic, name.number);
        if let Err(error) = element.set_offset(Offset::Offset(*offset)) {
            warn!(partition = %name, offset, %error, "an offset cannot be committed");
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
