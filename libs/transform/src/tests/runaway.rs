//! Filters that do not end by themselves, or only when nothing is left.

use std::time::Duration;

use super::apply_within;
use crate::meter::{Limits, MIB};

/// Less than the default: without optimisation a step takes eight times as long. A run that did not end
/// by itself would be given up after twice the time, with another error than the expected.
const LITTLE: Limits = Limits { steps: 400_000, time: Duration::from_mins(1), memory: 32 * MIB };

const STEPS: &str = "more than 400000 steps";
const MEMORY: &str = "more than 32 MiB";
const RECURSION: &str = "a recursion is too deep";
const NESTING: &str = "nested deeper than 10000";

/// Small, and larger than all memory when it is gone through.
const ENDLESS: &str = "reduce range(60) as $i (1; [., .])";

fn end(filter: &str) -> String {
    apply_within(LITTLE, filter, "[1, 2]")
        .map_or_else(|error| error.to_string(), |output| format!("gave {output:.1000}"))
}

fn end_all(filters: &[&str], expected: &str) {
    let as_expected = |end: &str| end.starts_with("the filter exceeded a limit: ") && end.contains(expected);
    let ends = filters.iter().map(|filter| (filter, end(filter)));
    let others: Vec<_> = ends.filter(|(_, end)| !as_expected(end)).collect();
    assert!(others.is_empty(), "expected: {expected}; found: {others:#?}");
}

#[test]
fn an_endless_filter_is_terminated() {
    end_all(
        &[
            "def f: f; f",
            "def f: 1, f; [f] | length",
            "until(false; .)",
            "first(repeat(1) | select(. > 1))",
            "last(range(1e12))",
            "[range(1e12)] | length",
            "[limit(1e9; repeat(1))]",
            "first(skip(1e12; range(1e13)))",
            "range(1e12) | empty",
            "[.[] |= range(1e12)]",
            "reduce range(1e9) as $i (0; . + $i)",
            "foreach range(1e9) as $i (0; . + 1; empty)",
            "[recurse(.)] | length",
            "[while(true; .[1:])] | length",
            "[1, 2] | first(combinations(40) | select(add > 100))",
            "path(repeat(.) | empty)",
            "label $out | range(1e9) | if . < 0 then break $out else empty end",
            "any(range(1e12); . < 0)",
            "\"x\" * 16000000 | explode",
        ],
        STEPS,
    );
}

#[test]
fn a_filter_cannot_catch_its_termination() {
    end_all(
        &[
            "try (def f: f; f) catch 1",
            "(def f: f; f)?",
            "(def f: f; f) // 1",
            "[.[] | try until(false; .) catch .]",
            "def f: try f catch f; f",
            "label $out | (def f: f; f), break $out",
        ],
        "",
    );
}

#[test]
fn memory_is_limited() {
    end_all(
        &[
            "reduce range(1e9) as $i (.; . + [\"x\" * 1000])",
            "reduce range(40) as $i ([1]; . + .)",
            "[range(1e9) | \"x\" * 100000]",
            "[range(1e5)] as $all | [range(1e5) as $i | $all | .[$i] = 0]",
            "[range(1e5)] as $all | [range(1e5) as $i | $all[1:]]",
            "[range(1e5)] as $all | [range(1e5) as $i | $all | .[1:2] = []]",
            "[range(1e9) | {a: (\"x\" * 1000)}]",
            "\"x\" * 16000000 | [match(\".\"; \"g\")]",
            "\"x\" * 16000000 | gsub(\"x\"; \"y\")",
            "\"x\" * 16000000 / \"\"",
            "\"x\" * 16000000 | tobytes / (\"x\" | tobytes)",
            "\"<\" * 8000000 | @html | @html",
            "\"[],\" * 4000000 | \"[\" + . + \"[]]\" | fromjson",
            "[limit(100; repeat(\"x\" * 10000))] | [limit(100; repeat(.))] | tojson",
            "[limit(100; repeat(\"x\" * 10000))] | [limit(100; repeat(.))] | \"\\(.)\"",
        ],
        MEMORY,
    );
}

#[test]
fn strings_and_numbers_have_limits_of_their_own() {
    let failed = end("reduce range(60) as $i (\"x\"; . + .)");
    assert_eq!(failed, "the filter failed: a string cannot have 33554432 bytes");
    let failed = end("reduce range(60) as $i (7; . * .)");
    assert_eq!(failed, "the filter failed: a number cannot have more than 4096 digits");
    assert_eq!(end("reduce range(4000) as $i (1; . * 10) | tojson | length"), "gave 4001");
}

/// A stack that overflows ends the process, and all tests with it.
#[test]
fn the_process_survives_deep_recursion() {
    end_all(
        &[
            "def f: 1 + f; f",
            "def f: [f]; f",
            "def f: {a: f}; f",
            "def f: f | .; f",
            "def f: f + f; f",
            "def f: -f; f",
            "def f: (f, f) | f; f",
            "def f: if f then 1 else 2 end; f",
            "def f: . |= f; f",
            "def f: getpath(f); f",
            "def f: first(f); f",
            "def f: reduce f as $x (0; .); f",
            "def f: . as [$a] | f | .; f",
            "def factorial: if . == 0 then 1 else . * (. - 1 | factorial) end; 1e9 | factorial",
        ],
        RECURSION,
    );
}

/// To drop what is nested is recursion too, which no filter asked for.
#[test]
fn the_process_survives_deep_nesting() {
    end_all(
        &[
            "reduce range(1e9) as $i (1; [.])",
            "reduce range(1e9) as $i (1; {a: .})",
            "reduce range(1e9) as $i ([1]; .[0] = .)",
            "last(recurse([.]))",
            "def f(g): f(g | .); f(.)",
            "def f(g): if g == 2 then 1 else f(g | .) end; f(1)",
            "def f($x): f([$x]); f(1)",
        ],
        "more than ",
    );
    let nested = "reduce range(20000) as $i (1; [.])";
    end_all(&[nested, &format!("{nested} | tojson"), &format!("{nested} | \"\\(.)\"")], NESTING);
    assert_eq!(end("reduce range(20000) as $i (1; [.]) | length"), "gave 1");
    let caught = end("try (reduce range(20000) as $i (1; [.]) | .a) catch .");
    assert!(caught.starts_with("gave \"cannot index [[[[") && caught.len() < 400, "{caught}");
}

#[test]
fn a_value_with_shared_parts_is_not_walked_endlessly() {
    let filters = [
        ".",
        "tojson",
        "\"\\(.)\"",
        "@base64",
        "[..] | length",
        "last(path(..))",
        "walk(.)",
        "flatten",
        ". == (.[0] | [., .])",
        ". < (.[0] | [., .])",
        "[., .] | sort",
        "[., .] | unique",
        "[., .] | group_by(.)",
        "[.] - [.[0]]",
        ". as $x | [[.[0], .[1]]] | index([$x])",
        "contains(.[0])",
        "{a: {b: .}} * {a: {c: .}}",
        "tobytes",
    ]
    .map(|rest| format!("{ENDLESS} | {rest}"));
    end_all(&filters.each_ref().map(String::as_str), STEPS);
    let caught = end(&format!("{ENDLESS} | try .a catch ."));
    assert!(caught.starts_with("gave \"cannot index [[[[") && caught.len() < 400, "{caught}");
    let failed = end(&format!("{ENDLESS} | {{(.): 1}}"));
    assert!(failed.starts_with("the filter failed: the key of an object is a text, not [[[["), "{failed}");
    assert_eq!(end(&format!("{ENDLESS} | length")), "gave 2");
}

#[test]
fn the_time_limit_terminates_any_filter() {
    let limits = Limits { steps: u64::MAX, time: Duration::from_millis(50), memory: 32 * MIB };
    for filter in ["def f: f; f", "last(range(1e12))", "\"a\" * 1000000 | [match(\"a\"; \"g\").offset] | add"]
    {
        let message = apply_within(limits, filter, "1").unwrap_err().to_string();
        assert!(message.starts_with("the filter exceeded a limit: more than 50ms"), "{filter}: {message}");
    }
}

#[test]
fn a_run_does_not_affect_the_next() {
    let limits = Limits { steps: 100, ..LITTLE };
    for _ in 0..20 {
        assert_eq!(apply_within(limits, ".[0] + 1", "[1]").unwrap(), "2");
        let message = apply_within(limits, "[range(1000)]", "1").unwrap_err().to_string();
        assert!(message.contains("more than 100 steps"), "{message}");
    }
}

/// What a busy integration does to the largest body that is taken by default.
#[test]
fn a_large_body_is_rebuilt_within_the_limits() {
    let item = r#"{"id":"item-%","name":"A thing of some kind","price":"12.50","tags":["a","b"],"count":3}"#;
    let items: Vec<_> = (0..11_000).map(|number| item.replace('%', &number.to_string())).collect();
    let body = format!("{{\"items\":[{}]}}", items.join(","));
    assert!(body.len() > 900_000, "{}", body.len());
    let filter = r#"
        .items
        | map({id, label: "\(.name) (\(.id))", price: (.price | tonumber), total: ((.price | tonumber) * .count),
               tags: (.tags | map(ascii_upcase) | join("/"))})
        | group_by(.id[-1:])
        | map({(.[0].id[-1:]): {count: length, total: (map(.total) | add), items: sort_by(.label)}})
        | add"#;
    // Without optimisation, and beside other tests, it takes its time.
    let limits = Limits { time: Duration::from_mins(10), ..Limits::for_body(body.len()) };
    let output = apply_within(limits, filter, body).unwrap();
    assert!(
        output.starts_with(r#"{"0":{"count":1100,"total":41250.0,"items":[{"id":"item-0","label""#),
        "{}",
        &output[..100]
    );
}
