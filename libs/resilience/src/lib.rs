//! Decides what happens after a failed call. No I/O: time and randomness are parameters.
//!
//! - [`Statuses`] map a third party's status to its meaning, and [`Fault::meaning`] maps a call without a complete
//!   response:
//!
//! | outcome of the call | meaning |
//! |---|---|
//! | 2xx | delivered |
//! | 408, 425, 429 | retry |
//! | 5xx except 501 and 505, and statuses that RFC 9110 does not define | retry |
//! | 501, 505, 3xx, other 4xx | dead |
//! | connection failed, TLS handshake failed, timeout, connection broken | retry |
//! | unacceptable certificate | dead |
//!
//! - [`RetryPolicy::after`] decides whether a failed attempt is retried immediately, at a later time, or not at all.
//!   A 429 or 503 with [`RetryAfter`] costs time but does not count as an attempt.
//! - A [`Breaker`] stops calls that would fail, and lets a few through as probes.
//! - A [`WaitEstimator`] decides which deliveries may wait for a destination that is full, and when the others should
//!   return.
//! - [`Moment`]s divide elapsed time into the third party's part and this program's own, which grows when processor
//!   time is scarce.

mod breaker;
mod meaning;
mod moment;
mod retry;
mod retry_after;
mod wait_estimator;

pub use breaker::{Breaker, BreakerPolicy, BreakerState, Permit};
pub use meaning::{Fault, Meaning, Statuses};
pub use moment::{Moment, Spent};
pub use retry::{Cause, Decision, Failed, Next, Pauses, RetryPolicy, later};
pub use retry_after::RetryAfter;
pub use wait_estimator::WaitEstimator;
