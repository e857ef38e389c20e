//! Limits the bytes of the records that a consumer holds.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

/// Room for the records of a consumer, from the moment the consumer's thread copies them out of librdkafka until they
/// are finished or dropped.
#[derive(Debug)]
pub(crate) struct Budget {
    most: usize,
    held: AtomicUsize,
    /// The consumer's thread, which is woken when there is room again.
    thread: OnceLock<Thread>,
}

/// The bytes of one record, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    room: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, held: AtomicUsize::new(0), thread: OnceLock::new() })
    }

    /// Sets the thread to wake when there is room again.
    pub(crate) fn wakes(&self, thread: Thread) {
        self.thread.get_or_init(|| thread);
    }

    /// Returns whether one more record may be taken, whatever its size.
    pub(crate) fn is_left(&self) -> bool {
        self.held.load(Ordering::Acquire) < self.most
    }

    /// Takes room for a record.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Held {
        self.held.fetch_add(bytes, Ordering::AcqRel);
        Held { room: Arc::clone(self), bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let before = self.room.held.fetch_sub(self.bytes, Ordering::AcqRel);
        if before >= self.room.most
            && let Some(thread) = self.room.thread.get()
        {
            thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_left_until_the_bytes_are_reached_and_again_when_records_are_dropped() {
        let room = Budget::new(100);
        let first = room.hold(99);
        assert!(room.is_left());
        let second = room.hold(50);
        assert!(!room.is_left());
        drop(first);
        assert!(room.is_left());
        let large = room.hold(1000);
        drop(second);
        assert!(!room.is_left());
        drop(large);
        assert_eq!(room.held.load(Ordering::Relaxed), 0);
    }
}
