//! Regular-expression search with jaq's engine, match by match, so that each match is a step.

use jaq_core::native::{Fun, bome, run, v};
use jaq_core::{Cv, ValT as _};
use jaq_std::ValT as _;
use regex_bites::bytes::{Captures, Regex, RegexBuilder};

use crate::functions::Data;
use crate::meter;
use crate::value::{Error, ValR, Value};

/// Returns the native functions that jaq's `test`, `match`, `capture`, `scan`, `split`, `sub` and so on are based on.
pub(crate) fn functions() -> [Fun<Data>; 3] {
    [
        run(("matches", v(2), |cv| bome(search(cv, Wanted { between: false, matches: true })))),
        run(("split_matches", v(2), |cv| bome(search(cv, Wanted { between: true, matches: true })))),
        run(("split_", v(2), |cv| bome(search(cv, Wanted { between: true, matches: false })))),
    ]
}

/// The contents of the result: the strings between the matches, the matches, or both alternately.
#[derive(Clone, Copy)]
struct Wanted {
    between: bool,
    matches: bool,
}

fn search(mut cv: Cv<'_, Data>, wanted: Wanted) -> ValR {
    let flags = cv.0.pop_var();
    let pattern = cv.0.pop_var();
    let input = cv.1;
    let flags = as_str(&flags)?;
    let expression = expression(as_str(&pattern)?, flags)?;
    let text = input.try_as_utf8_bytes()?;

    let mut counter = Counter { text, bytes: 0, characters: 0 };
    let mut list = Vec::new();
    let mut after = 0;
    for captures in expression.captures_iter(text) {
        meter::step();
        let Some(whole) = captures.get(0) else { continue };
        if flags.contains('n') && whole.is_empty() {
            continue;
        }
        if wanted.between {
            list.push(input.as_sub_str(&text[after..whole.start()]));
            after = whole.end();
        }
        if wanted.matches {
            list.push(found(&input, &expression, &captures, &mut counter)?);
        }
        if !flags.contains('g') {
            break;
        }
    }
    if wanted.between {
        list.push(input.as_sub_str(&text[after..]));
    }
    Ok(list.into_iter().collect())
}

fn as_str(value: &Value) -> ValR<&str> {
    str::from_utf8(value.try_as_utf8_bytes()?).map_err(Error::str)
}

fn expression(pattern: &str, flags: &str) -> ValR<Regex> {
    if let Some(unknown) = flags.chars().find(|flag| !"gnimslxp".contains(*flag)) {
        return Err(Error::str(format_args!("invalid regex flag: {unknown}")));
    }
    let has = |flag| flags.contains(flag);
    RegexBuilder::new(pattern)
        .case_insensitive(has('i'))
        .multi_line(has('m') || has('p'))
        .dot_matches_new_line(has('s') || has('p'))
        .swap_greed(has('l'))
        .ignore_whitespace(has('x'))
        .build()
        .map_err(|problem| Error::str(format_args!("invalid regex: {problem}")))
}

/// Returns a match: one object for the whole, and one for each group that took part.
fn found(input: &Value, expression: &Regex, captures: &Captures<'_>, counter: &mut Counter<'_>) -> ValR {
    let text = counter.text;
    let start = captures.get(0).map_or(0, |whole| whole.start());
    let offset = counter.characters_before(start);
    let parts = captures.iter().zip(expression.capture_names());
    let objects = parts.filter_map(|(part, name)| {
        let part = part?;
        let mut entries = vec![
            ("offset", Value::from(offset + characters(&text[start..part.start()]))),
            ("length", characters(part.as_bytes()).into()),
            ("string", input.as_sub_str(part.as_bytes())),
        ];
        entries.extend(name.map(|name| ("name", name.to_owned().into())));
        Some(Value::from_map(entries.into_iter().map(|(key, value)| (Value::from(key.to_owned()), value))))
    });
    objects.collect()
}

fn characters(text: &[u8]) -> usize {
    String::from_utf8_lossy(text).chars().count()
}

/// Counts the characters before ascending byte positions.
struct Counter<'a> {
    text: &'a [u8],
    bytes: usize,
    characters: usize,
}

impl Counter<'_> {
    fn characters_before(&mut self, place: usize) -> usize {
        self.characters += characters(&self.text[self.bytes..place]);
        self.bytes = place;
        self.characters
    }
}
