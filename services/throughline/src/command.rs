//! The command line.

use clap::{Args, Parser, Subcommand};
use opentelemetry::metrics::{MeterProvider as _, NoopMeterProvider};
use throughline_config::{Flags, load};
use throughline_store::Store;

use crate::dead_letters::DeadLetters;
use crate::dev::{self, DevFlags};
use crate::explain::Explain;
use crate::purge::Purge;

/// Accepts requests over HTTP, never loses one, and sees each through Kafka to third-party APIs.
#[derive(Debug, Parser)]
#[command(name = "throughline", version, about)]
pub struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run the whole pipeline in this process, on embedded parts.
    Dev(DevFlags),
    /// Bring the database's schema up to date.
    Migrate(ConfigFlags),
    /// Delete what ended longer ago than `retention` of the configuration says, for good.
    Purge(Purge),
    /// Tell what became of a request, in order: what happened, what it waits for, what would make it move.
    Explain(Explain),
    /// List, show, replay or purge deliveries that ended without success.
    DeadLetters(DeadLetters),
    /// Check or show the configuration.
    #[command(subcommand)]
    Config(ConfigAction),
}

#[derive(Debug, Subcommand)]
enum ConfigAction {
    /// Report everything that is wrong with the configuration.
    Check(ConfigFlags),
    /// Print the effective values, each with where it came from, without secrets.
    Show(ConfigFlags),
}

#[derive(Debug, Args)]
struct ConfigFlags {
    #[command(flatten)]
    flags: Flags,
}

impl Command {
    /// Does what the command line says.
    ///
    /// # Errors
    /// What went wrong, in words for the person at the terminal.
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
                    "The configuration is sound: {} routes, {} destinations.",
                    loaded.settings.routes.len(),
                    loaded.settings.destinations.len()
                ));
                Ok(())
            }
            Action::Config(ConfigAction::Show(ConfigFlags { flags })) => {
                say(load(&flags)?.show().trim_end());
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
        applied => applied.iter().for_each(|migration| say(&format!("applied {migration}"))),
    }
    Ok(())
}

/// Prints a line for the person at the terminal.
#[expect(clippy::print_stdout, reason = "this is a command's answer")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
