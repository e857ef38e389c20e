//! `throughline dead-letters`: lists, shows, replays and purges deliveries that ended without success. It calls a
//! running ingest over HTTP, as the operators' own tools may.

use anyhow::Context as _;
use chrono::SecondsFormat;
use clap::{Args, Subcommand};
use throughline_api::client::Client;
use throughline_api::{
    DeadLetter, DeadLetterFilter, DeadLetters, MOST_DEAD_LETTERS, NewReplay, Page, Position, Replay,
    ReplayState,
};
use throughline_snowflake::RequestId;

use crate::command::say;
use crate::remote::{Server, advised};

#[derive(Debug, Args)]
pub(crate) struct DeadLettersCommand {
    #[command(flatten)]
    server: Server,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List dead letters, one per line, newest requests first.
    List {
        #[command(flatten)]
        filter: DeadLetterFilter,
        /// Maximum number of entries to print.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show a request: its body, its deliveries and their attempts.
    Show {
        /// The request's id, 20 digits.
        request_id: RequestId,
    },
    /// Replay one dead letter now, or all that match a filter.
    Replay {
        /// The request's id, 20 digits.
        #[arg(requires = "destination_name", required_unless_present = "all")]
        request_id: Option<RequestId>,
        /// The destination that did not receive the request.
        #[arg(id = "destination_name", value_name = "DESTINATION")]
        destination: Option<String>,
        /// Replay every dead letter matching the filter (all of them without a filter).
        #[arg(long, conflicts_with = "request_id")]
        all: bool,
        #[command(flatten)]
        filter: DeadLetterFilter,
        /// Replay rate, for example `100/s` (the default).
        #[arg(long, requires = "all")]
        rate: Option<String>,
    },
    /// Permanently delete dead letters older than `--before` (required).
    Purge {
        #[command(flatten)]
        filter: DeadLetterFilter,
    },
}

impl DeadLettersCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// If ingest cannot be reached or answers with an error; the error's text is for the user at the terminal.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let client = self.server.client()?;
        match self.action {
            Action::List { filter, limit } => list(&client, &filter, limit).await,
            Action::Show { request_id } => show(&client, request_id).await,
            Action::Replay { request_id: Some(id), destination: Some(destination), .. } => {
                client.replay_dead_letter(id, &destination).await.map_err(advised)?;
                say(&format!("Replaying the delivery of {id} to {destination}."));
                Ok(())
            }
            Action::Replay { filter, rate, .. } => replay(&client, &filter, rate).await,
            Action::Purge { filter } => purge(&client, &filter).await,
        }
    }
}

async fn purge(client: &Client, filter: &DeadLetterFilter) -> anyhow::Result<()> {
    let (mut purged, mut position) = (0, Position::default());
    loop {
        let step = client.purge_dead_letters(filter, &position).await.map_err(advised);
        let step = step.with_context(|| format!("purged {purged} before this error"))?;
        purged += step.purged;
        position.cursor = step.next;
        if position.cursor.is_none() {
            break;
        }
    }
    say(&format!("purged {purged}"));
    Ok(())
}

async fn list(client: &Client, filter: &DeadLetterFilter, mut left: usize) -> anyhow::Result<()> {
    let mut page = Page::default();
    while left > 0 {
        page.limit = Some(u16::try_from(left).unwrap_or(u16::MAX).min(MOST_DEAD_LETTERS));
        let DeadLetters { dead_letters, next } = client.dead_letters(filter, &page).await.map_err(advised)?;
        for letter in &dead_letters {
            say(&line(letter));
        }
        left = left.saturating_sub(dead_letters.len());
        page.cursor = next;
        if page.cursor.is_none() {
            break;
        }
    }
    Ok(())
}

/// Formats one dead letter; the fields that identify it come first.
fn line(letter: &DeadLetter) -> String {
    let died_at = letter.died_at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let DeadLetter { request_id, destination, reason, attempts, .. } = letter;
    let mut line =
        format!("{died_at}  {request_id}  {destination}  {}  attempts={attempts}", reason.as_str());
    if let Some(error) = &letter.error {
        line.push_str("  ");
        line.push_str(error);
    }
    line
}

async fn show(client: &Client, id: RequestId) -> anyhow::Result<()> {
    let request = client.request(id).await.map_err(advised)?;
    say(&serde_json::to_string_pretty(&request)?);
    let body = client.body(id).await.map_err(advised)?;
    say(&format!("\n{}", String::from_utf8_lossy(&body)));
    Ok(())
}

async fn replay(client: &Client, filter: &DeadLetterFilter, rate: Option<String>) -> anyhow::Result<()> {
    let Replay { replay_id, rate, .. } =
        client.begin_replay(filter, &NewReplay { rate }).await.map_err(advised)?;
    say(&format!("replay {replay_id} started at a rate of {rate}; it continues if this command is stopped"));
    loop {
        let Replay { state, replayed, .. } = client.replay(replay_id).await.map_err(advised)?;
        if state != ReplayState::Running {
            say(&format!("replay {replay_id} is {}: {replayed} replayed", state.as_str()));
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How often the progress of a replay is polled.
const LOOK: std::time::Duration = std::time::Duration::from_secs(1);
