use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::task::JoinHandle;

/// The lines that a program has printed so far, from both streams in order of arrival.
#[derive(Debug, Clone, Default)]
pub struct Output {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Output {
    /// Returns all lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns all lines so far as one string.
    #[must_use]
    pub fn text(&self) -> String {
        self.lines().join("\n")
    }

    /// Returns the address that the program reports to listen on.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.lines().iter().find_map(|line| listening(line))
    }

    /// Collects the lines of a stream until it ends.
    pub(crate) fn follow(&self, stream: impl AsyncRead + Send + Unpin + 'static) -> JoinHandle<()> {
        let output = self.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                output.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        })
    }
}

/// Parses `{"message":"listening","address":"127.0.0.1:8099", …}`.
fn listening(line: &str) -> Option<SocketAddr> {
    let line: Value = serde_json::from_str(line).ok()?;
    let is_it = line.get("message")?.as_str()? == "listening";
    if is_it { line.get("address")?.as_str()?.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_address_is_in_the_line_about_listening() {
        let printed: &[u8] = b"not JSON\n\
            {\"message\":\"starting\",\"address\":\"127.0.0.1:1\"}\n\
            {\"message\":\"listening\",\"address\":\"127.0.0.1:8099\"}\n";
        let output = Output::default();
        output.follow(printed).await.unwrap();
        assert_eq!(output.address(), Some("127.0.0.1:8099".parse().unwrap()));
        assert_eq!(output.lines().len(), 3);
    }
}
