use std::io;
use std::sync::Arc;

use jaq_core::load::parse::Def;
use jaq_core::load::{Arena, File, Lexer, Loader, Parser};
use jaq_core::{Compiler, Ctx, Vars};
use jaq_json::write::{Pp, write};
use jaq_json::{Num, Val, read};

use crate::error::{CompileError, TransformError};
use crate::functions::{self, Data, Terms};
use crate::json;
use crate::meter::{self, Broken, Limits};
use crate::value::{MOST_TEXT, Value, walk};

/// The names of the variables, in the order of [`Variables::values`].
pub(crate) const VARIABLES: [&str; 4] = ["$id", "$route", "$accepted_at", "$attempt"];

/// The name of the definition that holds the filter.
const NAME: &str = "filter";

/// The maximum by which an output may exceed its body: far more than a filter needs to add, and far less than memory
/// allows.
const MOST_ADDED: usize = MOST_TEXT;

/// A compiled jq filter. Clones share it.
#[derive(Clone)]
pub struct Filter(Arc<jaq_core::Filter<Data>>);

/// The variables of a filter: data about the delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variables {
    /// `$id`: the request's id, 20 digits.
    pub id: String,
    /// `$route`: the name of the route that accepted the request.
    pub route: String,
    /// `$accepted_at`: when the request was accepted (RFC 3339).
    pub accepted_at: String,
    /// `$attempt`: the number of the attempt, from 1.
    pub attempt: u32,
}

impl Variables {
    fn values(&self) -> [Value; 4] {
        let text = |text: &String| Value::from(text.clone());
        let attempt = Value(Val::Num(Num::from_integral(self.attempt)));
        [text(&self.id), text(&self.route), text(&self.accepted_at), attempt]
    }
}

impl Filter {
    /// Compiles a filter.
    ///
    /// # Errors
    /// If the text is not a valid filter: the first problem, with its line and column.
    pub fn compile(source: &str) -> Result<Self, CompileError> {
        let tokens = Lexer::new(source).lex().map_err(|errors| CompileError::lexing(source, &errors))?;
        let term = Parser::new(&tokens)
            .parse(Parser::term)
            .map_err(|errors| CompileError::parsing(source, &errors))?;
        // The filter becomes a definition of its own: jaq compiles either text or parsed definitions.
        let body = Def { name: NAME, args: VARIABLES.to_vec(), body: term };
        let mut definitions: Vec<Def<&str>> = functions::defined().collect();
        definitions.push(body);
        let call = format!("{NAME}({})", VARIABLES.join("; "));
        let arena = Arena::default();
        let modules = Loader::new(definitions)
            .load(&arena, File { code: &call, path: () })
            .map_err(|_| CompileError::of_jaq())?;
        let filter = Compiler::default()
            .with_funs(functions::native())
            .with_global_vars(VARIABLES)
            .compile(modules)
            .map_err(|errors| CompileError::compiling(source, errors))?;
        Ok(Self(Arc::new(filter)))
    }

    /// Transforms a body on the current thread, which must have [`meter::STACK`] bytes of stack.
    ///
    /// # Errors
    /// If the body cannot be read, or the filter does not produce exactly one JSON value of acceptable size within
    /// the limits.
    pub(crate) fn apply(
        &self,
        body: &[u8],
        variables: &Variables,
        limits: Limits,
    ) -> Result<Vec<u8>, TransformError> {
        json::check(body).map_err(TransformError::Body)?;
        meter::run(limits, || self.run(body, variables)).unwrap_or_else(|broken| {
            Err(match broken {
                Broken::RanAway(runaway) => TransformError::RanAway(runaway),
                // jaq panics at the limits of its arithmetic, for example on distant dates.
                Broken::Panicked => TransformError::failed("jaq panicked"),
            })
        })
    }

    fn run(&self, body: &[u8], variables: &Variables) -> Result<Vec<u8>, TransformError> {
        let input = Value(read::parse_single(body).map_err(TransformError::failed)?);
        let context = Ctx::<Data>::new(Terms(&self.0.lut), Vars::new(variables.values()));
        let mut outputs = self.0.id.run((context, input));
        let output = outputs.next().ok_or(TransformError::NoValue)?.map_err(failure)?;
        match outputs.next() {
            None => to_json(&output, body.len().saturating_add(MOST_ADDED)),
            Some(Ok(_)) => Err(TransformError::SeveralValues),
            Some(Err(error)) => Err(failure(error)),
        }
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter").finish_non_exhaustive()
    }
}

fn failure(exception: jaq_core::Exn<'_, Value>) -> TransformError {
    match exception.get_err().map(jaq_core::Error::into_val) {
        // A string is the message itself, without the quotes of JSON.
        Ok(Value(Val::TStr(message))) => TransformError::failed(String::from_utf8_lossy(&message)),
        Ok(value) => TransformError::failed(value),
        Err(_) => TransformError::failed("it ended unexpectedly"),
    }
}

fn to_json(Value(value): &Value, limit: usize) -> Result<Vec<u8>, TransformError> {
    walk(value);
    let mut text = Bounded { text: Vec::new(), limit };
    write(&mut text, &Pp::default(), 0, value).map_err(|_| TransformError::TooLarge { limit })?;
    json::check_syntax(&text.text).map_err(TransformError::Output)?;
    Ok(text.text)
}

/// A writer that accepts at most `limit` bytes.
struct Bounded {
    text: Vec<u8>,
    limit: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
