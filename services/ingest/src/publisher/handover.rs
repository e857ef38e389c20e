//! How the writer hands over what it has committed.
//!
//! The publisher learns of a commit either from memory or from the outbox table: never from both, never from neither,
//! and always in the order of ids. The writer holds its [`Turn`] over the commit and the hand-over; the publisher takes
//! the same lock to change the source.
//!
//! *From the table to memory.* The publisher reads the table in the order of ids, each page behind the one before, so
//! at any time it has published exactly the rows up to its place. When it holds the lock, no commit is under way. It
//! reads the rows behind its place, publishes all of them and sets [`Source::Memory`] before it releases the lock. Every
//! earlier commit is then published, from the table, before any later one, which comes from memory: neither both nor
//! neither, and in order. If it cannot publish them all at once, the source stays the table.
//!
//! *From memory to the table.* Whichever side sets [`Source::Table`] holds the lock, so each commit is entirely before
//! or after that. The publisher then discards what memory still holds (those requests are in the table as well), waits
//! until all records under way are settled and out of the table, and reads from the beginning.
//!
//! A row may also appear before the publisher's place: of another node's outbox that was taken over, or of a commit
//! that was cut off and took effect later. Each has [`Gate::look_in_the_table`] called after it is visible, which the
//! publisher remembers until it reads from the beginning the next time.

use std::sync::Arc;

use throughline_store::OutboxRequest;
use tokio::sync::{Mutex, MutexGuard, Notify, mpsc};

use super::send::size_of;
use super::window::{Hold, Window};

/// Where the publisher learns of commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
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
    /// The table has to be read from its beginning.
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
        let window = Window::new(1, 1 << 20, crate::Broker::Durable, std::time::Duration::ZERO);
        handover(Arc::new(window)).0
    }

    /// With a publisher at the other end that learns of commits from memory.
    #[cfg(test)]
    pub(crate) async fn read_from_memory() -> (Self, impl FnMut() -> Option<OutboxRequest>) {
        let window = Window::new(1000, 1 << 20, crate::Broker::Durable, std::time::Duration::ZERO);
        let (handover, gate, mut fresh) = handover(Arc::new(window));
        *gate.source().await = Source::Memory;
        (handover, move || fresh.try_recv().ok().map(|(request, _)| request))
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
            let hold = self.handover.window.try_hold(request.id, size_of(&request));
            let handed_over = hold.is_some_and(|hold| self.handover.fresh.send((request, hold)).is_ok());
            if !handed_over {
                // The window is full: what comes now must not overtake this request, which is left to the table.
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
