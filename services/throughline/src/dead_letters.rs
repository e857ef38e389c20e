//! `throughline dead-letters`: lists, shows, replays and purges deliveries that ended without success. It calls a
//! running ingest over HTTP, as the operators' own tools may.

use std::fmt::Write as _;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value;

use crate::command::say;
use crate::remote::{Remote, Server};

#[derive(Debug, Args)]
pub(crate) struct DeadLetters {
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
        filter: Filter,
        /// Maximum number of entries to print.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show a request: its body, its deliveries and their attempts.
    Show {
        /// The request's id, 20 digits.
        request_id: String,
    },
    /// Replay one dead letter now, or all that match a filter.
    Replay {
        /// The request's id, 20 digits.
        #[arg(requires = "destination_name", required_unless_present = "all")]
        request_id: Option<String>,
        /// The destination that did not receive the request.
        #[arg(id = "destination_name", value_name = "DESTINATION")]
        destination: Option<String>,
        /// Replay every dead letter matching the filter (all of them without a filter).
        #[arg(long, conflicts_with = "request_id")]
        all: bool,
        #[command(flatten)]
        filter: Filter,
        /// Replay rate, for example `100/s` (the default).
        #[arg(long, requires = "all")]
        rate: Option<String>,
    },
    /// Permanently delete dead letters older than `--before` (required).
    Purge {
        #[command(flatten)]
        filter: Filter,
    },
}

#[derive(Debug, Args)]
struct Filter {
    /// Only dead letters of this route.
    #[arg(long)]
    route: Option<String>,
    /// Only dead letters of this destination.
    #[arg(long)]
    destination: Option<String>,
    /// Only deliveries that died for this reason, for example `attempts_exhausted`.
    #[arg(long)]
    reason: Option<String>,
    /// Only deliveries with a last error of this class, for example `timeout`.
    #[arg(long)]
    error_class: Option<String>,
    /// Only deliveries that died at this time or later, for example `2026-01-01T00:00:00Z`.
    #[arg(long)]
    since: Option<String>,
    /// Only deliveries that died before this time.
    #[arg(long)]
    before: Option<String>,
}

impl Filter {
    fn query(&self) -> Vec<(&'static str, String)> {
        let all = [
            ("route", &self.route),
            ("destination", &self.destination),
            ("reason", &self.reason),
            ("error_class", &self.error_class),
            ("since", &self.since),
            ("before", &self.before),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
    }
}

impl DeadLetters {
    /// Runs the command.
    ///
    /// # Errors
    /// If ingest cannot be reached or answers with an error; the error's text is for the user at the terminal.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let remote = Remote::new(self.server);
        match self.action {
            Action::List { filter, limit } => list(&remote, &filter, limit).await,
            Action::Show { request_id } => show(&remote, &request_id).await,
            Action::Replay { request_id: Some(id), destination: Some(destination), .. } => {
                remote.json(Method::POST, &["dead-letters", &id, &destination, "replay"], &[]).await?;
                say(&format!("Replaying the delivery of {id} to {destination}."));
                Ok(())
            }
            Action::Replay { filter, rate, .. } => replay(&remote, &filter, rate).await,
            Action::Purge { filter } => {
                let mut purged = 0;
                let mut query = filter.query();
                loop {
                    let answer = remote.json(Method::DELETE, &["dead-letters"], &query).await;
                    let answer = answer.with_context(|| format!("purged {purged} before this error"))?;
                    purged += answer["purged"].as_u64().unwrap_or_default();
                    let Some(next) = answer["next"].as_str() else { break };
                    query = filter.query();
                    query.push(("cursor", next.to_owned()));
                }
                say(&format!("purged {purged}"));
                Ok(())
            }
        }
    }
}

async fn list(remote: &Remote, filter: &Filter, limit: usize) -> anyhow::Result<()> {
    let mut left = limit;
    let mut cursor: Option<String> = None;
    while left > 0 {
        let mut query = filter.query();
        query.push(("limit", left.min(500).to_string()));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page = remote.json(Method::GET, &["dead-letters"], &query).await?;
        let letters = page["dead_letters"].as_array().map(Vec::as_slice).unwrap_or_default();
        for letter in letters {
            say(&line(letter));
        }
        left = left.saturating_sub(letters.len());
        cursor = page["next"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    Ok(())
}

/// Formats one dead letter; the fields that identify it come first.
fn line(letter: &Value) -> String {
    let mut line = String::new();
    for name in ["died_at", "request_id", "destination", "reason"] {
        let _ = write!(line, "{}  ", letter[name].as_str().unwrap_or("-"));
    }
    let _ = write!(line, "attempts={}", letter["attempts"]);
    if let Some(error) = letter["error"].as_str() {
        let _ = write!(line, "  {error}");
    }
    line
}

async fn show(remote: &Remote, id: &str) -> anyhow::Result<()> {
    let status = remote.json(Method::GET, &["requests", id], &[]).await?;
    say(&serde_json::to_string_pretty(&status)?);
    let body = remote.ask(Method::GET, &["requests", id, "body"], &[]).await?;
    say(&format!("\n{}", body.text().await?));
    Ok(())
}

async fn replay(remote: &Remote, filter: &Filter, rate: Option<String>) -> anyhow::Result<()> {
    let mut query = filter.query();
    query.extend(rate.map(|rate| ("rate", rate)));
    let begun = remote.json(Method::POST, &["replays"], &query).await?;
    let id = begun["replay_id"].to_string();
    say(&format!(
        "replay {id} started at a rate of {}; it continues if this command is stopped",
        begun["rate"].as_str().unwrap_or_default()
    ));
    loop {
        let replay = remote.json(Method::GET, &["replays", &id], &[]).await?;
        if replay["state"] != "running" {
            let state = replay["state"].as_str().unwrap_or_default();
            say(&format!("replay {id} is {state}: {} replayed", replay["replayed"]));
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How often the progress of a replay is polled.
const LOOK: std::time::Duration = std::time::Duration::from_secs(1);
