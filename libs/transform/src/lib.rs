//! A destination's jq filter: compiled once, run on each body.
//!
//! The language is [jq](https://jqlang.org/manual/) as implemented by [jaq](https://docs.rs/jaq-core/3). A filter
//! receives the body as `.`, and data about the delivery as `$id`, `$route`, `$accepted_at` and `$attempt`. It must
//! produce exactly one value, which becomes the new body:
//!
//! ```
//! use throughline_transform::{Filter, Runner, Variables};
//!
//! // The allocator reports how much memory a run holds.
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
//! The functions of jaq-core, jaq-std and jaq-json are available: paths, strings, regular expressions, mathematics,
//! dates in UTC, `fromjson`, `@base64` and so on. A filter depends only on the body and the variables, so that every
//! attempt of a delivery sends the same body and no data of the machine leaks. These functions are therefore missing:
//!
//! - `env`, `$ENV`, `input`, `inputs`, `import` and `include`;
//! - `now`, `localtime` and `strflocaltime`: use `$accepted_at`;
//! - `debug` and `stderr`, which would write bodies to the log, and `halt`, which would end the process. `error` is
//!   available.
//!
//! # Fidelity
//! Numbers that a filter does not compute with keep their digits (`1.0`, `1e400`, integers of any size), except that
//! `-0` becomes `0`. If an object has the same key twice, the last value is kept, at the position of the first. White
//! space and escapes are not preserved. Without a filter, the body is passed on unchanged, byte for byte.
//!
//! # Limits
//! The body and the input of `fromjson` may nest at most 128 arrays and objects. A number has at most 4096 digits, an
//! object key is a string, a string that a filter builds has at most 16 MiB, and the output is at most 16 MiB larger
//! than the body. Errors that a filter catches quote at most 300 bytes of a value.
//!
//! A filter is trusted like the rest of the configuration, but it can contain mistakes, and its cost can depend on
//! the body. A runaway filter is terminated, which it cannot catch: the result is [`TransformError::RanAway`]. A run
//! is terminated
//!
//! - after 10 million **steps** plus 10 for each byte of the body. Each evaluation of a term is a step, also in jaq's
//!   own definitions, and so is each operation on a value, each item that is collected or compared, and each match of
//!   a regular expression within a native function. The limit is reached after a second or two, and at the same point
//!   on every machine;
//! - when it holds more **memory** than 64 MiB plus 24 bytes for each byte of the body, or than 256 MiB;
//! - when it recurses about 8,000 levels deep or more, in 32 MiB of **stack**. (A tail call adds no level, and may
//!   repeat until the steps are used up.) Traversing or writing a value that is nested more than 10,000 levels deep
//!   terminates the run too;
//! - after 30 s in any case. The clock is read every 16 steps; the longest single step is a search with a regular
//!   expression in a long string.
//!
//! Each filter has its own threads, half as many as there are processors, with stacks large enough for any value that
//! the memory limit allows. A filter occupies none of the caller's threads and delays no other filter.

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
/// The allocator that a process needs in order to run filters: it counts the memory that each thread holds.
pub use tikv_jemallocator::Jemalloc as Allocator;

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;
