//! A destination's jq filter: compiled once, run on each body.
//!
//! The language is [jq](https://jqlang.org/manual/) as [jaq](https://docs.rs/jaq-core/3) speaks it. A
//! filter gets the body as `.`, and what is known of its delivery as `$id`, `$route`, `$accepted_at`
//! and `$attempt`; it must produce exactly one value, which becomes the new body:
//!
//! ```
//! use throughline_transform::{Filter, Variables};
//!
//! let filter = Filter::compile("{id: $id, one_request: .}")?;
//! let variables = Variables {
//!     id: "00371483940732964864".into(),
//!     route: "one".into(),
//!     accepted_at: "2026-11-21T10:00:00.000Z".into(),
//!     attempt: 1,
//! };
//! let body = filter.apply(br#"{"user_id": "u-1", "price": 1.0}"#, &variables)?;
//! assert_eq!(body, br#"{"id":"00371483940732964864","one_request":{"user_id":"u-1","price":1.0}}"#);
//! # Ok::<_, Box<dyn std::error::Error>>(())
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
//! number has at most 4096 digits; a text can be repeated (`*`) up to 16 MiB; an output is at most 16 MiB
//! larger than its body. A filter itself
//! is trusted as all of the configuration is: it can take time and memory without bound.

mod error;
mod filter;
mod functions;
mod guard;
mod json;
#[cfg(test)]
mod tests;

pub use error::{CompileError, TransformError};
pub use filter::{Filter, Variables};
pub use json::NotJson;
