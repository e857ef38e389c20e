use std::time::Duration;

use throughline_destination::Settings as Destination;
use throughline_destination::http::StatusMeaning;

use super::{Case, assert_problems, http};

/// A destination with these settings.
fn three(settings: &str) -> Case {
    Case::over(&format!("destinations: {{three: {{{settings}}}}}"))
}

fn loaded(settings: &str) -> Destination {
    three(settings).loaded().settings.destinations.remove("three").unwrap()
}

#[test]
fn an_unset_setting_has_its_default() {
    let three = loaded("");
    assert_eq!((three.retry.most_attempts(), three.retry.immediate_retries), (5, 2));
    assert_eq!((three.retry.base, three.retry.max), (Duration::from_secs(1), Duration::from_mins(1)));
    assert_eq!(three.retry.window, Duration::from_hours(24));
    assert!(http(&three).statuses.is_empty());
    assert_eq!((three.breaker.consecutive.get(), three.breaker.probes.get()), (10, 3));
    assert_eq!((three.limits.concurrency.get(), three.limits.rate), (64, None));
    assert_eq!(three.limits.max_wait, Duration::from_secs(1));
}

#[test]
fn every_setting_can_be_set() {
    let three = loaded(
        "
  retry: {attempts: 7, immediate_retries: 0, base: 2s, factor: 1.5, max: 3s, window: 1h},
  statuses: {409: delivered, '404': retry, 500: dead},
  breaker: {consecutive: 1, failure_rate: 1, minimum_calls: 2, window: 1s, open: 2s, max_open: 3s, probes: 4},
  limits: {concurrency: 1, rate: 5/10s, max_wait: 10ms}",
    );
    assert_eq!((three.retry.most_attempts(), three.retry.immediate_retries, three.retry.factor), (7, 0, 1.5));
    assert_eq!(
        http(&three).statuses.into_iter().collect::<Vec<_>>(),
        [(404, StatusMeaning::Retry), (409, StatusMeaning::Delivered), (500, StatusMeaning::Dead)]
    );
    assert_eq!((three.breaker.failure_rate, three.breaker.max_open), (1.0, Duration::from_secs(3)));
    assert_eq!(three.limits.rate.unwrap().to_string(), "5/10s");
}

#[test]
fn a_schedule_determines_the_number_of_attempts() {
    let by_hand = loaded("retry: {schedule: [5s, 5m, 2h]}");
    assert_eq!(by_hand.retry.schedule, [5, 300, 7200].map(Duration::from_secs));
    assert_eq!(by_hand.retry.most_attempts(), 4);
    loaded("retry: {schedule: [5s, 5m, 2h], attempts: 4}");
    assert_problems(
        &three("retry: {schedule: [5s, 5m, 2h], attempts: 5}"),
        &[
            "destinations.three.retry.attempts: the pauses of `schedule` define 4 attempts; set `attempts` to 4, or remove it  [throughline.yaml]",
        ],
    );
}

#[test]
fn statuses_come_from_the_environment_too() {
    let case = three("statuses: {409: dead}").environment(&[
        ("THROUGHLINE_DESTINATIONS__THREE__STATUSES__409", "delivered"),
        ("THROUGHLINE_DESTINATIONS__THREE__BREAKER__FAILURE_RATE", "0.75"),
    ]);
    let settings = case.loaded().settings;
    assert_eq!(http(&settings.destinations["three"]).statuses[&409], StatusMeaning::Delivered);
    assert!((settings.destinations["three"].breaker.failure_rate - 0.75).abs() < f64::EPSILON);
    let case = three("").environment(&[("THROUGHLINE_DESTINATIONS__THREE__STATUSES", "{410: delivered}")]);
    assert_eq!(http(&case.loaded().settings.destinations["three"]).statuses[&410], StatusMeaning::Delivered);
}

#[test]
fn shown_settings_can_be_loaded_again() {
    let first =
        three("statuses: {409: delivered}, retry: {schedule: [5s, 5m]}, limits: {rate: 600/min}").loaded();
    let second = Case::file(&first.show()).loaded();
    assert_eq!(format!("{:?}", first.settings), format!("{:?}", second.settings), "{}", first.show());
}

#[test]
fn statuses_are_http_statuses_with_one_of_three_meanings() {
    let expected = "unknown key; expected statuses from 100 to 599 and what they mean, such as `{409: delivered}`  \
                    [throughline.yaml]";
    for key in ["99", "600", "4096", "4xx", "-1", "1.5", "true"] {
        let problems = three(&format!("statuses: {{{key}: dead}}")).problems();
        assert_eq!(problems.len(), 1, "{key}: {problems:?}");
        assert!(problems[0].ends_with(expected), "{key}: {problems:?}");
    }
    assert_problems(
        &three("statuses: {409: fine}"),
        &[
            "destinations.three.statuses.409: expected `delivered`, `retry` or `dead`; found \"fine\"  [throughline.yaml]",
        ],
    );
}

#[test]
fn invalid_values_are_rejected() {
    let table = [
        ("retry: {factor: 0.5}", "retry.factor: expected a number of at least 1"),
        ("retry: {factor: -2}", "retry.factor: expected a number of at least 1"),
        ("retry: {factor: .inf}", "retry.factor: expected a number; found \".inf\""),
        ("retry: {factor: .nan}", "retry.factor: expected a number; found \".nan\""),
        ("retry: {factor: two}", "retry.factor: expected a number; found \"two\""),
        ("retry: {base: 2m}", "retry.base: the first pause exceeds `max`, the longest pause"),
        ("retry: {attempts: 0}", "retry.attempts: expected a whole number from 1 to 4294967295; found 0"),
        (
            "retry: {schedule: [5s, soon]}",
            "retry.schedule[1]: expected a duration above zero, such as `500ms`, `30s` or `1h 30m`; found \"soon\"",
        ),
        (
            "breaker: {failure_rate: 0}",
            "breaker.failure_rate: expected a number greater than 0 and at most 1",
        ),
        (
            "breaker: {failure_rate: 1.01}",
            "breaker.failure_rate: expected a number greater than 0 and at most 1",
        ),
        ("breaker: {open: 2m}", "breaker.open: the first pause exceeds `max_open`, the longest pause"),
        (
            "limits: {rate: 100}",
            "limits.rate: expected a rate, such as `100/s`, `600/min` or `5/10s`; found 100 (enclose it in quotes)",
        ),
        (
            "limits: {rate: 0/s}",
            "limits.rate: expected a rate, such as `100/s`, `600/min` or `5/10s`; found \"0/s\"",
        ),
    ];
    for (settings, problem) in table {
        assert_problems(&three(settings), &[&format!("destinations.three.{problem}  [throughline.yaml]")]);
    }
}
