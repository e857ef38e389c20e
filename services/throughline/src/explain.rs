//! `throughline explain`: what became of a request, in words.

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
    /// Prints what ingest tells.
    ///
    /// # Errors
    /// What ingest answers, in words for the person at the terminal.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let story = Remote::new(self.server).text(&["requests", &self.request_id, "explain"]).await?;
        say(story.trim_end());
        Ok(())
    }
}
