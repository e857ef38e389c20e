//! What filters do with real bodies, and what they cannot do.

mod runaway;

use std::sync::Arc;

use bytes::Bytes;

use crate::meter::Limits;
use crate::{Filter, Runner, TransformError, Variables};

/// What makes the third party's body for the route `one` by default.
const ONE: &str =
    "{id: $id, metadata: {route: $route, accepted_at: $accepted_at, attempt: $attempt}, one_request: .}";

fn variables() -> Variables {
    Variables {
        id: "00371483940732964864".to_owned(),
        route: "one".to_owned(),
        accepted_at: "2026-11-21T10:00:00.000Z".to_owned(),
        attempt: 2,
    }
}

fn apply(filter: &str, body: impl AsRef<[u8]>) -> Result<String, TransformError> {
    apply_within(Limits::for_body(body.as_ref().len()), filter, body)
}

fn apply_within(limits: Limits, filter: &str, body: impl AsRef<[u8]>) -> Result<String, TransformError> {
    let runner = Runner::new(Filter::compile(filter).unwrap()).unwrap();
    let caller = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let body = Bytes::copy_from_slice(body.as_ref());
    let output = caller.block_on(runner.apply_within(limits, body, variables()))?;
    Ok(String::from_utf8(output).unwrap())
}

fn failure(filter: &str, body: impl AsRef<[u8]>) -> String {
    apply(filter, body).unwrap_err().to_string()
}

fn compile_failure(filter: &str) -> String {
    Filter::compile(filter).unwrap_err().to_string()
}

fn nested(depth: usize) -> String {
    "[".repeat(depth) + &"]".repeat(depth)
}

#[test]
fn the_default_filter_wraps_the_request() {
    let body = r#"{"user_id": "u-1", "data": [{"key": "k1", "value": "15"}]}"#;
    assert_eq!(
        apply(ONE, body).unwrap(),
        concat!(
            r#"{"id":"00371483940732964864","#,
            r#""metadata":{"route":"one","accepted_at":"2026-11-21T10:00:00.000Z","attempt":2},"#,
            r#""one_request":{"user_id":"u-1","data":[{"key":"k1","value":"15"}]}}"#
        )
    );
}

#[test]
fn numbers_that_are_only_copied_keep_their_form() {
    for number in ["1.0", "1.50", "1e400", "1E5", "-0.0", "1e-7", "0.1000000000000000055511151231257827"] {
        assert_eq!(apply("{n: .n}", format!("{{\"n\": {number}}}")).unwrap(), format!("{{\"n\":{number}}}"));
    }
    let large = "123456789012345678901234567890";
    assert_eq!(apply(".", large).unwrap(), large);
    assert_eq!(apply(".", "9007199254740993").unwrap(), "9007199254740993");
}

#[test]
fn minus_zero_loses_its_sign() {
    assert_eq!(apply(".", "-0").unwrap(), "0");
}

#[test]
fn integers_are_calculated_exactly_and_others_as_floats() {
    assert_eq!(apply(". + 1", "9007199254740993").unwrap(), "9007199254740994");
    assert_eq!(apply(". + 1", "1.50").unwrap(), "2.5");
}

#[test]
fn the_last_of_duplicate_keys_wins_and_keys_keep_their_order() {
    assert_eq!(apply(".", r#"{"z":1,"a":2,"z":3}"#).unwrap(), r#"{"z":3,"a":2}"#);
}

#[test]
fn unicode_is_kept() {
    let body = r#"{"ключ":"žluťoučký 🐎","escaped":"\u00e9\ud83d\ude00\u0000\n"}"#;
    assert_eq!(apply(".", body).unwrap(), "{\"ключ\":\"žluťoučký 🐎\",\"escaped\":\"é😀\\u0000\\n\"}");
}

#[test]
fn half_of_a_surrogate_pair_is_an_error() {
    assert!(apply(".", r#""\ud800""#).is_err());
}

#[test]
fn only_json_is_read_and_produced() {
    for body in
        ["", "nul", "{\"a\":1,}", "[NaN]", "# comment\n1", "{1: 2}", "b\"x\"", "1 2", "+1", "\"\u{1}\""]
    {
        assert!(matches!(apply(".", body), Err(TransformError::Body(_))), "{body:?}");
    }
    assert!(matches!(apply(".", b"\"\xff\""), Err(TransformError::Body(_))));
    for filter in ["nan", "infinite", "\"a\" | tobytes"] {
        assert!(matches!(apply(filter, "1"), Err(TransformError::Output(_))), "{filter}");
    }
}

#[test]
fn keys_of_objects_are_strings() {
    for filter in ["{(\"a\" | tobytes): 1}", "{\"1\": 2} | with_entries(.key |= fromjson)", "{} | .[[1]] = 2"]
    {
        let message = failure(filter, "1");
        assert!(message.starts_with("the filter failed: the key of an object is a text, not "), "{message}");
    }
    assert_eq!(apply("[.[1], has(1), has(\"1\")]", "{\"1\": 2}").unwrap(), "[null,false,true]");
}

#[test]
fn a_filter_produces_exactly_one_value() {
    assert!(matches!(apply("empty", "1"), Err(TransformError::NoValue)));
    assert!(matches!(apply(".[]", "[1, 2]"), Err(TransformError::SeveralValues)));
    assert!(matches!(apply("repeat(.)", "1"), Err(TransformError::SeveralValues)));
    assert_eq!(apply("[.[]]", "[1, 2]").unwrap(), "[1,2]");
    assert_eq!(apply("., error(\"second\")", "1").unwrap_err().to_string(), "the filter failed: second");
}

#[test]
fn nesting_is_limited_and_every_filter_can_process_the_limit() {
    for filter in [".", "walk(.)", "[..] | length", "tojson | fromjson", "flatten", ". == .", ONE] {
        apply(filter, nested(128)).unwrap_or_else(|error| panic!("{filter}: {error}"));
    }
    for depth in [129, 100_000] {
        assert!(matches!(apply(".", nested(depth)), Err(TransformError::Body(_))));
        assert!(matches!(apply(".", "{\"a\":".repeat(depth)), Err(TransformError::Body(_))));
    }
}

#[test]
fn json_within_a_string_has_the_same_limits() {
    let body = |text: &str| serde_json::to_string(text).unwrap();
    assert_eq!(apply("fromjson", body("{\"a\": [1.0]}")).unwrap(), "{\"a\":[1.0]}");
    assert_eq!(apply("tonumber", body("12")).unwrap(), "12");
    assert!(failure("fromjson", body(&nested(100_000))).contains("nested deeper than 128"));
    assert!(failure("fromjson", body("NaN")).contains("fromjson: expected value"));
    assert!(failure("fromjson", body(&"9".repeat(100_000))).contains("digits"));
}

#[test]
fn brackets_and_digits_within_strings_do_not_count() {
    let text = format!("\"\\\"{}{}\"", "[{".repeat(1000), "7".repeat(10_000));
    assert_eq!(apply(".", &text).unwrap(), text);
}

#[test]
fn long_numbers_are_rejected() {
    assert!(apply(".", "9".repeat(4096)).is_ok());
    assert!(matches!(apply(".", "9".repeat(4097)), Err(TransformError::Body(_))));
}

#[test]
fn failures_are_readable_and_short() {
    assert_eq!(failure(".name | ascii_downcase", "{}"), "the filter failed: cannot use null as string");
    assert_eq!(failure("error(\"no user\")", "{}"), "the filter failed: no user");
    assert_eq!(failure("error({code: 7})", "{}"), "the filter failed: {\"code\":7}");
    let long = failure("{} - .", format!("\"{}\"", "ž".repeat(10_000)));
    assert!(long.starts_with("the filter failed: cannot calculate {} - \"ž"), "{long}");
    assert!(long.len() < 400, "{}", long.len());
}

#[test]
fn the_repetition_of_strings_is_limited() {
    let body = r#"{"price": "xx", "quantity": 9223372036854775807, "more": 1e3, "huge": 123456789012345678901234567890}"#;
    for filter in [
        ".price * .quantity",
        ".quantity * .price",
        ".price * .huge",
        ".price *= .quantity",
        "[.[\"pri\" + \"ce\"] * .quantity]",
        "{a: {(\"b\"): (.price * .quantity)}}",
        "\"\\(.price * .quantity)\"",
        "def f(g): g * .quantity; f(.price)",
        "if .price * .quantity then 1 else 2 end",
        "reduce .quantity as $n (.price; . * $n)",
        ".quantity as $n | .price | . *= $n",
        ". as {(\"x\" * .quantity): $x} | $x",
        "[.price][\"x\" * .quantity]",
        "try error(.price * .quantity) catch error(.)",
        "label $out | .price * .quantity",
        "-(.price * .quantity)",
        "(\"\" | tobytes) * .quantity",
    ] {
        let message = failure(filter, body);
        assert!(
            message.contains("a string cannot be repeated 9223372036854775807 times"),
            "{filter}: {message}"
        );
    }
}

#[test]
fn multiplication_is_as_in_jq() {
    for (filter, output) in [
        ("2 * 3", "6"),
        ("\"ab\" * 3", "\"ababab\""),
        ("3 * \"ab\"", "\"ababab\""),
        ("\"ab\" * 0", "null"),
        ("\"ab\" * -1", "null"),
        ("{a: {b: 1}} * {a: {c: 2}}", r#"{"a":{"b":1,"c":2}}"#),
        ("[1, 2] | .[] *= 3", "[3,6]"),
        ("[1, 2] | .[0] *= .[1]", "[2,2]"),
        ("1 + 2 * 3 - 4", "3"),
        ("[(10, 20) * (1, 2)]", "[10,20,20,40]"),
        ("[(10, 20) + (1, 2)]", "[11,12,21,22]"),
        ("99999999999 * 99999999999", "9999999999800000000001"),
    ] {
        assert_eq!(apply(filter, "null").unwrap(), output, "{filter}");
    }
    assert!(failure("[] * 2", "1").contains("cannot calculate [] * 2"));
}

#[test]
fn a_panic_of_jaq_is_a_failure() {
    assert_eq!(failure("9223372036854775807 | gmtime", "1"), "the filter failed: jaq panicked");
}

#[test]
fn the_size_of_the_output_is_limited() {
    assert!(matches!(apply("\"x\" * 9000000 | [., .]", "1"), Err(TransformError::TooLarge { .. })));
    assert!(apply("\"x\" * 16000000", "1").is_ok());
}

#[test]
fn a_filter_cannot_access_the_machine() {
    for filter in [
        "env",
        "$ENV",
        "$ENV.PATH",
        "$__prog_args",
        "input",
        "inputs",
        "input_filename",
        "now",
        "localtime",
        "strflocaltime(\"%Z\")",
        "debug",
        "debug(.)",
        "stderr",
        "halt",
        "halt(0)",
        "halt_error",
        "halt_error(1)",
        "env_empty",
        "debug_empty",
        "stderr_empty",
        "getpath(env)",
        "filter",
        "$!factor",
        "include \"/etc/passwd\"; .",
        "import \"a\" as a; a::b",
        "import \"/etc/passwd\" as $data; $data",
    ] {
        assert!(Filter::compile(filter).is_err(), "{filter}");
    }
}

#[test]
fn common_functions_are_available() {
    for (filter, body, output) in [
        ("map(select(.a > 1)) | length", r#"[{"a":1},{"a":2}]"#, "1"),
        ("to_entries | map(.key)", r#"{"b":1,"a":2}"#, r#"["b","a"]"#),
        (
            "group_by(.k) | map({(.[0].k): length}) | add",
            r#"[{"k":"x"},{"k":"y"},{"k":"x"}]"#,
            r#"{"x":2,"y":1}"#,
        ),
        ("del(.secret)", r#"{"secret":1,"a":2}"#, r#"{"a":2}"#),
        (".a // \"none\"", "{}", "\"none\""),
        ("capture(\"(?<y>[0-9]+)-(?<m>[0-9]+)\")", "\"2026-11\"", r#"{"y":"2026","m":"11"}"#),
        ("@base64", "\"x\"", "\"eA==\""),
        ("@uri \"?q=\\(.)\"", "\"a b\"", "\"?q=a%20b\""),
        ("$accepted_at | .[:19] + \"Z\" | fromdate | todate", "1", "\"2026-11-21T10:00:00Z\""),
        ("if . > 1 then \"many\" else \"few\" end", "2", "\"many\""),
        ("try error(\"x\") catch .", "1", "\"x\""),
        ("[limit(3; repeat(.))]", "1", "[1,1,1]"),
        ("$attempt + 1", "null", "3"),
    ] {
        assert_eq!(
            apply(filter, body).unwrap_or_else(|error| panic!("{filter}: {error}")),
            output,
            "{filter}"
        );
    }
}

#[test]
fn a_filter_that_does_not_compile_is_reported_with_position_and_cause() {
    for (filter, message) in [
        (
            "{id: $id, one_request: .",
            "line 1, column 25: expected closing brace, found the end of the filter",
        ),
        ("", "line 1, column 1: expected term, found the end of the filter"),
        ("{a: 1}\n| .b |", "line 2, column 7: expected term, found the end of the filter"),
        ("\"žš\" | upcase", "line 1, column 8: unknown function upcase/0"),
        (".a |\n  upcase", "line 2, column 3: unknown function upcase/0"),
        ("map(.; 1)", "line 1, column 1: unknown function map/2"),
        (
            ".a + $name",
            "line 1, column 6: unknown variable $name (known variables: $id, $route, $accepted_at, $attempt)",
        ),
        (". ) 1", "line 1, column 3: expected token, found `) 1`"),
        ("include \"a\"; .", "line 1, column 9: expected the end of the filter, found `\"a\"`"),
    ] {
        assert_eq!(compile_failure(filter), message);
    }
}

/// jaq-json has these for its own values only, and jaq-std's searches cannot be metered.
#[test]
fn reimplemented_functions_behave_as_in_jaq() {
    for (filter, body, output) in [
        (
            "map(length)",
            r#"[null,-3,3,-1.5,1.5,"žš",[1],{"a":1},-123456789012345678901234567890]"#,
            "[0,3,3,1.5,1.5,2,1,1,123456789012345678901234567890]",
        ),
        (
            "[.[] as [$x, $y] | $x | contains($y)]",
            r#"[["foobar","bar"],[["foobar","baz"],["bar"]],[{"a":[1,2],"b":1},{"a":[2]}],[1,1],[1,2]]"#,
            "[true,true,true,true,false]",
        ),
        ("[has(0), has(2), has(-2), has(-3)]", "[1,2]", "[true,false,true,false]"),
        ("[has(\"a\"), has(\"b\")]", r#"{"a":null}"#, "[true,false]"),
        (
            "[.[] as [$x, $y] | $x | indices($y)]",
            r#"[["žabab","ab"],["aaa","aa"],["a",""],[[1,2,1,2],[1,2]],[[1,2,1],1],[[1],[]]]"#,
            "[[1,3],[0,1],[],[0,2],[0,2],[]]",
        ),
        ("[.[[1, 2]], index(2), rindex(2)]", "[1,2,1,2]", "[[0,2],1,3]"),
        ("[bsearch(0), bsearch(2), bsearch(4)]", "[1,2,3]", "[-1,1,-4]"),
        ("tojson", r#"[1.0,"a\n",{"b":null}]"#, r#""[1.0,\"a\\n\",{\"b\":null}]""#),
        ("tobytes | [length, .[0]]", r#"[65,"b",["č"]]"#, "[4,65]"),
        (
            "[match(\"(?<x>[a-ž])([0-9])?\"; \"g\") | .offset, .length, .captures[1].offset]",
            r#""ža1""#,
            "[0,1,null,1,2,2]",
        ),
        ("[match(\"(?<x>a)|b\"; \"g\").captures | map(.name, .string)]", r#""ab""#, r#"[["x","a"],[]]"#),
        ("[match(\"\"; \"g\").offset]", r#""žab""#, "[0,1,2,3]"),
        ("[match(\"\"; \"gn\").offset]", r#""ab""#, "[]"),
        (
            r#"[gsub("\\s+"; "_"), sub("(?<x>B)"; "<" + .x + ">"; "i"), [splits(" *, *")], test("^ A"; "x")]"#,
            r#""A  b , c""#,
            r#"["A_b_,_c","A  <b> , c",["A  b","c"],true]"#,
        ),
    ] {
        let found = apply(filter, body).unwrap_or_else(|error| panic!("{filter}: {error}"));
        assert_eq!(found, output, "{filter}");
    }
    assert_eq!(failure("length", "true"), "the filter failed: true has no length");
    assert_eq!(failure("tobytes", "[256]"), "the filter failed: cannot convert 256 to bytes");
    assert_eq!(failure("test(\"a\"; \"q\")", r#""a""#), "the filter failed: invalid regex flag: q");
}

#[test]
fn values_are_compared_calculated_and_updated_as_in_jaq() {
    for (filter, body, output) in [
        (
            "sort",
            r#"[{"b":1},{"a":2},{"a":1,"b":0},[2],[1,5],"b","a",3,true,null,{},{"a":2,"b":-1}]"#,
            r#"[null,true,3,"a","b",[1,5],[2],{},{"a":2},{"a":1,"b":0},{"a":2,"b":-1},{"b":1}]"#,
        ),
        (
            "[.a == .b, .a != .b, .a < .c]",
            r#"{"a":{"x":[1,2.0],"y":null},"b":{"y":null,"x":[1,2]},"c":{"x":[1,3],"y":null}}"#,
            "[true,false,true]",
        ),
        ("[nan == nan, [nan] == [nan], nan < nan]", "1", "[false,false,true]"),
        ("[. - [2, [3]], .[1:], .[:-1]]", "[1,2,[3]]", "[[1],[2,[3]],[1,2]]"),
        ("[\"a, b\" / \", \", \"žš\" / \"\", \"\" / \",\"]", "1", r#"[["a","b"],["ž","š"],[]]"#),
        (".[1:] = [9, 8, 7] | .[0] += 1 | .[-1] |= empty", "[1,2]", "[2,9,8]"),
        (".c = {} | .c.d = 4 | del(.a) | map_values(select(. != 2))", r#"{"a":1,"b":2}"#, r#"{"c":{"d":4}}"#),
        ("[.[] |= (., .)]", "[1]", "[[1,1]]"),
        ("[.[]?, (.a? // 1), (try .a catch .)]", r#""x""#, r#"[1,"cannot index \"x\" with \"a\""]"#),
        ("try (.[5] = 2) catch .", "[0]", r#""index 5 out of bounds""#),
        ("[label $out | .[] |= (if . > 1 then break $out else 7 end)]", "[1,2]", "[]"),
        ("def f: if . > 3 then . else . + 1 | f end; .[] |= f", "[1,2]", "[4,4]"),
        ("try (.[] |= error({code: .})) catch .code", "[1,2]", "1"),
    ] {
        let found = apply(filter, body).unwrap_or_else(|error| panic!("{filter}: {error}"));
        assert_eq!(found, output, "{filter}");
    }
}

#[tokio::test]
async fn a_filter_runs_concurrently() {
    let runner = Arc::new(Runner::new(Filter::compile(ONE).unwrap()).unwrap());
    let runs: Vec<_> = (0..64)
        .map(|_| {
            let runner = Arc::clone(&runner);
            tokio::spawn(async move { runner.apply("{}".into(), variables()).await.unwrap() })
        })
        .collect();
    let mut outputs = Vec::new();
    for run in runs {
        outputs.push(run.await.unwrap());
    }
    assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]));
}
