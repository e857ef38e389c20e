//! Limits the bytes of the records that a consumer holds.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

/// The memory for the records of a consumer, from the moment the consumer's thread copies them out of librdkafka until
/// they are finished or dropped.
#[derive(Debug)]
pub(crate) struct Budget {
    most: usize,
    held: AtomicUsize,
    /// The consumer's thread, which is woken when memory is free again.
    thread: OnceLock<Thread>,
}

/// The bytes of one record, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, held: AtomicUsize::new(0), thread: OnceLock::new() })
    }

    /// Sets the thread to wake when memory is free again.
    pub(crate) fn wakes(&self, thread: Thread) {
        self.thread.get_or_init(|| thread);
    }

    /// Returns whether one more record may be taken, whatever its size.
    pub(crate) fn is_left(&self) -> bool {
        self.held.load(Ordering::Acquire) < self.most
    }

    /// Takes memory for a record.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Held {
        self.held.fetch_add(bytes, Ordering::AcqRel);
        Held { budget: Arc::clone(self), bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let before = self.budget.held.fetch_sub(self.bytes, Ordering::AcqRel);
        if before >= self.budget.most
            && let Some(thread) = self.budget.thread.get()
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
        let budget = Budget::new(100);
        let first = budget.hold(99);
        assert!(budget.is_left());
        let second = budget.hold(50);
        assert!(!budget.is_left());
        drop(first);
        assert!(budget.is_left());
        let large = budget.hold(1000);
        drop(second);
        assert!(!budget.is_left());
        drop(large);
        assert_eq!(budget.held.load(Ordering::Relaxed), 0);
    }
}
