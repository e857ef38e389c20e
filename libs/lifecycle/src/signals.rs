use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The operating system refused a signal handler.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for {signal}")]
pub struct SignalError {
    signal: &'static str,
    source: io::Error,
}

/// The signals that end a process.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

const TERMINATE: &str = "SIGTERM";
const INTERRUPT: &str = "SIGINT";

impl Signals {
    pub(crate) fn listen() -> Result<Self, SignalError> {
        let listen = |kind, name| signal(kind).map_err(|source| SignalError { signal: name, source });
        Ok(Self {
            terminate: listen(SignalKind::terminate(), TERMINATE)?,
            interrupt: listen(SignalKind::interrupt(), INTERRUPT)?,
        })
    }

    /// Waits for the next signal and returns its name. Cancel-safe: no signal is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            // Neither stream ever ends: tokio keeps its senders for the life of the process.
            _ = self.terminate.recv() => TERMINATE,
            _ = self.interrupt.recv() => INTERRUPT,
        }
    }
}
