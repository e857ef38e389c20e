//! `throughline explain`: explains a request in words.

use clap::Args;
use throughline_snowflake::RequestId;

use crate::command::say;
use crate::remote::{Server, advised};

#[derive(Debug, Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    server: Server,
    /// The request's id, 20 digits.
    request_id: RequestId,
}

impl Explain {
    /// Prints the explanation that ingest gives.
    ///
    /// # Errors
    /// If ingest cannot be reached or answers with an error; the error's text is for the user at the terminal.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let explanation = self.server.client()?.explain(self.request_id).await.map_err(advised)?;
        say(explanation.trim_end());
        Ok(())
    }
}
