//! How the writer hands over what it has committed.
//!
//! The publisher learns of a commit either from memory or from the outbox table, never from both and
//! never from neither. The writer holds its [`Turn`] over the commit; so when the publisher holds it,
//! no commit is under way, and an outbox that is empty then is empty for good: from there on every
//! commit comes from memory.

use std::sync::Arc;

use throughline_store::OutboxRequest;
use tokio::sync::{Mutex, MutexGuard, Notify, mpsc};

use super::window::{Hold, Window};

/// Where the publisher learns of commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Memory,
    Table,
}

/// A request from memory, with its share of the window.
pub(super) type Fresh = (OutboxRequest, Hold);

/// The writer's end.
#[derive(Debug, Clone)]
pub(crate) struct Handover {
    gate: Arc<Gate>,
    fresh: mpsc::UnboundedSender<Fresh>,
    window: Arc<Window>,
}

/// What both ends share.
#[derive(Debug)]
pub(crate) struct Gate {
    source: Mutex<Source>,
    /// Somebody found reason to look in the table.
    pub(super) look: Notify,
}

impl Gate {
    pub(super) async fn source(&self) -> MutexGuard<'_, Source> {
        self.source.lock().await
    }

    /// Has the publisher look in the table: rows were taken over, or a commit's fate is not known.
    pub(crate) fn look_in_the_table(&self) {
        self.look.notify_one();
    }
}

/// The right to commit; nobody else has it meanwhile.
pub(crate) struct Turn<'a> {
    source: MutexGuard<'a, Source>,
    handover: &'a Handover,
}

/// Both ends. The publisher begins with the table, where a former life may have left something.
pub(super) fn handover(window: Arc<Window>) -> (Handover, Arc<Gate>, mpsc::UnboundedReceiver<Fresh>) {
    // Bounded by the window: each request in it holds a share.
    let (sender, fresh) = mpsc::unbounded_channel();
    let gate = Arc::new(Gate { source: Mutex::new(Source::Table), look: Notify::new() });
    (Handover { gate: Arc::clone(&gate), fresh: sender, window }, gate, fresh)
}

impl Handover {
    /// With nobody at the other end: what is committed is left to the table.
    #[cfg(test)]
    pub(crate) fn unread() -> Self {
        let window = Window::new(1, crate::Broker::Durable, std::time::Duration::ZERO);
        handover(Arc::new(window)).0
    }

    /// Waits for the right to commit.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        Turn { source: self.gate.source().await, handover: self }
    }
}

impl Turn<'_> {
    /// These are committed, in the order of their ids.
    pub(crate) fn committed(&mut self, requests: Vec<OutboxRequest>) {
        for request in requests {
            if *self.source == Source::Table {
                return;
            }
            let hold = self.handover.window.try_hold(request.id, request.body.len());
            let handed_over = hold.is_some_and(|hold| self.handover.fresh.send((request, hold)).is_ok());
            if !handed_over {
                // Memory is full: what comes now must not overtake what is left to the table.
                self.look_in_the_table();
            }
        }
    }

    /// From here on the table is where to look.
    pub(crate) fn look_in_the_table(&mut self) {
        *self.source = Source::Table;
        self.handover.gate.look_in_the_table();
    }
}
