//! A client that knows no broker any more.
//!
//! librdkafka forgets brokers that metadata does not name. Where it names none, as of a cluster that has just stood
//! still, it begins anew with `bootstrap.servers`, unless something comes between: then it waits for good, without a
//! word (<https://github.com/confluentinc/librdkafka/issues/5301>). Such a client is replaced.

use std::sync::atomic::{AtomicU32, Ordering};

use rdkafka::Statistics;

/// How often in a row it has to say so: once, it may be about to begin anew.
const OFTEN: u32 = 2;

/// Whether a client has lost its way, by its statistics.
#[derive(Debug, Default)]
pub(crate) struct Lost(AtomicU32);

impl Lost {
    /// Takes what librdkafka says of itself. True when it has become clear that the client is lost, and only then.
    pub(crate) fn note(&self, statistics: &Statistics) -> bool {
        // Others are its own threads, and names for the coordinator of a group.
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
    fn who_twice_in_a_row_knows_no_broker_is_lost_and_that_is_said_once() {
        let lost = Lost::default();
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
