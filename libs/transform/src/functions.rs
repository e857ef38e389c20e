//! The functions that a filter can call.

use jaq_core::data::{DataT, HasLut};
use jaq_core::load::parse::Def;
use jaq_core::native::{Fun, bome, run, unary, v};
use jaq_core::{Lut, ValT as _};
use jaq_json::write::{Pp, write};
use jaq_json::{Num, Val, read};
use jaq_std::ValT as _;

use crate::arithmetic::{compare, equal};
use crate::value::{Error, MOST_TEXT, ValR, Value, is_text, walk};
use crate::{json, meter, search};

/// The data of a run: metered values. jaq looks up every term that it evaluates, which counts as a step.
pub(crate) struct Data;

#[derive(Clone, Copy)]
pub(crate) struct Terms<'a>(pub(crate) &'a Lut<Data>);

impl DataT for Data {
    type V<'a> = Value;
    type Data<'a> = Terms<'a>;
}

impl<'a> HasLut<'a, Data> for Terms<'a> {
    fn lut(&self) -> &'a Lut<Data> {
        meter::step();
        self.0
    }
}

/// Native functions that would leak data of the machine, depend on it, write to its log or end the process; and
/// functions that this crate replaces with metered ones.
const NATIVE_LEFT_OUT: &[&str] = &[
    "env",
    "now",
    "localtime",
    "strflocaltime",
    "debug_empty",
    "stderr_empty",
    "halt",
    "matches",
    "split_matches",
    "split_",
];

/// Definitions that are based on these native functions.
const DEFINED_LEFT_OUT: &[&str] = &["debug", "stderr", "halt", "halt_error"];

pub(crate) fn native() -> impl Iterator<Item = Fun<Data>> {
    jaq_core::funs()
        .chain(jaq_std::funs())
        .filter(|(name, ..)| !NATIVE_LEFT_OUT.contains(name))
        .chain(of_json())
        .chain(search::functions())
}

pub(crate) fn defined() -> impl Iterator<Item = Def<&'static str>> {
    jaq_core::defs()
        .chain(jaq_std::defs())
        .chain(jaq_json::defs())
        .filter(|def| !DEFINED_LEFT_OUT.contains(&def.name))
}

/// Metered versions of the functions that jaq-json defines for its own values.
fn of_json() -> [Fun<Data>; 8] {
    [
        run(("fromjson", v(0), |cv| bome(from_json(&cv.1)))),
        run(("tojson", v(0), |cv| bome(to_json(&cv.1)))),
        run(("tobytes", v(0), |cv| bome(to_bytes(&cv.1)))),
        run(("length", v(0), |cv| bome(length(cv.1)))),
        run(("contains", v(1), |cv| unary(cv, |whole, part| Ok(contains(&whole.0, &part.0).into())))),
        run(("has", v(1), |cv| unary(cv, |whole, key| has(whole, &key).map(Value::from)))),
        run(("indices", v(1), |cv| unary(cv, |whole, part| indices(&whole, &part)))),
        run(("bsearch", v(1), |cv| unary(cv, |items, item| binary_search(&items, &item)))),
    ]
}

/// jaq's own function accepts input of any nesting depth, which a client's string can contain, and recurses.
fn from_json(text: &Value) -> ValR {
    let text = text.try_as_utf8_bytes()?;
    let problem = |problem: &dyn std::fmt::Display| Error::str(format_args!("fromjson: {problem}"));
    json::check(text).map_err(|not_json| problem(&not_json))?;
    // An empty object takes the most memory per byte of text.
    meter::reserve(text.len().saturating_mul(32));
    read::parse_single(text).map(Value).map_err(|not_json| problem(&not_json))
}

fn to_json(value: &Value) -> ValR {
    meter::reserve(walk(&value.0));
    let mut text = Vec::new();
    write(&mut text, &Pp::default(), 0, &value.0).map_err(Error::str)?;
    Ok(Value::text(text))
}

/// Converts a string, a number below 256, or an array of these to bytes.
fn to_bytes(value: &Value) -> ValR {
    fn collect(value: &Val, bytes: &mut Vec<u8>) -> Result<(), Val> {
        meter::step();
        match value {
            Val::Num(_) => match value.as_isize().map(u8::try_from) {
                Some(Ok(byte)) => bytes.push(byte),
                _ => return Err(value.clone()),
            },
            Val::BStr(text) | Val::TStr(text) if bytes.len() + text.len() <= MOST_TEXT => {
                bytes.extend_from_slice(text);
            }
            Val::Arr(items) => items.iter().try_for_each(|item| collect(item, bytes))?,
            _ => return Err(value.clone()),
        }
        Ok(())
    }
    let mut bytes = Vec::new();
    match collect(&value.0, &mut bytes) {
        Ok(()) => Ok(Value(Val::byte_str(bytes))),
        Err(other) => Err(Error::str(format_args!("cannot convert {} to bytes", Value(other)))),
    }
}

/// Returns the length of a value; for a number, its absolute value.
fn length(value: Value) -> ValR {
    match &value.0 {
        Val::Null => Ok(Value::from(0_usize)),
        Val::TStr(text) => Ok(String::from_utf8_lossy(text).chars().count().into()),
        Val::BStr(bytes) => Ok(bytes.len().into()),
        Val::Arr(items) => Ok(items.len().into()),
        Val::Obj(entries) => Ok(entries.len().into()),
        Val::Bool(_) => Err(Error::str(format_args!("{value} has no length"))),
        Val::Num(Num::Float(number)) => Ok(number.abs().into()),
        Val::Num(Num::Dec(digits)) => length(Value(Val::Num(Num::from_dec_str(digits)))),
        Val::Num(Num::Int(_) | Num::BigInt(_)) if value < Value::from(0_usize) => -value,
        Val::Num(Num::Int(_) | Num::BigInt(_)) => Ok(value),
    }
}

/// Whether `whole` contains `part`. A string contains its substrings. An array contains another if one of its items
/// contains each item of the other. An object contains another if, for each key of the other, its value contains the
/// other's value.
fn contains(whole: &Val, part: &Val) -> bool {
    meter::step();
    match (whole, part) {
        (Val::TStr(whole) | Val::BStr(whole), Val::TStr(part) | Val::BStr(part)) => {
            match (str::from_utf8(whole), str::from_utf8(part)) {
                (Ok(whole), Ok(part)) => whole.contains(part),
                _ => part.is_empty() || whole.windows(part.len()).any(|window| *window == part[..]),
            }
        }
        (Val::Arr(whole), Val::Arr(parts)) => {
            parts.iter().all(|part| whole.iter().any(|item| contains(item, part)))
        }
        (Val::Obj(whole), Val::Obj(parts)) => {
            parts.iter().all(|(key, part)| whole.get(key).is_some_and(|value| contains(value, part)))
        }
        _ => equal(whole, part),
    }
}

fn has(whole: Value, key: &Value) -> ValR<bool> {
    match (&whole.0, key.as_isize()) {
        (Val::Obj(entries), _) => Ok(is_text(&key.0) && entries.contains_key(&key.0)),
        (Val::Arr(items), Some(index)) => {
            let within =
                if index < 0 { index.unsigned_abs() } else { index.unsigned_abs().saturating_add(1) };
            Ok(within <= items.len())
        }
        _ => Ok(!matches!(whole.index(key)?.0, Val::Null)),
    }
}

/// Returns the positions at which `part` begins in a string, counted in characters, or in an array.
fn indices(whole: &Value, part: &Value) -> ValR {
    match (&whole.0, &part.0) {
        (Val::TStr(_), Val::TStr(part)) | (Val::BStr(_), Val::BStr(part)) if part.is_empty() => {
            Ok(Value::from_iter([]))
        }
        (Val::TStr(text), Val::TStr(part)) => {
            let text = String::from_utf8_lossy(text);
            let at = text.char_indices().enumerate();
            let begins = |at: usize| {
                meter::step();
                text.as_bytes()[at..].starts_with(part)
            };
            Ok(at.filter(|(_, (at, _))| begins(*at)).map(|(index, _)| Value::from(index)).collect())
        }
        (Val::BStr(bytes), Val::BStr(part)) => {
            let windows = bytes.windows(part.len()).enumerate();
            Ok(windows.filter(|(_, window)| *window == **part).map(|(index, _)| Value::from(index)).collect())
        }
        (Val::Arr(items), Val::Arr(part)) => Ok(positions(items, part)),
        (Val::Arr(items), part) => {
            let equal = items.iter().enumerate().filter(|(_, item)| equal(item, part));
            Ok(equal.map(|(index, _)| Value::from(index)).collect())
        }
        _ => Err(Error::index(whole.clone(), part.clone())),
    }
}

/// Returns the positions at which `part` begins in an array.
pub(crate) fn positions(items: &[Val], part: &[Val]) -> Value {
    if part.is_empty() {
        return Value::from_iter([]);
    }
    let begins = |window: &[Val]| window.iter().zip(part).all(|(left, right)| equal(left, right));
    let windows = items.windows(part.len()).enumerate();
    windows.filter(|(_, window)| begins(window)).map(|(index, _)| Value::from(index)).collect()
}

/// Returns the index of an item in a sorted array; if it is absent, -1 minus the index at which it would be inserted.
fn binary_search(items: &Value, item: &Value) -> ValR {
    let Val::Arr(items) = &items.0 else { return Err(Error::typ(items.clone(), "array")) };
    Ok(match items.binary_search_by(|probe| compare(probe, &item.0)) {
        Ok(index) => index.into(),
        Err(index) => Value(Val::from(-1 - index.cast_signed())),
    })
}
