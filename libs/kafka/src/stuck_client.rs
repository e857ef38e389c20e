//! Detects a client that no longer knows any broker.
//!
//! librdkafka forgets brokers that metadata does not name. If metadata names none, as after a cluster was frozen,
//! librdkafka starts over with `bootstrap.servers`, unless another event intervenes: then it waits forever, without a
//! log line (<https://github.com/confluentinc/librdkafka/issues/5301>). Such a client is replaced.

use std::sync::atomic::{AtomicU32, Ordering};

use rdkafka::Statistics;

/// How many statistics in a row must name no broker: after a single one, librdkafka may be about to start over.
const OFTEN: u32 = 2;

/// Whether a client is lost, according to its statistics.
#[derive(Debug, Default)]
pub(crate) struct StuckClient(AtomicU32);

impl StuckClient {
    /// Handles librdkafka's statistics. Returns true once, when they have established that the client is lost.
    pub(crate) fn note(&self, statistics: &Statistics) -> bool {
        // The other sources are librdkafka's own threads, and aliases of a group's coordinator.
        let is_known = |source: &str| matches!(source, "configured" | "learned");
        if statistics.brokers.values().any(|broker| is_known(&broker.source)) {
            self.0.store(0, Ordering::Relaxed);
            return false;
        }
        self.0.fetch_add(1, Ordering::Relaxed) + 1 == OFTEN
    }

    pub(crate) fn is_so(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= OFTEN
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::statistics::Broker;

    use super::*;

    fn with(sources: &[&str]) -> Statistics {
        let broker = |source: &&str| {
            let broker = Broker { source: (*source).to_owned(), ..Broker::default() };
            ((*source).to_owned(), broker)
        };
        Statistics { brokers: sources.iter().map(broker).collect(), ..Statistics::default() }
    }

    #[test]
    fn a_client_that_twice_in_a_row_knows_no_broker_is_lost_and_reports_it_once() {
        let lost = StuckClient::default();
        let said: Vec<_> = [
            with(&["internal", "logical"]),
            with(&["internal", "configured"]),
            with(&[]),
            with(&["learned"]),
            with(&["internal"]),
            with(&["logical"]),
            with(&[]),
        ]
        .iter()
        .map(|statistics| (lost.note(statistics), lost.is_so()))
        .collect();
        let calm = (false, false);
        assert_eq!(said, [calm, calm, calm, calm, calm, (true, true), (false, true)]);
    }
}
