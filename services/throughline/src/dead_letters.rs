//! `throughline dead-letters`: what operators do with deliveries that ended without success. It asks a running
//! ingest over HTTP, as their own tools may.

use std::fmt::Write as _;

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
    /// List them, a line each, the youngest requests first.
    List {
        #[command(flatten)]
        filter: Filter,
        /// Most lines.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show a request: its body, its deliveries, their attempts.
    Show {
        /// The request's id, 20 digits.
        request_id: String,
    },
    /// Try one again now, or all that a filter means.
    Replay {
        /// The request's id, 20 digits.
        #[arg(requires = "destination_name", required_unless_present = "all")]
        request_id: Option<String>,
        /// The destination that did not get it.
        #[arg(id = "destination_name", value_name = "DESTINATION")]
        destination: Option<String>,
        /// All that the filter means; without one, all.
        #[arg(long, conflicts_with = "request_id")]
        all: bool,
        #[command(flatten)]
        filter: Filter,
        /// So many in a time, such as `100/s`, which is also the default.
        #[arg(long, requires = "all")]
        rate: Option<String>,
    },
    /// Throw away, for good, those that died before a time.
    Purge {
        #[command(flatten)]
        filter: Filter,
    },
}

#[derive(Debug, Args)]
struct Filter {
    /// Only those of this route.
    #[arg(long)]
    route: Option<String>,
    /// Only those of this destination.
    #[arg(long)]
    destination: Option<String>,
    /// Only those that died for this reason, such as `attempts_exhausted`.
    #[arg(long)]
    reason: Option<String>,
    /// Only those whose last error was of this class, such as `timeout`.
    #[arg(long)]
    error_class: Option<String>,
    /// Only those that died then or later, such as `2026-01-01T00:00:00Z`.
    #[arg(long)]
    since: Option<String>,
    /// Only those that died before.
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
    /// Does what the command line says.
    ///
    /// # Errors
    /// What ingest answers, in words for the person at the terminal.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let remote = Remote::new(self.server);
        match self.action {
            Action::List { filter, limit } => list(&remote, &filter, limit).await,
            Action::Show { request_id } => show(&remote, &request_id).await,
            Action::Replay { request_id: Some(id), destination: Some(destination), .. } => {
                remote.json(Method::POST, &["dead-letters", &id, &destination, "replay"], &[]).await?;
                say(&format!("{id} is on its way to {destination} again."));
                Ok(())
            }
            Action::Replay { filter, rate, .. } => replay(&remote, &filter, rate).await,
            Action::Purge { filter } => {
                let mut purged = 0;
                loop {
                    let answer = remote.json(Method::DELETE, &["dead-letters"], &filter.query()).await?;
                    purged += answer["purged"].as_u64().unwrap_or_default();
                    if answer["more"] != true {
                        break;
                    }
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

/// One dead letter: what tells it from others first.
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
        "replay {id} has begun, at {}; it goes on without this command.",
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

/// How often is looked how far a replay has come.
const LOOK: std::time::Duration = std::time::Duration::from_secs(1);
