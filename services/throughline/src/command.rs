//! The command line.

use clap::{Args, Parser, Subcommand};
use opentelemetry::metrics::{MeterProvider as _, NoopMeterProvider};
use throughline_settings::{Flags, load};
use throughline_store::Store;

use crate::dead_letters::DeadLettersCommand;
use crate::dev::{self, DevFlags};
use crate::explain::Explain;
use crate::purge::Purge;

/// Accepts requests over HTTP, never loses one, and delivers each through Kafka to third-party APIs.
#[derive(Debug, Parser)]
#[command(name = "throughline", version, about)]
pub struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run the whole pipeline in this process, with an embedded broker and database.
    Dev(DevFlags),
    /// Upgrade the database schema to the current version.
    Migrate(ConfigFlags),
    /// Permanently delete requests that ended longer ago than the configured `retention`.
    Purge(Purge),
    /// Explain a request: its history, its current state, and the reason why it waits.
    Explain(Explain),
    /// List, show, replay or purge dead letters: deliveries that ended without success.
    DeadLetters(DeadLettersCommand),
    /// Check or show the configuration.
    #[command(subcommand)]
    Config(ConfigAction),
}

#[derive(Debug, Subcommand)]
enum ConfigAction {
    /// Report all errors in the configuration.
    Check(ConfigFlags),
    /// Print the effective values, each with its source, without secrets.
    Show(ConfigFlags),
    /// Print the reference of all settings, in Markdown.
    Reference,
}

#[derive(Debug, Args)]
struct ConfigFlags {
    #[command(flatten)]
    flags: Flags,
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// If the command fails; the error's text is for the user at the terminal.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.action {
            Action::Dev(flags) => dev::run(flags).await,
            Action::Migrate(ConfigFlags { flags }) => migrate(&flags).await,
            Action::Purge(purge) => purge.run().await,
            Action::Explain(explain) => explain.run().await,
            Action::DeadLetters(dead_letters) => dead_letters.run().await,
            Action::Config(ConfigAction::Check(ConfigFlags { flags })) => {
                let loaded = load(&flags)?;
                say(&format!(
                    "The configuration is valid: {} routes, {} destinations.",
                    loaded.settings.routes.len(),
                    loaded.settings.destinations.len()
                ));
                Ok(())
            }
            Action::Config(ConfigAction::Show(ConfigFlags { flags })) => {
                say(load(&flags)?.show().trim_end());
                Ok(())
            }
            Action::Config(ConfigAction::Reference) => {
                say(throughline_settings::reference()?.trim_end());
                Ok(())
            }
        }
    }
}

async fn migrate(flags: &Flags) -> anyhow::Result<()> {
    let settings = load(flags)?.settings;
    let unmeasured = NoopMeterProvider::new().meter("throughline");
    let store = Store::connect(&settings.database, &unmeasured).await?;
    let applied = store.migrate().await?;
    store.close().await;
    match applied.as_slice() {
        [] => say("The schema is up to date."),
        applied => applied.iter().for_each(|migration| say(&format!("Applied {migration}."))),
    }
    Ok(())
}

/// Prints a line for the user at the terminal.
#[expect(clippy::print_stdout, reason = "this is a command's answer")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
