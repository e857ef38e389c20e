//! A batch, put so that each idempotency key stands in it once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use chrono::{DateTime, Utc};
use throughline_snowflake::{Generator, RequestId};
use throughline_store::NewRequest;
use throughline_store::idempotency::Claim;

use super::Terms;
use super::queue::{Room, Submission, Verdict};

/// One row to insert, with its claim if it came with an idempotency key.
pub(super) struct Row {
    pub(super) request: NewRequest,
    pub(super) claim: Option<Claim>,
    _room: Room,
}

/// A batch in which each idempotency key stands once: the first to come stands for the others.
pub(super) struct Plan {
    pub(super) rows: Vec<Row>,
    /// For each submission its row, or that its key already stands for another body.
    verdict_of: Vec<Share>,
}

enum Share {
    Own(usize),
    SameAs(usize),
    KeyReused,
}

impl Plan {
    pub(super) fn new(
        submissions: Vec<Submission>,
        ids: &Generator,
        now: DateTime<Utc>,
        terms: &Terms,
    ) -> Self {
        let mut rows: Vec<Row> = Vec::with_capacity(submissions.len());
        let mut verdict_of = Vec::with_capacity(submissions.len());
        let mut keys = HashMap::new();
        for submission in submissions {
            if let Some((key, fingerprint)) = &submission.idempotency {
                match keys.entry((submission.route.clone(), key.clone())) {
                    Entry::Occupied(first) => {
                        let (row, stands_for): &(usize, [u8; 32]) = first.get();
                        let is_same = stands_for == fingerprint;
                        verdict_of.push(if is_same { Share::SameAs(*row) } else { Share::KeyReused });
                        continue;
                    }
                    Entry::Vacant(first) => {
                        first.insert((rows.len(), *fingerprint));
                    }
                }
            }
            verdict_of.push(Share::Own(rows.len()));
            rows.push(Row::new(submission, ids.generate(), now, terms));
        }
        Self { rows, verdict_of }
    }

    /// The verdicts on all submissions, from those on the rows.
    pub(super) fn spread(&self, rows: &[Verdict]) -> Vec<Verdict> {
        let verdict = |share: &Share| match share {
            Share::Own(row) => rows[*row],
            Share::SameAs(row) => match rows[*row] {
                Verdict::Accepted(id) => Verdict::Repeated(id),
                other => other,
            },
            Share::KeyReused => Verdict::KeyReused,
        };
        self.verdict_of.iter().map(verdict).collect()
    }
}

impl Row {
    fn new(submission: Submission, id: RequestId, now: DateTime<Utc>, terms: &Terms) -> Self {
        let claim = submission.idempotency.map(|(key, fingerprint)| Claim {
            route: submission.route.clone(),
            key,
            request_id: id,
            fingerprint,
            expires_at: now + terms.idempotency_window,
        });
        let lane = |key: &String| format!("{}/{key}", submission.route);
        let request = NewRequest {
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
        };
        Self { request, claim, _room: submission.room }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use chrono::TimeDelta;
    use throughline_clock::Clock;

    use super::super::queue::Queue;
    use super::*;
    use crate::metrics::Metrics;

    fn terms() -> Terms {
        Terms {
            batch: 8,
            queue: 8,
            body_limit: 1 << 20,
            deadline: Duration::from_secs(5),
            idempotency_window: TimeDelta::hours(24),
            patience: TimeDelta::minutes(15),
            metrics: Metrics::new(&throughline_testkit::unmeasured()),
        }
    }

    fn plan(keys: &[Option<(&str, u8)>]) -> Plan {
        let clock = Clock::manual(DateTime::from_timestamp(1_767_225_600, 0).unwrap());
        let ids = Generator::new(7.try_into().unwrap(), clock.clone(), DateTime::UNIX_EPOCH);
        let (queue, _) = Queue::new(1, 16 << 10);
        let submission = |key: &Option<(&str, u8)>| Submission {
            room: queue.reserve(1).unwrap(),
            route: "one".to_owned(),
            destinations: ["three".to_owned()].into(),
            body: Bytes::from_static(b"{}"),
            content_type: "application/json".to_owned(),
            headers: Vec::new(),
            ordering_key: None,
            keeps_order: false,
            trace: None,
            client: None,
            origin: None,
            idempotency: key.map(|(key, body)| (key.to_owned(), [body; 32])),
        };
        Plan::new(keys.iter().map(submission).collect(), &ids, clock.now(), &terms())
    }

    #[test]
    fn ids_rise_in_the_order_of_commit() {
        let plan = plan(&[None, None, None]);
        assert!(plan.rows.is_sorted_by(|a, b| a.request.id < b.request.id));
    }

    #[test]
    fn within_a_batch_the_first_under_a_key_stands_for_the_same_body_and_against_another() {
        let plan = plan(&[Some(("k", 1)), None, Some(("k", 1)), Some(("k", 2)), Some(("l", 2))]);
        assert_eq!(plan.rows.len(), 3);
        let accepted: Vec<_> = plan.rows.iter().map(|row| Verdict::Accepted(row.request.id)).collect();
        let ids: Vec<_> = plan.rows.iter().map(|row| row.request.id).collect();
        assert_eq!(
            plan.spread(&accepted),
            [accepted[0], accepted[1], Verdict::Repeated(ids[0]), Verdict::KeyReused, accepted[2]]
        );
        // What stands for a request that failed has failed with it.
        assert_eq!(plan.spread(&[Verdict::Failed; 3])[2], Verdict::Failed);
    }
}
