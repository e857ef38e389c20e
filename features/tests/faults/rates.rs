//! Compares the rates of acceptance and delivery during faults with the rates before.

use std::time::Duration;

use reqwest::StatusCode;

use crate::CALM;
use crate::books::Evidence;
use crate::faults::Fault;
use crate::load::{Experience, Posted, Silence};
use crate::strike::Window;
use crate::third_party::Destination;
use crate::watch::stamp;

/// The period over which a rate is measured.
const SLICE: Duration = Duration::from_secs(5);
/// Time from the start of a fault until clients and load balancers avoid a replica that does not respond, and its locks
/// are released: PostgreSQL ends its transaction after 15 s, and until then batches with a request in strict order wait
/// for them.
const NOTICED: Duration = Duration::from_secs(25);
/// The minimum share of the normal rate: the fault also uses up capacity of the machine.
const LEFT: f64 = 0.5;

/// Returns the violations.
pub(crate) fn compare(evidence: &Evidence) -> Vec<String> {
    let mut wrong = Vec::new();
    let is_common = |posted: &&Posted| posted.id.is_some() && !posted.is_strict;
    let accepted = evidence.seen.posted.iter().filter(is_common);
    let accepted: Vec<_> = accepted.map(|posted| posted.at).collect();
    let is_common = |call: &&crate::third_party::Call| call.destination == Destination::Three;
    let delivered = evidence.calls.iter().filter(is_common).filter_map(|call| call.answered);
    let delivered: Vec<_> =
        delivered.filter(|(_, status)| *status == StatusCode::OK).map(|(at, _)| at).collect();
    // The clients started at this time.
    let calm_from = evidence.calm_until.saturating_sub(CALM);
    for (what, times) in [("accepted", accepted), ("delivered", delivered)] {
        let calm = count(&times, calm_from, evidence.calm_until) / CALM.as_secs_f64();
        for window in evidence.windows.iter().filter(|window| window.fault.keeps_the_rate()) {
            for from in slices(window) {
                let rate = count(&times, from, from + SLICE) / SLICE.as_secs_f64();
                if rate < calm * LEFT {
                    wrong.push(format!(
                        "{rate:.1} requests per second {what} from {} instead of {calm:.1}, while {}",
                        stamp(from).trim(),
                        window.fault
                    ));
                }
            }
        }
    }
    wrong.extend(failed(evidence));
    wrong
}

/// While an ingest is flooded with heads, no try of the regular clients fails.
fn failed(evidence: &Evidence) -> Option<String> {
    let Experience { refused, broken, silences, .. } = &evidence.seen;
    let floods = || evidence.windows.iter().filter(|window| window.fault == Fault::HeadFlood);
    let count = |times: &[Duration]| {
        times.iter().filter(|at| floods().any(|window| (window.from..=window.to).contains(*at))).count()
    };
    let is_during =
        |silence: &&Silence| floods().any(|window| window.from <= silence.to && silence.from <= window.to);
    let (refused, broken) = (count(refused), count(broken));
    let silent = silences.iter().filter(is_during).count();
    (refused + broken + silent > 0).then(|| {
        format!(
            "{refused} requests refused, {broken} broken connections and {silent} without a response while an ingest was \
             flooded with heads"
        )
    })
}

fn slices(window: &Window) -> impl Iterator<Item = Duration> {
    let first = window.from + if window.fault == Fault::LongFreeze { NOTICED } else { Duration::ZERO };
    (0..).map(move |number| first + SLICE * number).take_while(|from| *from + SLICE <= window.to)
}

#[expect(clippy::cast_precision_loss, reason = "at most some thousands")]
fn count(times: &[Duration], from: Duration, to: Duration) -> f64 {
    times.iter().filter(|at| (from..to).contains(*at)).count() as f64
}
