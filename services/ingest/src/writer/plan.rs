//! A batch arranged so that each idempotency key occurs in it once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use chrono::{DateTime, Utc};
use throughline_snowflake::{Generator, RequestId};
use throughline_store::NewRequest;
use throughline_store::idempotency::Claim;

use super::Context;
use super::queue::{BodyPermit, CommitResult, Submission};

/// The rows to insert: the requests in one slice, as the store takes them, and, at the same index, the claim of each
/// request that has an idempotency key.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) requests: Vec<NewRequest>,
    pub(super) claims: Vec<Option<Claim>>,
}

/// A batch in which each idempotency key occurs once: the first submission with a key represents the others.
pub(super) struct Plan {
    pub(super) rows: Rows,
    /// For each submission, how its result follows from the result of a row.
    result_of: Vec<ResultOf>,
    /// The permits of the rows' bodies, held until the batch is done.
    _permits: Vec<BodyPermit>,
}

enum ResultOf {
    /// The submission has a row of its own.
    Own(usize),
    /// The row belongs to a submission with the same key and the same body.
    SameAs(usize),
    /// The row belongs to a submission with the same key and another body.
    OtherThan(usize),
}

impl Plan {
    pub(super) fn new(
        submissions: Vec<Submission>,
        ids: &Generator,
        now: DateTime<Utc>,
        context: &Context,
    ) -> Self {
        let mut rows = Rows::default();
        let mut permits = Vec::with_capacity(submissions.len());
        let mut result_of = Vec::with_capacity(submissions.len());
        let mut keys = HashMap::new();
        for submission in submissions {
            if let Some((key, fingerprint)) = &submission.idempotency {
                match keys.entry(key.clone()) {
                    Entry::Occupied(first) => {
                        let (row, represented): &(usize, [u8; 32]) = first.get();
                        let is_same = represented == fingerprint;
                        result_of.push(if is_same {
                            ResultOf::SameAs(*row)
                        } else {
                            ResultOf::OtherThan(*row)
                        });
                        continue;
                    }
                    Entry::Vacant(first) => {
                        first.insert((rows.requests.len(), *fingerprint));
                    }
                }
            }
            result_of.push(ResultOf::Own(rows.requests.len()));
            permits.push(rows.push(submission, ids.generate(), now, context));
        }
        Self { rows, result_of, _permits: permits }
    }

    /// Returns the results of all submissions, from the results of the rows.
    pub(super) fn spread(&self, rows: &[CommitResult]) -> Vec<CommitResult> {
        let result = |source: &ResultOf| match source {
            ResultOf::Own(row) => rows[*row],
            ResultOf::SameAs(row) => match rows[*row] {
                CommitResult::Accepted(id) => CommitResult::Repeated(id),
                other => other,
            },
            ResultOf::OtherThan(row) => match rows[*row] {
                CommitResult::Accepted(_) | CommitResult::Repeated(_) => CommitResult::KeyReused,
                // The key stands for an earlier request, possibly one with this body.
                CommitResult::KeyReused => CommitResult::InFlight,
                other => other,
            },
        };
        self.result_of.iter().map(result).collect()
    }
}

impl Rows {
    /// Splits off the rows from `middle` on; the rows before it stay.
    pub(super) fn split_off(&mut self, middle: usize) -> Self {
        Self { requests: self.requests.split_off(middle), claims: self.claims.split_off(middle) }
    }

    /// Adds the row of a submission, and returns the permit of its body.
    fn push(
        &mut self,
        submission: Submission,
        id: RequestId,
        now: DateTime<Utc>,
        context: &Context,
    ) -> BodyPermit {
        let Submission { route, payload, client, ordering_key, idempotency } = submission;
        self.claims.push(idempotency.map(|(key, fingerprint)| Claim {
            key,
            request_id: id,
            fingerprint,
            expires_at: now + context.idempotency_window,
        }));
        let ordering_group = |key: &String| format!("{}/{key}", route.name);
        self.requests.push(NewRequest {
            id,
            ordering_group: ordering_key.as_ref().filter(|_| route.keeps_order).map(ordering_group),
            route: route.name.clone(),
            ordering_key,
            body: payload.body,
            content_type: payload.content_type,
            headers: payload.headers,
            trace: payload.trace,
            client,
            origin: payload.origin,
            accepted_at: now,
            destinations: route.destinations.clone(),
            due_at: now + context.redelivery_timeout,
        });
        payload.permit
    }
}

#[cfg(test)]
mod tests {
    use throughline_clock::Clock;
    use throughline_store::idempotency::{Key, Scope};

    use super::super::queue::Queue;
    use super::super::tests::{context, submission};
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
        Plan::new(keys.iter().map(keyed).collect(), &ids, clock.now(), &context())
    }

    #[test]
    fn ids_rise_in_the_order_of_commit() {
        let plan = plan(&[None, None, None]);
        assert!(plan.rows.requests.is_sorted_by(|a, b| a.id < b.id));
    }

    #[test]
    fn within_a_batch_a_key_repeats_for_the_same_body_and_conflicts_for_another() {
        let plan = plan(&[Some(("a", 1)), None, Some(("a", 1)), Some(("a", 2)), Some(("b", 2))]);
        let ids: Vec<_> = plan.rows.requests.iter().map(|request| request.id).collect();
        assert_eq!(ids.len(), 3, "the key of another client is another key");
        let accepted: Vec<_> = ids.iter().copied().map(CommitResult::Accepted).collect();
        assert_eq!(
            plan.spread(&accepted),
            [accepted[0], accepted[1], CommitResult::Repeated(ids[0]), CommitResult::KeyReused, accepted[2]]
        );
        // A row that is not committed fails all submissions with its key in the same way.
        for other in [CommitResult::Failed, CommitResult::Unavailable, CommitResult::InFlight] {
            assert_eq!(plan.spread(&[other; 3])[2..4], [other; 2]);
        }
    }

    #[test]
    fn a_rejected_body_does_not_reject_another() {
        let plan = plan(&[Some(("a", 1)), Some(("a", 1)), Some(("a", 2))]);
        // An earlier request has the key; at most one of the two bodies equals its body.
        let results = plan.spread(&[CommitResult::KeyReused]);
        assert_eq!(results, [CommitResult::KeyReused, CommitResult::KeyReused, CommitResult::InFlight]);
    }
}
