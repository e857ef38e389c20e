//! Compares the responses to clients, the calls that the third party received, and the database.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Display;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::Value;
use throughline_snowflake::{NodeId, RequestId};
use throughline_testkit::Service;

use crate::rates;

use crate::cast::{Killed, REPLICAS, Replica};
use crate::faults::{Fault, Repeats};
use crate::foreign::ForeignRecord;
use crate::load::{Experience, Maker, Posted, Silence};
use crate::scene::Row;
use crate::strike::Window;
use crate::third_party::{Call, Destination, Wish};
use crate::watch::{Watch, stamp};

/// The event that a sweeper logs when it publishes deliveries again whose records were lost.
const REPUBLISHED: &str = "delivery.republished";

/// The longest time between the end of a call and a SIGKILL that can prevent the commit of its record. First Kafka
/// acknowledges the outcome. Then the record waits up to 100 ms for the next commit (`INTERVAL` in libs/kafka) and up
/// to 50 ms for the consumer's thread (`TICK`), and the commit itself takes a round trip. In 20 kills on two cores, the
/// longest time was 123 ms.
const UNCOMMITTED: Duration = Duration::from_millis(250);

/// How long before a fault of another kind a call may have ended whose outcome or commit the fault undoes: a recorder
/// or the commits of a dispatch may lag on a busy machine.
const LAG: Duration = Duration::from_secs(5);

/// Records that the dispatches work on concurrently, each on 256 (`dispatch.concurrency`).
const IN_WORK: usize = REPLICAS * 256;

/// A frozen dispatch repeats at most as many calls as clients post in this number of seconds: it misses a third of the
/// requests of 12 s, and may make their calls beside the new owner. Twice that, because keys are spread unevenly and
/// machines are slow. The maximum of three runs was 108; the limit is 480.
const FROZEN_SECONDS: usize = 8;

/// The same when a topic is deleted: its readers are frozen for 2 s, the deletion may take 10 s, and the recorder may
/// lag a little before. The maximum of three runs was 215; the limit is 900.
const UNREAD_SECONDS: usize = 15;

/// Number of examples to print for each violation.
const SHOWN: usize = 3;

/// Everything that is known at the end of a run.
pub(crate) struct Evidence {
    pub(crate) watch: Watch,
    /// Requests that clients post per second.
    pub(crate) rate: u32,
    /// End of the time without faults.
    pub(crate) calm_until: Duration,
    pub(crate) windows: Vec<Window>,
    pub(crate) seen: Experience,
    pub(crate) calls: Vec<Call>,
    /// The processes that were killed by SIGKILL.
    pub(crate) killed: Vec<Killed>,
    pub(crate) rows: Vec<Row>,
    /// The records of other producers on a route's topic.
    pub(crate) foreign: Vec<ForeignRecord>,
    /// Number of rows left in the outbox.
    pub(crate) unpublished: i64,
    /// The output of the programs.
    pub(crate) lines: Vec<(Replica, String)>,
    /// Unexpected behaviour of the programs.
    pub(crate) faux_pas: Vec<String>,
}

/// The result of the comparison.
#[derive(Default)]
pub(crate) struct Verdict {
    pub(crate) totals: Vec<(&'static str, String)>,
    /// The violations; empty if all promises were kept.
    pub(crate) wrong: Vec<String>,
}

/// Compares the evidence.
pub(crate) fn close(evidence: &Evidence) -> Verdict {
    let books = Books::new(evidence);
    let mut verdict = Verdict::default();
    books.clients(&mut verdict);
    books.nodes(&mut verdict);
    books.states(&mut verdict);
    books.third_party(&mut verdict);
    books.repetitions(&mut verdict);
    books.order(&mut verdict);
    books.strict_order(&mut verdict);
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

    /// Reports the found items as violations: none are expected.
    fn expect_none<T: Display>(&mut self, what: &str, found: impl IntoIterator<Item = T>) {
        let found: Vec<String> = found.into_iter().map(|found| found.to_string()).collect();
        if !found.is_empty() {
            let shown = found.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
            self.wrong.push(format!("{} {what}: {shown}", found.len()));
        }
    }
}

/// Deliveries that a sweeper published again.
struct Rescue {
    by: Replica,
    at: Duration,
    count: u64,
}

/// The evidence with indexes for lookups.
struct Books<'a> {
    evidence: &'a Evidence,
    by_id: HashMap<RequestId, &'a Row>,
    by_key: HashMap<&'a str, &'a Posted>,
    /// The times at which the third party acknowledged each request, in order, and the calls.
    acknowledged: BTreeMap<RequestId, Vec<(Duration, &'a Call)>>,
}

impl<'a> Books<'a> {
    fn new(evidence: &'a Evidence) -> Self {
        let by_id = evidence.rows.iter().filter_map(|row| Some((row.id()?, row))).collect();
        let by_key = evidence.seen.posted.iter().map(|posted| (posted.key.as_str(), posted)).collect();
        let mut acknowledged = BTreeMap::<_, Vec<_>>::new();
        for call in &evidence.calls {
            if let (Some(id), Some((at, StatusCode::OK))) = (call.id, call.answered) {
                acknowledged.entry(id).or_default().push((at, call));
            }
        }
        for times in acknowledged.values_mut() {
            times.sort_by_key(|(at, _)| *at);
        }
        Self { evidence, by_id, by_key, acknowledged }
    }

    fn posted(&self, row: &Row) -> Option<&'a Posted> {
        self.by_key.get(row.key.as_deref()?).copied()
    }

    /// Each accepted request is in the database exactly once, and no other request is.
    fn clients(&self, verdict: &mut Verdict) {
        let Experience { posted, refused, broken, silences, .. } = &self.evidence.seen;
        let accepted: Vec<_> = posted.iter().filter_map(|posted| Some((posted.id?, posted))).collect();
        let unanswered = posted.len() - accepted.len();
        let is_unanswered = |row: &&Row| self.posted(row).is_some_and(|posted| posted.id.is_none());
        let kept = self.evidence.rows.iter().filter(is_unanswered).count();
        verdict.total("clients", format!("{} requests posted, {} accepted", posted.len(), accepted.len()));
        verdict.total("", format!("{unanswered} given up after several tries; {kept} of these were stored"));
        verdict.total(
            "",
            format!(
                "failed tries: {} answered 503 or 409, {} broken connections, {} without a response",
                refused.len(),
                broken.len(),
                silences.len()
            ),
        );

        let is_missing = |(id, _): &&(RequestId, _)| !self.by_id.contains_key(id);
        let missing = accepted.iter().filter(is_missing).map(|(id, _)| id);
        verdict.expect_none("accepted requests missing from the database", missing);
        let is_another = |(id, posted): &&(RequestId, &Posted)| {
            self.by_id.get(id).is_some_and(|row| row.key.as_ref() != Some(&posted.key))
        };
        let others = accepted.iter().filter(is_another).map(|(id, posted)| format!("{} as {id}", posted.key));
        verdict.expect_none("requests accepted with the id of another request", others);
        let is_second = |row: &&Row| {
            row.origin.is_none()
                && self.posted(row).is_none_or(|posted| posted.id.is_some_and(|id| Some(id) != row.id()))
        };
        let seconds = self.evidence.rows.iter().filter(is_second);
        verdict.expect_none("requests in the database that no client posted, or duplicates", seconds);
        let unexcused = silences.iter().filter(|silence| !self.is_excused(silence));
        let unexcused =
            unexcused.map(|Silence { door, from, .. }| format!("ingest {} at {}", door + 1, stamp(*from)));
        verdict.expect_none("requests that a healthy ingest did not answer in time", unexcused);
        verdict.expect_none("unexpected responses", &self.evidence.seen.odd);
    }

    fn is_excused(&self, silence: &Silence) -> bool {
        let mut windows = self.evidence.windows.iter().filter(|window| window.fault.keeps_clients_waiting());
        windows.any(|window| window.from <= silence.to && silence.from <= window.to)
    }

    /// No ingest continued to make ids with a node id that another ingest had leased meanwhile.
    fn nodes(&self, verdict: &mut Verdict) {
        let made = self.evidence.seen.posted.iter();
        let mut made: Vec<_> = made.filter_map(|posted| Some((posted.id?, posted.made_by?))).collect();
        // Sorts them in the order of creation.
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
                "{nodes}, {inherited} of them used by several ingests, in {} ids of known origin",
                made.len()
            ),
        );
        verdict.expect_none("ids made with a node id that another ingest had leased meanwhile", clashes);
        let is_restart = |window: &Window| window.fault == Fault::RollingRestart;
        let was_restarted = self.evidence.windows.iter().any(is_restart);
        let none = (was_restarted && inherited == 0).then_some("the check of node ids proves nothing");
        verdict.expect_none("rolling restart without reuse of a node id", none);
    }

    /// Every delivery has ended in the expected state.
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
                    Wish::Accept | Wish::Stumble | Wish::Linger => ("delivered", None),
                    Wish::Reject => ("dead", Some("rejected")),
                };
                end(row) != (Some(state.to_owned()), reason.map(str::to_owned))
            })
        });
        verdict.expect_none("requests in an unexpected final state", otherwise);
        let is_twofold = |row: &&Row| row.has_delivered != (row.state.as_deref() == Some("delivered"));
        let twofold = rows.iter().filter(is_twofold);
        verdict.expect_none("requests in a state that contradicts their attempts", twofold);
        let unpublished = (self.evidence.unpublished > 0).then_some(self.evidence.unpublished);
        verdict.expect_none("outbox with unpublished requests", unpublished);
    }

    /// The third party received every delivered request, and no calls for unknown requests.
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
        verdict.expect_none("calls for requests that are not in the database", unknown);
        let is_delivered = |row: &Row| row.state.as_deref() == Some("delivered");
        let has = |row: &Row| row.id().is_some_and(|id| self.acknowledged.contains_key(&id));
        let rows = &self.evidence.rows;
        let pretended = rows.iter().filter(|row| is_delivered(row) && !has(row));
        verdict.expect_none("delivered requests that the third party never received", pretended);
        let forgotten = rows.iter().filter(|row| has(row) && !is_delivered(row));
        verdict
            .expect_none("requests that the third party acknowledged, but that are not delivered", forgotten);
    }

    /// Each record of another producer was adopted once, and none was treated as a record of Throughline.
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
        verdict.total("foreign", format!("{} records produced, {adopted} adopted", produced.len()));
        verdict.expect_none("foreign bodies sent with the id of another request", deceived);
        let times = |record: &ForeignRecord| delivered.get(record.prompt.as_str()).map_or(0, BTreeSet::len);
        let is_wrong = |record: &&ForeignRecord| match times(record) {
            0 => record.is_deliverable,
            times => times > 1,
        };
        let wrong = produced.iter().filter(is_wrong);
        let wrong = wrong.map(|record| format!("{}, {} times", record.prompt, times(record)));
        verdict.expect_none("foreign records that were not adopted exactly once", wrong);
    }

    /// A fault explains every request that the third party acknowledged twice, and no fault explains more of them than
    /// it may repeat. So does an attempt that took too long for dispatch, as on a machine that is too busy.
    fn repetitions(&self, verdict: &mut Verdict) {
        let mut explained = BTreeMap::<String, usize>::new();
        let mut unexplained = Vec::new();
        let uncommitted = self.uncommitted();
        let mut counts = vec![0; self.evidence.windows.len()];
        for (id, acknowledged) in &self.acknowledged {
            let mut left = uncommitted.get(id).cloned().unwrap_or_default();
            let mut timed_out = self.by_id.get(id).map_or(0, |row| row.timed_out);
            for pair in acknowledged.windows(2) {
                let (first, second) = (pair[0], pair[1]);
                let mut around = self.around(first.0, second.0).into_iter();
                let explains = |index: &usize| self.explains(*index, first, second, &mut left, &mut counts);
                if let Some(index) = around.find(explains) {
                    *explained.entry(self.evidence.windows[index].fault.to_string()).or_default() += 1;
                } else if timed_out > 0 {
                    timed_out -= 1;
                    *explained.entry("dispatch got no answer in time".to_owned()).or_default() += 1;
                } else {
                    unexplained.push(format!("{id} at {} and {}", stamp(first.0), stamp(second.0)));
                }
            }
        }
        let all: usize = explained.values().sum::<usize>() + unexplained.len();
        verdict.total("", format!("{} acknowledged, {all} repetitions", self.acknowledged.len()));
        for (fault, count) in explained {
            verdict.total("", format!("    {count} when {fault}"));
        }
        let uncommitted: usize = uncommitted.values().map(Vec::len).sum();
        verdict.total("", format!("    {uncommitted} calls without a commit when their dispatch was killed"));
        verdict.expect_none("repeated acknowledgements that no fault explains", unexplained);
    }

    /// Returns the indices of the faults that were active in a period, followed by those whose effects may have lasted
    /// into it.
    fn around(&self, from: Duration, to: Duration) -> Vec<usize> {
        let windows = self.evidence.windows.iter().enumerate();
        let felt = windows.filter(|(_, window)| window.from <= to && from <= window.felt_until);
        let (there, gone): (Vec<_>, Vec<_>) = felt.partition(|(_, window)| from <= window.to);
        there.into_iter().chain(gone.into_iter().rev()).map(|(index, _)| index).collect()
    }

    /// Returns whether a fault explains a repeat, which then counts towards its limit.
    fn explains(
        &self,
        index: usize,
        first: (Duration, &Call),
        second: (Duration, &Call),
        uncommitted: &mut Vec<Duration>,
        counts: &mut [usize],
    ) -> bool {
        let window = &self.evidence.windows[index];
        let frozen = Replica { service: Service::Dispatch, number: window.number };
        let is_of_frozen =
            |call: &Call| call.process.as_ref().is_some_and(|process| frozen.has_been(process));
        let is_near = first.0 + LAG >= window.from;
        let posted = |seconds: usize| self.evidence.rate as usize * seconds;
        let most = match window.fault.repeats() {
            Repeats::Uncommitted => return take_one(uncommitted, window),
            Repeats::OfTheFrozen if is_near && (is_of_frozen(first.1) || is_of_frozen(second.1)) => {
                posted(FROZEN_SECONDS)
            }
            Repeats::InWork if is_near => IN_WORK,
            Repeats::Unread if is_near => posted(UNREAD_SECONDS),
            Repeats::None | Repeats::OfTheFrozen | Repeats::InWork | Repeats::Unread => 0,
        };
        let is_explained = counts[index] < most;
        counts[index] += usize::from(is_explained);
        is_explained
    }

    /// For each request, the times of kills that may have prevented a commit, one for each call: the killed process was
    /// making the call, or had ended it shortly before.
    fn uncommitted(&self) -> BTreeMap<RequestId, Vec<Duration>> {
        let mut uncommitted = BTreeMap::<_, Vec<_>>::new();
        for killed in &self.evidence.killed {
            let is_uncommitted = |call: &&Call| {
                call.process.as_ref() == Some(&killed.process)
                    && call.ended.is_none_or(|at| at + UNCOMMITTED >= killed.at)
            };
            for call in self.evidence.calls.iter().filter(is_uncommitted) {
                if let Some(id) = call.id {
                    uncommitted.entry(id).or_default().push(killed.at);
                }
            }
        }
        uncommitted
    }

    /// The first matching fault in a period, or else the last one that may still have had an effect.
    fn near(&self, from: Duration, to: Duration, is_meant: fn(Fault) -> bool) -> Option<&Window> {
        let mut windows =
            self.evidence.windows.iter().filter(|window| is_meant(window.fault) && window.from <= to);
        let first = windows.clone().find(|window| from <= window.to);
        first.or_else(|| windows.rfind(|window| from <= window.felt_until))
    }

    /// Without faults, requests with the same ordering key are delivered one at a time, in order.
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
            format!("{in_order} pairs with the same ordering key delivered in order, before the first fault"),
        );
        verdict.expect_none(
            "calls that began before the previous call with the same ordering key had ended",
            out_of_order,
        );
    }

    /// In strict order, the first call of a request begins only after the delivery of the previous request has ended,
    /// whatever fails. Calls that repeat an ended delivery do not count. A client posts its requests one after the
    /// other. The ids of different ingests follow their clocks, and the order is promised only where the ids have the
    /// order of acceptance.
    fn strict_order(&self, verdict: &mut Verdict) {
        let (mut began, mut ended) = (HashMap::new(), HashMap::new());
        let mut retried = BTreeSet::new();
        for call in self.evidence.calls.iter().filter(|call| call.destination == Destination::Strict) {
            let Some(id) = call.id else { continue };
            began.entry(id).or_insert(call.began);
            match call.answered {
                Some((at, StatusCode::OK | StatusCode::BAD_REQUEST)) => {
                    let first = ended.entry(id).or_insert(at);
                    *first = at.min(*first);
                }
                _ => drop(retried.insert(id)),
            }
        }
        let mut keys = BTreeMap::<_, Vec<RequestId>>::new();
        for posted in self.evidence.seen.posted.iter().filter(|posted| posted.is_strict) {
            if let (Some(account), Some(id)) = (&posted.account, posted.id) {
                keys.entry(account).or_default().push(id);
            }
        }
        let (mut in_order, mut behind_retried, mut out_of_order) = (0, 0, Vec::new());
        for (account, ids) in keys {
            for pair in ids.windows(2).filter(|pair| pair[0] < pair[1]) {
                let Some(next) = began.get(&pair[1]) else { continue };
                if ended.get(&pair[0]).is_some_and(|before| before <= next) {
                    in_order += 1;
                    behind_retried += usize::from(retried.contains(&pair[0]));
                } else {
                    out_of_order.push(format!("{account}: {} before {} had ended", pair[1], pair[0]));
                }
            }
        }
        verdict.total(
            "",
            format!(
                "{in_order} pairs delivered in strict order, {behind_retried} of them behind a retried request"
            ),
        );
        verdict.expect_none(
            "calls that began before the previous delivery in strict order had ended",
            out_of_order,
        );
        let blind = (behind_retried == 0).then_some("strict order was not tested");
        verdict.expect_none("runs without a request behind a retried one in strict order", blind);
    }

    /// Sweepers published deliveries again only after records were lost, and then they did.
    fn losses(&self, verdict: &mut Verdict) {
        let lines = self.evidence.lines.iter();
        let rescues: Vec<_> = lines.filter_map(|(by, line)| self.rescue(*by, line)).collect();
        let count: u64 = rescues.iter().map(|rescue| rescue.count).sum();
        verdict.total("sweepers", format!("{count} deliveries published again because no outcome arrived"));
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
            "times that deliveries were published again although no records were deleted",
            unexplained,
        );
        let is_lossy = |window: &&Window| window.fault.loses_records();
        let was_blind = self.evidence.windows.iter().any(|window| is_lossy(&window)) && rescues.is_empty();
        verdict
            .expect_none("deletion of records that no sweeper noticed", was_blind.then_some("see the logs"));
    }

    fn rescue(&self, by: Replica, line: &str) -> Option<Rescue> {
        let line: Value = serde_json::from_str(line).ok()?;
        if line.get("event")? != REPUBLISHED {
            return None;
        }
        let at = line.get("timestamp")?.as_str()?.parse().ok()?;
        let count = line.get("deliveries")?.as_u64()?;
        Some(Rescue { by, at: self.evidence.watch.at(at), count })
    }

    /// The programs behaved as expected.
    fn manners(&self, verdict: &mut Verdict) {
        let panics = self.evidence.lines.iter().filter(|(_, line)| line.contains("panicked"));
        let panics = panics.map(|(replica, line)| format!("{replica}: {line}"));
        verdict.expect_none("panics", panics);
        verdict.expect_none("cases of unexpected behaviour", &self.evidence.faux_pas);
    }
}

/// Removes one of the times within the window, if there is any.
fn take_one(times: &mut Vec<Duration>, window: &Window) -> bool {
    let index = times.iter().position(|at| (window.from..=window.to).contains(at));
    index.map(|index| times.swap_remove(index)).is_some()
}
