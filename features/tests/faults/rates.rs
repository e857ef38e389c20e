//! Compares how fast requests were accepted and delivered during faults with how fast they were before.

use std::time::Duration;

use reqwest::StatusCode;

use crate::books::Evidence;
use crate::faults::Fault;
use crate::strike::Window;
use crate::third_party::Destination;
use crate::watch::stamp;

/// The time over which a rate is taken.
const SLICE: Duration = Duration::from_secs(5);
/// How soon after the beginning of a fault clients and load balancers avoid a replica that does not answer.
const NOTICED: Duration = Duration::from_secs(12);
/// The least part of the rate that has to be left: the machine is busy with the fault, too.
const LEFT: f64 = 0.5;

/// What is wrong with the rates.
pub(crate) fn compare(evidence: &Evidence) -> Vec<String> {
    let mut wrong = Vec::new();
    let accepted = evidence.seen.posted.iter().filter(|posted| posted.id.is_some());
    let accepted: Vec<_> = accepted.map(|posted| posted.at).collect();
    let is_common = |call: &&crate::third_party::Call| call.destination == Destination::Three;
    let delivered = evidence.calls.iter().filter(is_common).filter_map(|call| call.answered);
    let delivered: Vec<_> =
        delivered.filter(|(_, status)| *status == StatusCode::OK).map(|(at, _)| at).collect();
    for (what, times) in [("accepted", accepted), ("delivered", delivered)] {
        let calm = count(&times, Duration::ZERO, evidence.calm_until) / evidence.calm_until.as_secs_f64();
        for window in evidence.windows.iter().filter(|window| window.fault.keeps_the_rate()) {
            for from in slices(window) {
                let rate = count(&times, from, from + SLICE) / SLICE.as_secs_f64();
                if rate < calm * LEFT {
                    wrong.push(format!(
                        "{rate:.1} requests a second {what} from {}, in place of {calm:.1}, when {}",
                        stamp(from).trim(),
                        window.fault
                    ));
                }
            }
        }
    }
    wrong.extend(refused(evidence));
    wrong
}

/// A flood of heads has no other request refused.
fn refused(evidence: &Evidence) -> Option<String> {
    let floods = evidence.windows.iter().filter(|window| window.fault == Fault::HeadFlood);
    let during = |window: &Window| {
        evidence.seen.refused.iter().filter(|at| (window.from..=window.to).contains(*at)).count()
    };
    let refused: usize = floods.map(during).sum();
    (refused > 0).then(|| format!("{refused} requests were refused while an ingest was flooded with heads"))
}

fn slices(window: &Window) -> impl Iterator<Item = Duration> {
    let first = window.from + if window.fault == Fault::LongFreeze { NOTICED } else { Duration::ZERO };
    (0..).map(move |number| first + SLICE * number).take_while(|from| *from + SLICE <= window.to)
}

#[expect(clippy::cast_precision_loss, reason = "there are some thousands")]
fn count(times: &[Duration], from: Duration, to: Duration) -> f64 {
    times.iter().filter(|at| (from..to).contains(*at)).count() as f64
}
