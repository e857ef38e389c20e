//! Compares what clients were answered, what the third party received, and what the database says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Display;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::Value;
use throughline_snowflake::{NodeId, RequestId};

use crate::rates;

use crate::cast::Replica;
use crate::faults::Fault;
use crate::foreign::ForeignRecord;
use crate::load::{Experience, Maker, Posted, Silence};
use crate::scene::Row;
use crate::strike::Window;
use crate::third_party::{Call, Wish};
use crate::watch::{Watch, stamp};

/// What a sweeper logs that has to help lost records along.
const PUBLISHED_AGAIN: &str = "nothing was heard of deliveries; published again";

/// Examples that are shown of what is wrong.
const SHOWN: usize = 3;

/// All that is known at the end.
pub(crate) struct Evidence {
    pub(crate) watch: Watch,
    /// Until when nothing went wrong.
    pub(crate) calm_until: Duration,
    pub(crate) windows: Vec<Window>,
    pub(crate) seen: Experience,
    pub(crate) calls: Vec<Call>,
    pub(crate) rows: Vec<Row>,
    /// What others have produced onto a route's topic.
    pub(crate) foreign: Vec<ForeignRecord>,
    /// Rows left in the outbox.
    pub(crate) unpublished: i64,
    /// What the programs have printed.
    pub(crate) lines: Vec<(Replica, String)>,
    /// What the programs did that they should not.
    pub(crate) faux_pas: Vec<String>,
}

/// What comes out.
#[derive(Default)]
pub(crate) struct Verdict {
    pub(crate) totals: Vec<(&'static str, String)>,
    /// What is wrong; nothing, if all promises were kept.
    pub(crate) wrong: Vec<String>,
}

/// Compares.
pub(crate) fn close(evidence: &Evidence) -> Verdict {
    let books = Books::new(evidence);
    let mut verdict = Verdict::default();
    books.clients(&mut verdict);
    books.nodes(&mut verdict);
    books.states(&mut verdict);
    books.third_party(&mut verdict);
    books.repetitions(&mut verdict);
    books.order(&mut verdict);
    books.foreign(&mut verdict);
    verdict.wrong.extend(rates::compare(evidence));
    books.losses(&mut verdict);
    books.manners(&mut verdict);
    verdict
}

impl Verdict {
    fn total(&mut self, of: &'static str, what: String) {
        self.totals.push((of, what));
    }

    /// Nothing of this kind should be there.
    fn expect_none<T: Display>(&mut self, what: &str, found: impl IntoIterator<Item = T>) {
        let found: Vec<String> = found.into_iter().map(|found| found.to_string()).collect();
        if !found.is_empty() {
            let shown = found.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
            self.wrong.push(format!("{}, {what}: {shown}", found.len()));
        }
    }
}

/// Deliveries that a sweeper helped along.
struct Rescue {
    by: Replica,
    at: Duration,
    count: u64,
}

/// The evidence, with what is needed to look things up.
struct Books<'a> {
    evidence: &'a Evidence,
    by_id: HashMap<RequestId, &'a Row>,
    by_key: HashMap<&'a str, &'a Posted>,
    /// When the third party acknowledged each request, in order.
    acknowledged: BTreeMap<RequestId, Vec<Duration>>,
}

impl<'a> Books<'a> {
    fn new(evidence: &'a Evidence) -> Self {
        let by_id = evidence.rows.iter().filter_map(|row| Some((row.id()?, row))).collect();
        let by_key = evidence.seen.posted.iter().map(|posted| (posted.key.as_str(), posted)).collect();
        let mut acknowledged = BTreeMap::<_, Vec<_>>::new();
        for call in &evidence.calls {
            if let (Some(id), Some((at, StatusCode::OK))) = (call.id, call.answered) {
                acknowledged.entry(id).or_default().push(at);
            }
        }
        for times in acknowledged.values_mut() {
            times.sort();
        }
        Self { evidence, by_id, by_key, acknowledged }
    }

    fn posted(&self, row: &Row) -> Option<&'a Posted> {
        self.by_key.get(row.key.as_deref()?).copied()
    }

    /// What was accepted is there, once, and nothing else is.
    fn clients(&self, verdict: &mut Verdict) {
        let Experience { posted, refused, broken, silences, .. } = &self.evidence.seen;
        let accepted: Vec<_> = posted.iter().filter_map(|posted| Some((posted.id?, posted))).collect();
        let unanswered = posted.len() - accepted.len();
        let is_unanswered = |row: &&Row| self.posted(row).is_some_and(|posted| posted.id.is_none());
        let kept = self.evidence.rows.iter().filter(is_unanswered).count();
        verdict.total("clients", format!("{} requests posted, {} accepted", posted.len(), accepted.len()));
        verdict
            .total("", format!("{unanswered} given up after several tries, of which {kept} had been kept"));
        verdict.total(
            "",
            format!(
                "failed tries: {} answered 503 or 409, {broken} broken, {} not answered",
                refused.len(),
                silences.len()
            ),
        );

        let is_missing = |(id, _): &&(RequestId, _)| !self.by_id.contains_key(id);
        let missing = accepted.iter().filter(is_missing).map(|(id, _)| id);
        verdict.expect_none("accepted, and not in the database", missing);
        let is_another = |(id, posted): &&(RequestId, &Posted)| {
            self.by_id.get(id).is_some_and(|row| row.key.as_ref() != Some(&posted.key))
        };
        let others = accepted.iter().filter(is_another).map(|(id, posted)| format!("{} as {id}", posted.key));
        verdict.expect_none("accepted with the id of another request", others);
        let is_second = |row: &&Row| {
            row.origin.is_none()
                && self.posted(row).is_none_or(|posted| posted.id.is_some_and(|id| Some(id) != row.id()))
        };
        let seconds = self.evidence.rows.iter().filter(is_second);
        verdict.expect_none("in the database, and nobody posted them, or they are there twice", seconds);
        let unexcused = silences.iter().filter(|silence| !self.is_excused(silence));
        let unexcused =
            unexcused.map(|Silence { door, from, .. }| format!("ingest {} at {}", door + 1, stamp(*from)));
        verdict.expect_none("not answered in time by an ingest that was well", unexcused);
        verdict.expect_none("answered as nobody should be", &self.evidence.seen.odd);
    }

    fn is_excused(&self, silence: &Silence) -> bool {
        let mut windows = self.evidence.windows.iter().filter(|window| window.fault.keeps_clients_waiting());
        windows.any(|window| window.from <= silence.to && silence.from <= window.to)
    }

    /// No ingest went on making ids under a node id that another one had meanwhile.
    fn nodes(&self, verdict: &mut Verdict) {
        let made = self.evidence.seen.posted.iter();
        let mut made: Vec<_> = made.filter_map(|posted| Some((posted.id?, posted.made_by?))).collect();
        // In the order in which they were made.
        made.sort();
        let mut makers = BTreeMap::<NodeId, Vec<Maker>>::new();
        let mut clashes = Vec::new();
        for &(id, maker) in &made {
            let of_node = makers.entry(id.node()).or_default();
            if of_node.last() == Some(&maker) {
                continue;
            }
            if of_node.contains(&maker) {
                let between = of_node.last().map_or(0, |other| other.door + 1);
                clashes.push(format!("{id} of ingest {}, after ingest {between}", maker.door + 1));
            }
            of_node.push(maker);
        }
        let inherited = makers.values().filter(|makers| makers.len() > 1).count();
        let nodes = makers.len();
        verdict.total(
            "node ids",
            format!(
                "{nodes}, of which {inherited} went from one to another, in {} ids whose makers are known",
                made.len()
            ),
        );
        verdict.expect_none("ids were made under a node id that another ingest had meanwhile", clashes);
        let is_restart = |window: &Window| window.fault == Fault::RollingRestart;
        let was_restarted = self.evidence.windows.iter().any(is_restart);
        let none = (was_restarted && inherited == 0).then_some("so nothing is known of such");
        verdict.expect_none("no node id went from one ingest to another", none);
    }

    /// Every delivery has ended, as it should.
    fn states(&self, verdict: &mut Verdict) {
        let rows = &self.evidence.rows;
        let mut counts = BTreeMap::<_, usize>::new();
        for row in rows {
            let state = row.state.as_deref().unwrap_or("without a delivery");
            let reason = row.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            *counts.entry(format!("{state}{reason}")).or_default() += 1;
        }
        let states: Vec<_> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
        verdict.total("database", format!("{} requests: {}", rows.len(), states.join(", ")));
        verdict.total("", format!("{} left in the outbox", self.evidence.unpublished));

        let end = |row: &Row| (row.state.clone(), row.reason.clone());
        let otherwise = rows.iter().filter(|row| {
            self.posted(row).is_some_and(|posted| {
                let (state, reason) = match posted.wish {
                    Wish::Accept | Wish::Stumble => ("delivered", None),
                    Wish::Reject => ("dead", Some("rejected")),
                };
                end(row) != (Some(state.to_owned()), reason.map(str::to_owned))
            })
        });
        verdict.expect_none("in a state that they should not end in", otherwise);
        let is_twofold = |row: &&Row| row.has_delivered != (row.state.as_deref() == Some("delivered"));
        let twofold = rows.iter().filter(is_twofold);
        verdict.expect_none("in a state that contradicts their attempts", twofold);
        let unpublished = (self.evidence.unpublished > 0).then_some(self.evidence.unpublished);
        verdict.expect_none("number of requests left in the outbox", unpublished);
    }

    /// The third party has what is delivered, and was asked for nothing else.
    fn third_party(&self, verdict: &mut Verdict) {
        let calls = &self.evidence.calls;
        let mut statuses = BTreeMap::<_, usize>::new();
        for call in calls {
            *statuses.entry(call.answered.map(|(_, status)| status)).or_default() += 1;
        }
        let word = |status: &Option<StatusCode>| {
            status.map_or("no answer".to_owned(), |status| status.as_str().to_owned())
        };
        let answers: Vec<_> =
            statuses.iter().map(|(status, count)| format!("{count} {}", word(status))).collect();
        verdict.total("third party", format!("{} calls: {}", calls.len(), answers.join(", ")));

        let is_unknown = |call: &&Call| call.id.is_none_or(|id| !self.by_id.contains_key(&id));
        let unknown = calls.iter().filter(is_unknown).map(|call| format!("{call:?}"));
        verdict.expect_none("calls for what is not in the database", unknown);
        let is_delivered = |row: &Row| row.state.as_deref() == Some("delivered");
        let has = |row: &Row| row.id().is_some_and(|id| self.acknowledged.contains_key(&id));
        let rows = &self.evidence.rows;
        let pretended = rows.iter().filter(|row| is_delivered(row) && !has(row));
        verdict.expect_none("delivered, and the third party knows nothing of them", pretended);
        let forgotten = rows.iter().filter(|row| has(row) && !is_delivered(row));
        verdict.expect_none("acknowledged by the third party, and not delivered", forgotten);
    }

    /// Records that others have produced were adopted, each once; none was taken for one of ours.
    fn foreign(&self, verdict: &mut Verdict) {
        let mut delivered = HashMap::<&str, BTreeSet<RequestId>>::new();
        let mut deceived = Vec::new();
        for call in &self.evidence.calls {
            let (Some(id), Some(prompt)) = (call.id, call.prompt.as_deref()) else { continue };
            let Some(row) = self.by_id.get(&id) else { continue };
            if row.origin.is_some() {
                delivered.entry(prompt).or_default().insert(id);
            } else if row.key.as_deref() != Some(prompt) {
                deceived.push(format!("{prompt} as {id}"));
            }
        }
        let adopted = self.evidence.rows.iter().filter(|row| row.origin.is_some()).count();
        let produced = &self.evidence.foreign;
        verdict.total("others", format!("{} records produced, {adopted} adopted", produced.len()));
        verdict.expect_none("bodies of others, sent under the id of a request", deceived);
        let times = |record: &ForeignRecord| delivered.get(record.prompt.as_str()).map_or(0, BTreeSet::len);
        let is_wrong = |record: &&ForeignRecord| match times(record) {
            0 => record.is_deliverable,
            times => times > 1,
        };
        let wrong = produced.iter().filter(is_wrong);
        let wrong = wrong.map(|record| format!("{}, {} times", record.prompt, times(record)));
        verdict.expect_none("records of others that were not adopted exactly once", wrong);
    }

    /// What the third party acknowledged twice was near a fault that explains it.
    fn repetitions(&self, verdict: &mut Verdict) {
        let mut explained = BTreeMap::<String, usize>::new();
        let mut unexplained = Vec::new();
        for (id, times) in &self.acknowledged {
            for pair in times.windows(2) {
                match self.near(pair[0], pair[1], Fault::may_repeat) {
                    Some(window) => *explained.entry(window.fault.to_string()).or_default() += 1,
                    None => unexplained.push(format!("{id} at {} and {}", stamp(pair[0]), stamp(pair[1]))),
                }
            }
        }
        let all: usize = explained.values().sum::<usize>() + unexplained.len();
        verdict.total("", format!("{} acknowledged, {all} times again", self.acknowledged.len()));
        for (fault, count) in explained {
            verdict.total("", format!("    {count} when {fault}"));
        }
        verdict.expect_none("acknowledged again, and no fault explains it", unexplained);
    }

    /// The first fault of a kind that was there in a time, or else the last one that may still have been felt.
    fn near(&self, from: Duration, to: Duration, is_meant: fn(Fault) -> bool) -> Option<&Window> {
        let mut windows =
            self.evidence.windows.iter().filter(|window| is_meant(window.fault) && window.from <= to);
        let first = windows.clone().find(|window| from <= window.to);
        first.or_else(|| windows.rfind(|window| from <= window.felt_until))
    }

    /// While all was calm, requests with one ordering key were delivered one at a time, in order.
    fn order(&self, verdict: &mut Verdict) {
        let mut calls = HashMap::<_, Vec<&Call>>::new();
        for call in &self.evidence.calls {
            calls.entry(call.id).or_default().push(call);
        }
        let is_calm = |posted: &&Posted| posted.at <= self.evidence.calm_until;
        let mut accounts = BTreeMap::<_, Vec<RequestId>>::new();
        for posted in self.evidence.seen.posted.iter().filter(is_calm) {
            if let (Some(account), Some(id)) = (&posted.account, posted.id) {
                accounts.entry(account).or_default().push(id);
            }
        }
        let first = |id: RequestId| calls.get(&Some(id)).and_then(|calls| calls.first());
        let (mut in_order, mut out_of_order) = (0, Vec::new());
        for (account, ids) in accounts {
            for pair in ids.windows(2) {
                let Some(next) = first(pair[1]) else { continue };
                let before = first(pair[0]).and_then(|call| call.answered);
                if before.is_some_and(|(ended, _)| ended <= next.began) {
                    in_order += 1;
                } else if next.began <= self.evidence.calm_until {
                    out_of_order.push(format!("{account}: {} before {}", pair[1], pair[0]));
                }
            }
        }
        verdict.total(
            "",
            format!("{in_order} times one after the other of one ordering key, while all was calm"),
        );
        verdict.expect_none("called before the one before them had ended", out_of_order);
    }

    /// Patience had to help only where records were lost; and there it had to.
    fn losses(&self, verdict: &mut Verdict) {
        let lines = self.evidence.lines.iter();
        let rescues: Vec<_> = lines.filter_map(|(by, line)| self.rescue(*by, line)).collect();
        let count: u64 = rescues.iter().map(|rescue| rescue.count).sum();
        verdict.total(
            "sweepers",
            format!("{count} deliveries published again because nothing was heard of them"),
        );
        let mut shares = BTreeMap::<_, u64>::new();
        for rescue in &rescues {
            *shares.entry(rescue.by.to_string()).or_default() += rescue.count;
        }
        for (by, count) in shares {
            verdict.total("", format!("    {count} by {by}"));
        }
        let is_unexplained =
            |rescue: &&Rescue| self.near(rescue.at, rescue.at, Fault::loses_records).is_none();
        let unexplained = rescues.iter().filter(is_unexplained);
        let unexplained =
            unexplained.map(|rescue| format!("{} deliveries at {}", rescue.count, stamp(rescue.at)));
        verdict.expect_none(
            "times nothing was heard of deliveries whose records nobody had deleted",
            unexplained,
        );
        let is_lossy = |window: &&Window| window.fault.loses_records();
        let was_blind = self.evidence.windows.iter().any(|window| is_lossy(&window)) && rescues.is_empty();
        verdict.expect_none("records were deleted, and nobody noticed", was_blind.then_some("see the logs"));
    }

    fn rescue(&self, by: Replica, line: &str) -> Option<Rescue> {
        if !line.contains(PUBLISHED_AGAIN) {
            return None;
        }
        let line: Value = serde_json::from_str(line).ok()?;
        let at = line.get("timestamp")?.as_str()?.parse().ok()?;
        let count = line.get("deliveries")?.as_u64()?;
        Some(Rescue { by, at: self.evidence.watch.at(at), count })
    }

    /// The programs did nothing that they should not.
    fn manners(&self, verdict: &mut Verdict) {
        let panics = self.evidence.lines.iter().filter(|(_, line)| line.contains("panicked"));
        let panics = panics.map(|(replica, line)| format!("{replica}: {line}"));
        verdict.expect_none("panics", panics);
        verdict.expect_none("programs that did not behave", &self.evidence.faux_pas);
    }
}
