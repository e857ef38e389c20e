use super::Findings;
use crate::path::Path;
use crate::settings::{Breaker, Retry};

pub(super) fn check_retry(retry: &Retry, path: &Path, findings: &mut Findings) {
    let grows = retry.factor.is_finite() && retry.factor >= 1.0;
    findings.expect(grows, || path.key("factor"), "expected a number of at least 1");
    let in_order = retry.base <= retry.max;
    findings.expect(in_order, || path.key("base"), "the first pause exceeds `max`, the longest pause");
    if !retry.schedule.is_empty() && retry.attempts.is_some_and(|attempts| attempts.get() != scheduled(retry))
    {
        let makes = scheduled(retry);
        let message = format!(
            "the pauses of `schedule` define {makes} attempts; set `attempts` to {makes}, or remove it"
        );
        findings.add(path.key("attempts"), message);
    }
}

/// Returns the number of attempts that the schedule allows: one more than its pauses.
fn scheduled(retry: &Retry) -> u32 {
    Retry { attempts: None, ..retry.clone() }.most_attempts()
}

pub(super) fn check_breaker(breaker: &Breaker, path: &Path, findings: &mut Findings) {
    findings.expect(
        breaker.failure_rate > 0.0 && breaker.failure_rate <= 1.0,
        || path.key("failure_rate"),
        "expected a number greater than 0 and at most 1",
    );
    findings.expect(
        breaker.open <= breaker.max_open,
        || path.key("open"),
        "the first pause exceeds `max_open`, the longest pause",
    );
}
