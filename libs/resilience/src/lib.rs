//! What follows a failure. No I/O: time and chance are parameters.
//!
//! - [`Statuses`] say what a third party's status means, [`Fault::meaning`] what it means that none came:
//!
//! | what came | meaning |
//! |---|---|
//! | 2xx | delivered |
//! | 408, 425, 429 | retry |
//! | 5xx but 501 and 505, and what RFC 9110 does not define | retry |
//! | 501, 505, 3xx, other 4xx | dead |
//! | no connection, a TLS handshake that failed, a time-out, a connection that broke | retry |
//! | a certificate that is not acceptable | dead |
//!
//! - [`RetryPolicy::after`] says what a failed attempt is followed by: another one at once, one at a later
//!   time, or none. What a third party puts off with [`RetryAfter`] costs time and no attempt.
//! - A [`Breaker`] holds calls back that would fail, and lets a few through to probe.
//! - A [`Line`] says which deliveries may wait for a destination that is full, and when the others should come back.
//! - [`Moment`]s divide the time between them: how much of it is the third party's, and how much this program's own, which
//!   is short of processor time.

mod breaker;
mod line;
mod meaning;
mod moment;
mod retry;
mod retry_after;

pub use breaker::{Breaker, BreakerPolicy, BreakerState, Permit};
pub use line::Line;
pub use meaning::{Fault, Meaning, Statuses};
pub use moment::{Moment, Spent};
pub use retry::{Cause, Failed, Next, Pauses, RetryPolicy, Verdict, later};
pub use retry_after::RetryAfter;
