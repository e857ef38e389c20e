//! `throughline explain`: explains a request in words.

use clap::Args;

use crate::command::say;
use crate::remote::{Remote, Server};

#[derive(Debug, Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    server: Server,
    /// The request's id, 20 digits.
    request_id: String,
}

impl Explain {
    /// Prints the explanation that ingest gives.
    ///
    /// # Errors
    /// If ingest cannot be reached or answers with an error; the error's text is for the user at the terminal.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let explanation = Remote::new(self.server).text(&["requests", &self.request_id, "explain"]).await?;
        say(explanation.trim_end());
        Ok(())
    }
}
