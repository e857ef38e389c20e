//! The sources of requests. Each receives payloads in its own way, submits them through [`accept`](crate::accept), and
//! answers in its own way.
//!
//! | source | module | receives |
//! |---|---|---|
//! | HTTP | [`http`] | `POST` on a route's path |
//! | adoption | [`adoption`] | records that other producers put onto a route's topic |
//!
//! A new source is a module here. If it runs by itself, `parts.rs` spawns its task, which ends at the soft shutdown. A
//! source holds the [`Acceptors`](crate::accept::Acceptors) only while it can still submit: the writer ends after the
//! last of them is dropped.

pub(crate) mod adoption;
pub(crate) mod http;
