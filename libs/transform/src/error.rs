use std::fmt::{self, Write as _};
use std::time::Duration;

use jaq_core::compile::Undefined;
use jaq_core::load::lex::{self, Token};
use jaq_core::load::parse;

use crate::filter::VARIABLES;
use crate::json::NotJson;

/// Why a filter does not compile: the problem, and its line and column in the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct CompileError {
    line: usize,
    column: usize,
    problem: String,
}

impl CompileError {
    /// Locates the problem by `at`, a slice of `source`.
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

    /// Creates an error without a position in the text.
    pub(crate) fn of_jaq() -> Self {
        Self { line: 1, column: 1, problem: "invalid jq".to_owned() }
    }

    /// Returns the first token that is not valid jq; the errors after it are often only its consequences.
    pub(crate) fn lexing(source: &str, errors: &[lex::Error<&str>]) -> Self {
        match errors.first() {
            Some((expected, at)) => Self::unexpected(source, expected.as_str(), at),
            None => Self::of_jaq(),
        }
    }

    /// Returns the first syntax error.
    pub(crate) fn parsing(source: &str, errors: &[parse::TError<'_, &str>]) -> Self {
        match errors.first() {
            Some((parse::Expect::Nothing, token)) => {
                Self::unexpected(source, "the end of the filter", Token::opt_as_str(*token, source))
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

    /// Returns the first unknown name.
    pub(crate) fn compiling<P>(source: &str, errors: jaq_core::compile::Errors<&str, P>) -> Self {
        match errors.into_iter().flat_map(|(_, errors)| errors).next() {
            Some((name, undefined)) => Self::new(source, name, unknown(name, &undefined)),
            None => Self::of_jaq(),
        }
    }
}

/// Quotes the beginning of the text at the error.
fn found(at: &str) -> String {
    match at.lines().next().filter(|line| !line.is_empty()) {
        Some(line) => format!("`{}`", line.chars().take(20).collect::<String>()),
        None => "the end of the filter".to_owned(),
    }
}

fn unknown(name: &str, undefined: &Undefined) -> String {
    match undefined {
        Undefined::Var => format!("unknown variable {name} (known variables: {})", VARIABLES.join(", ")),
        Undefined::Filter(arity) => format!("unknown function {name}/{arity}"),
        other => format!("unknown {} {name}", other.as_str()),
    }
}

/// Why a body was not transformed. The messages can quote parts of the body.
#[derive(Debug, thiserror::Error)]
pub enum TransformError {
    /// The body cannot be read by a filter.
    #[error("cannot filter the body: {0}")]
    Body(#[source] NotJson),
    /// The filter failed with an error, its own or one of jaq's.
    #[error("the filter failed: {0}")]
    Failed(String),
    /// The filter was terminated.
    #[error("the filter exceeded a limit: {0}")]
    RanAway(#[source] Runaway),
    /// The filter produced no value.
    #[error("the filter produced no value")]
    NoValue,
    /// The filter produced more than one value.
    #[error("the filter produced more than one value; wrap it in [ ] to produce an array")]
    SeveralValues,
    /// The filter's output is not JSON: a NaN, bytes, or keys that are not strings.
    #[error("the output of the filter is not JSON: {0}")]
    Output(#[source] NotJson),
    /// The filter's output is too large.
    #[error("the output of the filter is larger than {limit} bytes")]
    TooLarge {
        /// Maximum bytes of the output for this body.
        limit: usize,
    },
}

/// The limit that a filter exceeded. The messages say which mistake to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Runaway {
    /// Too many steps.
    #[error("more than {0} steps for this body; look for an endless loop or recursion")]
    Steps(u64),
    /// It took too long.
    #[error("more than {0:?} of time; reduce its work for each part of the body")]
    Time(Duration),
    /// It held too much memory.
    #[error(
        "more than {0} MiB of memory; look for values that it collects, repeats or copies for each part of the body"
    )]
    Memory(usize),
    /// It recursed too deeply.
    #[error("a recursion is too deep; make the recursive call the last step of the function")]
    Recursion,
    /// It built arrays or objects that are nested too deeply.
    #[error("arrays or objects are nested deeper than {0}")]
    Nesting(usize),
    /// The process uses another allocator than [`Allocator`](crate::Allocator).
    #[error("this process cannot measure its memory")]
    Unmeasured,
}

impl TransformError {
    pub(crate) fn failed(problem: impl fmt::Display) -> Self {
        Self::Failed(Excerpt::of(problem))
    }
}

/// Maximum bytes kept of an error message: errors of jaq quote whole values.
const LONGEST: usize = 300;

/// The beginning of a value's written form; the rest is never written.
pub(crate) struct Excerpt(String);

impl Excerpt {
    pub(crate) fn of(problem: impl fmt::Display) -> String {
        let mut text = Self(String::new());
        // A full excerpt stops the formatting with an error.
        let _ = write!(text, "{problem}");
        text.0
    }
}

impl fmt::Write for Excerpt {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let left = LONGEST.saturating_sub(self.0.len());
        if part.len() <= left {
            self.0.push_str(part);
            return Ok(());
        }
        self.0.push_str(&part[..part.floor_char_boundary(left)]);
        self.0.push('…');
        Err(fmt::Error)
    }
}
