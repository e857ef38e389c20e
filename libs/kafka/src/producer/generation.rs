//! The successive clients of a producer: no record of a client overtakes those of the client before it.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use rdkafka::error::KafkaError as Native;
use rdkafka::producer::BaseRecord;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Client;
use crate::{Outgoing, Position, SendError};

type Report = Result<Position, SendError>;

/// Resolves when the broker has acknowledged a record, or when it is known that it will not.
///
/// The record counts as settled once this is dropped; `.await` drops it when it resolves.
#[must_use = "without its acknowledgement, it is unknown whether the broker has the record"]
#[derive(Debug)]
pub struct Acknowledgement {
    report: oneshot::Receiver<Report>,
    _unsettled: Arc<()>,
}

impl Future for Acknowledgement {
    type Output = Report;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Report> {
        let report = ready!(Pin::new(&mut self.report).poll(context));
        Poll::Ready(report.unwrap_or_else(|_| Err(SendError::new(Native::Canceled))))
    }
}

/// A client, from its creation until another replaces it.
pub(super) struct Generation {
    pub(super) client: Client,
    /// Each unsettled [`Acknowledgement`] of this client holds a clone.
    unsettled: Arc<()>,
    /// The same for the client before it. While it is held, this client takes no record; so any earlier client has
    /// nothing unsettled.
    predecessor: Weak<()>,
}

impl Generation {
    pub(super) fn new(client: Client) -> Self {
        Self { client, unsettled: Arc::default(), predecessor: Weak::new() }
    }

    /// Installs another client, and returns the one that it replaces.
    pub(super) fn replace(&mut self, client: Client) -> Client {
        let unsettled = std::mem::take(&mut self.unsettled);
        if !self.is_preceded() {
            self.predecessor = Arc::downgrade(&unsettled);
        }
        std::mem::replace(&mut self.client, client)
    }

    /// Returns whether records of the client before this one are unsettled.
    fn is_preceded(&self) -> bool {
        self.predecessor.strong_count() > 0
    }

    /// Hands a record to the client; returns `None` while records of the client before it are unsettled.
    pub(super) fn enqueue(&self, record: &Outgoing) -> Option<Result<Acknowledgement, Native>> {
        if self.is_preceded() {
            return None;
        }
        let (sender, report) = oneshot::channel();
        let native = BaseRecord {
            topic: &record.topic,
            partition: None,
            payload: Some(record.payload.as_ref()),
            key: record.key.as_deref(),
            timestamp: None,
            headers: Some(record.native_headers()),
            delivery_opaque: Box::new(Waiting { report: sender, since: Instant::now() }),
        };
        let sent = self.client.send(native).map_err(|(error, _)| error);
        Some(sent.map(|()| Acknowledgement { report, _unsettled: Arc::clone(&self.unsettled) }))
    }
}

/// The receiver of a record's delivery report.
pub(crate) struct Waiting {
    report: oneshot::Sender<Report>,
    /// When the record was enqueued.
    pub(super) since: Instant,
}

impl Waiting {
    /// Passes the report on, unless the acknowledgement was dropped.
    pub(super) fn answer(self, report: Report) {
        let _ = self.report.send(report);
    }
}
