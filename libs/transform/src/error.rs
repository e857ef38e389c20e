use std::fmt::{self, Write as _};
use std::time::Duration;

use jaq_core::compile::Undefined;
use jaq_core::load::lex::{self, Token};
use jaq_core::load::parse;

use crate::filter::VARIABLES;
use crate::json::NotJson;

/// Why a filter does not compile: a line and column of its text, and what is wrong there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct CompileError {
    line: usize,
    column: usize,
    problem: String,
}

impl CompileError {
    /// `at` is a part of `source`.
    fn new(source: &str, at: &str, problem: String) -> Self {
        let offset = (at.as_ptr() as usize).checked_sub(source.as_ptr() as usize);
        let before = offset.and_then(|offset| source.get(..offset)).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            problem,
        }
    }

    /// What has no place in the text.
    pub(crate) fn of_jaq() -> Self {
        Self { line: 1, column: 1, problem: "jaq cannot compile it".to_owned() }
    }

    /// The first thing that is no word of jq; what follows it is often only noise.
    pub(crate) fn lexing(source: &str, errors: &[lex::Error<&str>]) -> Self {
        match errors.first() {
            Some((expected, at)) => Self::unexpected(source, expected.as_str(), at),
            None => Self::of_jaq(),
        }
    }

    /// The first thing that is no jq.
    pub(crate) fn parsing(source: &str, errors: &[parse::TError<'_, &str>]) -> Self {
        match errors.first() {
            Some((parse::Expect::Nothing, token)) => {
                Self::unexpected(source, "the end", Token::opt_as_str(*token, source))
            }
            Some((expected, token)) => {
                Self::unexpected(source, expected.as_str(), Token::opt_as_str(*token, source))
            }
            None => Self::of_jaq(),
        }
    }

    fn unexpected(source: &str, expected: &str, at: &str) -> Self {
        Self::new(source, at, format!("expected {expected}, found {}", found(at)))
    }

    /// The first name that does not exist.
    pub(crate) fn compiling<P>(source: &str, errors: jaq_core::compile::Errors<&str, P>) -> Self {
        match errors.into_iter().flat_map(|(_, errors)| errors).next() {
            Some((name, undefined)) => Self::new(source, name, unknown(name, &undefined)),
            None => Self::of_jaq(),
        }
    }
}

/// The beginning of what stands there.
fn found(at: &str) -> String {
    match at.lines().next().filter(|line| !line.is_empty()) {
        Some(line) => format!("`{}`", line.chars().take(20).collect::<String>()),
        None => "the end".to_owned(),
    }
}

fn unknown(name: &str, undefined: &Undefined) -> String {
    match undefined {
        Undefined::Var => format!("there is no variable {name} (there are {})", VARIABLES.join(", ")),
        Undefined::Filter(arity) => format!("there is no function {name}/{arity}"),
        other => format!("there is no {} {name}", other.as_str()),
    }
}

/// Why a body was not transformed. The texts can quote parts of the body.
#[derive(Debug, thiserror::Error)]
pub enum TransformError {
    /// The body cannot be read by a filter.
    #[error("the body cannot be filtered: {0}")]
    Body(#[source] NotJson),
    /// The filter ended with an error, its own or one of jaq's.
    #[error("the filter failed: {0}")]
    Failed(String),
    /// The filter was ended.
    #[error("the filter ran away: {0}")]
    RanAway(#[source] Runaway),
    /// The filter produced no value.
    #[error("the filter produced no value")]
    NoValue,
    /// The filter produced more than one value.
    #[error("the filter produced more than one value; put [ ] round it to have a list")]
    SeveralValues,
    /// The filter's output is no JSON: a not-a-number, bytes, keys that are not strings.
    #[error("what the filter produced is not JSON: {0}")]
    Output(#[source] NotJson),
    /// The filter's output is too large.
    #[error("what the filter produced is larger than {limit} bytes")]
    TooLarge {
        /// The most bytes for this body.
        limit: usize,
    },
}

/// What a filter used up. The texts say what to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Runaway {
    /// Too many steps.
    #[error("it took more than {0} steps for this body; look for a loop or a recursion that does not end")]
    Steps(u64),
    /// Too long.
    #[error("it took longer than {0:?}; have it do less for each part of the body")]
    Time(Duration),
    /// Too much memory.
    #[error(
        "it held more than {0} MiB; look for what it collects, repeats or copies for each part of the body"
    )]
    Memory(usize),
    /// Too many calls within each other.
    #[error("it called itself too often within itself; make the recursive call the last thing that it does")]
    Recursion,
    /// Arrays and objects too deep within each other.
    #[error("it made arrays or objects that are nested deeper than {0}")]
    Nesting(usize),
    /// The process has another allocator than [`Allocator`](crate::Allocator).
    #[error("its memory is not measured in this process")]
    Unmeasured,
}

impl TransformError {
    pub(crate) fn failed(problem: impl fmt::Display) -> Self {
        Self::Failed(Excerpt::of(problem))
    }
}

/// Longest text that is kept of an error: errors of jaq quote whole values.
const LONGEST: usize = 300;

/// The beginning of what can be written out, of which no more is written.
pub(crate) struct Excerpt(String);

impl Excerpt {
    pub(crate) fn of(problem: impl fmt::Display) -> String {
        let mut text = Self(String::new());
        // An excerpt that is full ends the writing with an error.
        let _ = write!(text, "{problem}");
        text.0
    }
}

impl fmt::Write for Excerpt {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = LONGEST.saturating_sub(self.0.len());
        if part.len() <= room {
            self.0.push_str(part);
            return Ok(());
        }
        self.0.push_str(&part[..part.floor_char_boundary(room)]);
        self.0.push('…');
        Err(fmt::Error)
    }
}
