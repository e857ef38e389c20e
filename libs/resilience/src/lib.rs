//! Decides what happens after a failed call. No I/O: time and randomness are parameters.
//!
//! - [`RetryPolicy::after`] decides whether a failed attempt is retried immediately, at a later time, or not at all.
//!   An answer that the third party is busy costs time but does not count as an attempt.
//! - A [`Breaker`] stops calls that would fail, and lets a few through as probes.
//! - A [`WaitEstimator`] decides which deliveries may wait for a destination that is full, and when the others should
//!   return.
//! - [`Moment`]s divide elapsed time into the third party's part and this program's own, which grows when processor
//!   time is scarce.

mod breaker;
mod moment;
mod retry;
mod wait_estimator;

pub use breaker::{Breaker, BreakerPolicy, BreakerState, Permit};
pub use moment::{Moment, Spent};
pub use retry::{Cause, Decision, Failed, Next, Pauses, RetryPolicy, later};
pub use wait_estimator::WaitEstimator;
