//! The lifecycle of a process: readiness, signals, a shutdown deadline, and supervised tasks.
//!
//! [`Shutdown`] has two tokens. *Soft* means: take no new work, finish the current work. *Hard* means: stop now. The
//! first SIGTERM or SIGINT, or [`Shutdown::begin`], cancels soft. The deadline, which counts from then, a second
//! signal, or [`Shutdown::force`] cancels hard. Hard implies soft.
//!
//! [`Tasks`] supervises the tasks that run for as long as the process does. A task that fails, panics, or returns
//! before the shutdown begins the shutdown, so that the process exits with an error instead of continuing without the
//! task.
//!
//! [`Readiness`] tells whether the process can do its work: it probes the dependencies, at a limited rate.
//! [`healthcheck`] asks for it from outside the process.
//!
//! [`in_words`] formats an error with its causes, and [`exit_code`] prints it when the process ends.
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
