//! A batch, put so that each idempotency key stands in it once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use chrono::{DateTime, Utc};
use throughline_snowflake::{Generator, RequestId};
use throughline_store::NewRequest;
use throughline_store::idempotency::Claim;

use super::Terms;
use super::queue::{Room, Submission, Verdict};

/// What to insert: requests, side by side as the store takes them, and as many claims, of those that came with an
/// idempotency key.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) requests: Vec<NewRequest>,
    pub(super) claims: Vec<Option<Claim>>,
}

/// A batch in which each idempotency key stands once: the first to come stands for the others.
pub(super) struct Plan {
    pub(super) rows: Rows,
    /// For each submission, how the verdict on it follows from that on a row.
    verdict_of: Vec<Share>,
    /// Of the rows, until all is done.
    _rooms: Vec<Room>,
}

enum Share {
    /// The row is its own.
    Own(usize),
    /// The row is of a submission with the same key and the same body.
    SameAs(usize),
    /// The row is of a submission with the same key and another body.
    OtherThan(usize),
}

impl Plan {
    pub(super) fn new(
        submissions: Vec<Submission>,
        ids: &Generator,
        now: DateTime<Utc>,
        terms: &Terms,
    ) -> Self {
        let mut rows = Rows::default();
        let mut rooms = Vec::with_capacity(submissions.len());
        let mut verdict_of = Vec::with_capacity(submissions.len());
        let mut keys = HashMap::new();
        for submission in submissions {
            if let Some((key, fingerprint)) = &submission.idempotency {
                match keys.entry(key.clone()) {
                    Entry::Occupied(first) => {
                        let (row, stands_for): &(usize, [u8; 32]) = first.get();
                        let is_same = stands_for == fingerprint;
                        verdict_of.push(if is_same { Share::SameAs(*row) } else { Share::OtherThan(*row) });
                        continue;
                    }
                    Entry::Vacant(first) => {
                        first.insert((rows.requests.len(), *fingerprint));
                    }
                }
            }
            verdict_of.push(Share::Own(rows.requests.len()));
            rooms.push(rows.push(submission, ids.generate(), now, terms));
        }
        Self { rows, verdict_of, _rooms: rooms }
    }

    /// The verdicts on all submissions, from those on the rows.
    pub(super) fn spread(&self, rows: &[Verdict]) -> Vec<Verdict> {
        let verdict = |share: &Share| match share {
            Share::Own(row) => rows[*row],
            Share::SameAs(row) => match rows[*row] {
                Verdict::Accepted(id) => Verdict::Repeated(id),
                other => other,
            },
            Share::OtherThan(row) => match rows[*row] {
                Verdict::Accepted(_) | Verdict::Repeated(_) => Verdict::KeyReused,
                // The key stands for a request that came before; maybe of this body.
                Verdict::KeyReused => Verdict::InFlight,
                other => other,
            },
        };
        self.verdict_of.iter().map(verdict).collect()
    }
}

impl Rows {
    /// The rows from the one at `middle` on; those before it stay.
    pub(super) fn split_off(&mut self, middle: usize) -> Self {
        Self { requests: self.requests.split_off(middle), claims: self.claims.split_off(middle) }
    }

    /// Adds one, and gives back the room that its body takes.
    fn push(&mut self, submission: Submission, id: RequestId, now: DateTime<Utc>, terms: &Terms) -> Room {
        self.claims.push(submission.idempotency.map(|(key, fingerprint)| Claim {
            key,
            request_id: id,
            fingerprint,
            expires_at: now + terms.idempotency_window,
        }));
        let lane = |key: &String| format!("{}/{key}", submission.route);
        self.requests.push(NewRequest {
            id,
            lane: submission.ordering_key.as_ref().filter(|_| submission.keeps_order).map(lane),
            route: submission.route,
            ordering_key: submission.ordering_key,
            body: submission.body,
            content_type: submission.content_type,
            headers: submission.headers,
            trace: submission.trace,
            client: submission.client,
            origin: submission.origin,
            accepted_at: now,
            destinations: submission.destinations.to_vec(),
            due_at: now + terms.patience,
        });
        submission.room
    }
}

#[cfg(test)]
mod tests {
    use throughline_clock::Clock;
    use throughline_store::idempotency::{Key, Scope};

    use super::super::queue::Queue;
    use super::super::tests::{submission, terms};
    use super::*;

    fn plan(keys: &[Option<(&str, u8)>]) -> Plan {
        let clock = Clock::manual(DateTime::from_timestamp(1_767_225_600, 0).unwrap());
        let ids = Generator::new(7.try_into().unwrap(), clock.clone(), DateTime::UNIX_EPOCH);
        let (queue, _) = Queue::new(1, 16 << 10, 1);
        let key_of = |client: &str| Key {
            route: "one".to_owned(),
            scope: Scope::Client(client.to_owned()),
            key: "k".to_owned(),
        };
        let keyed = |key: &Option<(&str, u8)>| Submission {
            idempotency: key.map(|(client, body)| (key_of(client), [body; 32])),
            ..submission(&queue)
        };
        Plan::new(keys.iter().map(keyed).collect(), &ids, clock.now(), &terms())
    }

    #[test]
    fn ids_rise_in_the_order_of_commit() {
        let plan = plan(&[None, None, None]);
        assert!(plan.rows.requests.is_sorted_by(|a, b| a.id < b.id));
    }

    #[test]
    fn within_a_batch_the_first_under_a_key_stands_for_the_same_body_and_against_another() {
        let plan = plan(&[Some(("a", 1)), None, Some(("a", 1)), Some(("a", 2)), Some(("b", 2))]);
        let ids: Vec<_> = plan.rows.requests.iter().map(|request| request.id).collect();
        assert_eq!(ids.len(), 3, "the key of another client is another key");
        let accepted: Vec<_> = ids.iter().copied().map(Verdict::Accepted).collect();
        assert_eq!(
            plan.spread(&accepted),
            [accepted[0], accepted[1], Verdict::Repeated(ids[0]), Verdict::KeyReused, accepted[2]]
        );
        // A row that is not committed takes with it those that it stands for, and speaks against none.
        for other in [Verdict::Failed, Verdict::Unavailable, Verdict::InFlight] {
            assert_eq!(plan.spread(&[other; 3])[2..4], [other; 2]);
        }
    }

    #[test]
    fn a_body_is_not_refused_because_another_one_is() {
        let plan = plan(&[Some(("a", 1)), Some(("a", 1)), Some(("a", 2))]);
        // An earlier request has the key, whose body is that of one of them at most.
        let verdicts = plan.spread(&[Verdict::KeyReused]);
        assert_eq!(verdicts, [Verdict::KeyReused, Verdict::KeyReused, Verdict::InFlight]);
    }
}
