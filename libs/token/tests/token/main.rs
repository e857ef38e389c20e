//! Tokens from a token endpoint, over HTTP.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod answers;
mod caching;
mod requests;
mod secrecy;
mod support;
mod traces;
