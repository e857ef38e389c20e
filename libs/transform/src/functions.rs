//! The functions that a filter can call.

use jaq_core::load::parse::Def;
use jaq_core::native::{Fun, bome, run, v};
use jaq_core::{Error, data};
use jaq_json::{Val, read};
use jaq_std::ValT as _;

use crate::{guard, json};

/// The data that jaq's functions work on.
pub(crate) type Data = data::JustLut<Val>;

/// What would leak from the machine, depend on it, write to its log or end the process; and
/// `fromjson`, of which there is our own.
const NATIVE_LEFT_OUT: &[&str] =
    &["env", "now", "localtime", "strflocaltime", "debug_empty", "stderr_empty", "halt", "fromjson"];

/// Definitions on top of those.
const DEFINED_LEFT_OUT: &[&str] = &["debug", "stderr", "halt", "halt_error"];

pub(crate) fn native() -> impl Iterator<Item = Fun<Data>> {
    jaq_core::funs()
        .chain(jaq_std::funs())
        .chain(jaq_json::funs())
        .filter(|(name, ..)| !NATIVE_LEFT_OUT.contains(name))
        .chain([run(("fromjson", v(0), |cv| bome(from_json(&cv.1)))), guard::product()])
}

pub(crate) fn defined() -> impl Iterator<Item = Def<&'static str>> {
    jaq_core::defs()
        .chain(jaq_std::defs())
        .chain(jaq_json::defs())
        .filter(|def| !DEFINED_LEFT_OUT.contains(&def.name))
}

/// jaq's own takes anything that is nested in a client's string, and recurses.
fn from_json(text: &Val) -> Result<Val, Error<Val>> {
    let text = text.try_as_utf8_bytes()?;
    json::check(text).map_err(|problem| Error::str(format_args!("fromjson: {problem}")))?;
    read::parse_single(text).map_err(|problem| Error::str(format_args!("fromjson: {problem}")))
}
