//! How a process lives and ends: readiness, signals, a deadline, and tasks that never die unnoticed.
//!
//! [`Shutdown`] has two tokens. *Soft* says: take nothing new, finish what you have. *Hard* says: stop now.
//! Soft is cancelled by the first SIGTERM or SIGINT, or by [`Shutdown::begin`]; hard by the deadline, which
//! counts from there, by a second signal, or by [`Shutdown::force`]. Hard implies soft.
//!
//! [`Tasks`] supervises what runs for as long as the process does. A task that fails, panics, or returns
//! although nobody asked it to begins the shutdown, so that the process ends, with an error, instead of
//! living on half dead.
//!
//! [`Readiness`] says whether the process can do its work: asks what that depends on, not too often. [`healthcheck`]
//! asks for it from outside.
//!
//! [`in_words`] gives the last words, and [`exit_code`] says them.
//!
//! ```
//! # use std::time::Duration;
//! # use throughline_lifecycle::{Shutdown, Tasks};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let shutdown = Shutdown::on_signals(Duration::from_secs(25))?;
//! let mut tasks = Tasks::new(shutdown.clone());
//! let soft = shutdown.soft().clone();
//! tasks.spawn("worker", async move {
//!     soft.cancelled().await;
//!     Ok::<_, std::io::Error>(())
//! });
//! # shutdown.begin();
//! tasks.join().await?;
//! # Ok(())
//! # }
//! ```

mod healthcheck;
mod readiness;
mod shutdown;
mod signals;
mod tasks;
mod words;

pub use healthcheck::{NotReady, healthcheck};
pub use readiness::{Readiness, Report};
pub use shutdown::Shutdown;
pub use signals::SignalError;
pub use tasks::{TaskFailed, Tasks};
pub use words::{exit_code, in_words};
