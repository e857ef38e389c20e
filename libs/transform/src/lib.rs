//! A destination's jq filter: compiled once, run on each body.
//!
//! The language is [jq](https://jqlang.org/manual/) as [jaq](https://docs.rs/jaq-core/3) speaks it. A
//! filter gets the body as `.`, and what is known of its delivery as `$id`, `$route`, `$accepted_at`
//! and `$attempt`; it must produce exactly one value, which becomes the new body:
//!
//! ```
//! use throughline_transform::{Filter, Runner, Variables};
//!
//! // What a run holds of memory is read off the allocator.
//! #[global_allocator]
//! static ALLOCATOR: throughline_transform::Allocator = throughline_transform::Allocator;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runner = Runner::new(Filter::compile("{id: $id, one_request: .}")?)?;
//! let variables = Variables {
//!     id: "00371483940732964864".into(),
//!     route: "one".into(),
//!     accepted_at: "2026-11-21T10:00:00.000Z".into(),
//!     attempt: 1,
//! };
//! let body = runner.apply(r#"{"user_id": "u-1", "price": 1.0}"#.into(), variables).await?;
//! assert_eq!(body, br#"{"id":"00371483940732964864","one_request":{"user_id":"u-1","price":1.0}}"#);
//! # Ok(())
//! # }
//! ```
//!
//! # Functions
//! Those of jaq-core, jaq-std and jaq-json: paths, strings, regular expressions, mathematics, dates
//! in UTC, `fromjson`, `@base64` and so on. A filter is a function of body and variables alone, so
//! that every attempt of a delivery sends the same and nothing of the machine gets out:
//!
//! - `env`, `$ENV`, `input`, `inputs`, `import` and `include` are not there;
//! - neither are `now`, `localtime`, `strflocaltime`: use `$accepted_at`;
//! - nor `debug`, `stderr`, which would put bodies into the log, and `halt`, which would end the
//!   process. `error` is there.
//!
//! # Fidelity
//! Numbers that a filter does not calculate with keep their digits (`1.0`, `1e400`, integers of any
//! size), save that `-0` becomes `0`. Of a key that an object has twice, the last value is kept, at
//! the place of the first. White space and escapes are not kept. Without a filter a body stays as it
//! is, byte for byte.
//!
//! # Limits
//! A body, and what `fromjson` is given, must not be nested deeper than 128 arrays and objects; a
//! number has at most 4096 digits; a key of an object is a text; a text that a filter makes has at most 16 MiB; an
//! output is at most 16 MiB larger than its body. Errors that a filter catches quote at most 300 bytes of a value.
//!
//! A filter is trusted as all of the configuration is, but it can be wrong, and what it does may hang on the body. One
//! that runs away is ended, which it cannot catch: the outcome is [`TransformError::RanAway`]. It is ended
//!
//! - after 10 million **steps** and 10 for each byte of the body. Each evaluation of a term is a step, in jaq's own
//!   definitions too, and each operation on a value, each item that is collected or compared and each match of a
//!   regular expression within a native function. That is a second or two, and the same on every machine;
//! - when it holds more **memory** than 64 MiB and 24 bytes for each byte of the body, or than 256 MiB;
//! - when it calls itself some 8,000 times or more within itself, in 32 MiB of **stack**. (A call that is the last thing
//!   a function does is not within it, and may go on for as long as the steps last.) To go through what is nested
//!   10,000 times, or to write it out, ends it too;
//! - after 30 s, whatever else. Between two looks at the clock lie 16 steps; the longest single step is a search with a
//!   regular expression through a long text.
//!
//! A filter has threads of its own, half as many as there are processors, with a stack that holds what memory can hold
//! nested. It keeps none of the caller's threads busy, and no other filter waits for it.

mod arithmetic;
mod error;
mod filter;
mod functions;
mod json;
mod meter;
mod runner;
mod search;
#[cfg(test)]
mod tests;
mod value;

pub use error::{CompileError, Runaway, TransformError};
pub use filter::{Filter, Variables};
pub use json::NotJson;
pub use runner::Runner;
/// The allocator that a process must have in which filters run: it counts what each thread holds.
pub use tikv_jemallocator::Jemalloc as Allocator;

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;
