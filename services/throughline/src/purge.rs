//! `throughline purge`: deletes requests that ended longer ago than the configured retention.

use std::time::Duration;

use clap::Args;
use opentelemetry::metrics::{MeterProvider as _, NoopMeterProvider};
use throughline_clock::Clock;
use throughline_lifecycle::Shutdown;
use throughline_settings::{Flags, load};
use throughline_store::retention::{self, Cutoff, Purged};
use throughline_store::{Store, StoreError, idempotency, replays};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::command::say;

/// Maximum number of idempotency keys to delete in one statement.
const KEYS_AT_ONCE: u64 = 5000;
/// The pause after a batch, as a multiple of the batch's duration. The busier the database is, the longer are both.
const REST: u32 = 3;

#[derive(Debug, Args)]
pub(crate) struct Purge {
    #[command(flatten)]
    flags: Flags,
    /// Print how many requests would be deleted, and delete nothing.
    #[arg(long)]
    dry_run: bool,
    /// Stop cleanly after this time, for example `50m`, even if there is more to delete; the next purge continues.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
}

impl Purge {
    /// Deletes batch by batch until nothing old is left, the time limit has passed, or a signal arrives.
    ///
    /// # Errors
    /// If the database cannot be queried, or a signal arrived before everything was deleted. The rows deleted until
    /// then are reported, and stay deleted.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let settings = load(&self.flags)?.settings;
        let unmeasured = NoopMeterProvider::new().meter("throughline");
        let store = Store::connect(&settings.database, &unmeasured).await?;
        store.check_schema().await?;
        let now = Clock::system().now();
        let cutoff = Cutoff {
            delivered_before: now - settings.retention.delivered,
            dead_before: now - settings.retention.dead,
            now,
        };
        let shutdown = Shutdown::on_signals(settings.shutdown_deadline)?;
        let [delivered, dead] =
            [cutoff.delivered_before, cutoff.dead_before].map(|at| at.format("%F %T UTC"));
        say(&format!("cutoff: delivered or cancelled before {delivered}, or dead since before {dead}"));
        let mut run = Run { store: store.clone(), cutoff, is_dry: self.dry_run, done: Done::default() };
        let stop = shutdown.soft().child_token();
        if let Some(time) = self.time {
            let stop = stop.clone();
            tokio::spawn(async move {
                sleep(time).await;
                stop.cancel();
            });
        }
        let ended = shutdown.hard().run_until_cancelled(run.until(&stop)).await;
        run.tell();
        match ended.transpose()? {
            Some(true) => {}
            Some(false) if !shutdown.soft().is_cancelled() => {
                say("stopped by --for before everything was deleted; the next purge continues");
            }
            _ => anyhow::bail!("interrupted before everything was deleted; the next purge continues"),
        }
        match retention::oldest(store.connection()).await? {
            Some(oldest) => say(&format!("oldest request: {oldest}, created at {}", oldest.created_at())),
            None => say("oldest request: none"),
        }
        store.close().await;
        Ok(())
    }
}

struct Run {
    store: Store,
    cutoff: Cutoff,
    is_dry: bool,
    done: Done,
}

/// The number of rows deleted so far, or of those that a dry run would delete.
#[derive(Default)]
struct Done {
    purged: Purged,
    keys: u64,
    replays: u64,
}

impl Run {
    /// Deletes until everything is done or `stop` is cancelled. Returns whether everything was done.
    async fn until(&mut self, stop: &CancellationToken) -> Result<bool, StoreError> {
        if !self.is_dry && !self.tidy_up(stop).await? {
            return Ok(false);
        }
        let mut after = None;
        while !stop.is_cancelled() {
            let begun = Instant::now();
            let batch = if self.is_dry {
                retention::count(self.store.connection(), &self.cutoff, after).await?
            } else {
                retention::purge(&self.store, &self.cutoff, after).await?
            };
            self.done.purged += batch.purged;
            if batch.next.is_none() {
                return Ok(true);
            }
            after = batch.next;
            stop.run_until_cancelled(sleep(begun.elapsed() * REST)).await;
        }
        Ok(false)
    }

    /// Deletes expired idempotency keys, which a running ingest deletes too, and finished replays. Returns whether
    /// all of them were deleted.
    async fn tidy_up(&mut self, stop: &CancellationToken) -> Result<bool, StoreError> {
        let connection = self.store.connection();
        self.done.replays = replays::purge(connection, self.cutoff.delivered_before).await?;
        while !stop.is_cancelled() {
            let keys = idempotency::purge(connection, self.cutoff.now, KEYS_AT_ONCE).await?;
            self.done.keys += keys;
            if keys < KEYS_AT_ONCE {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn tell(&self) {
        let Done { purged: Purged { requests, deliveries, attempts }, keys, replays } = &self.done;
        let counts = format!("requests: {requests}, deliveries: {deliveries}, attempts: {attempts}");
        if self.is_dry {
            say(&format!("would be purged: {counts}"));
        } else {
            say(&format!("purged: {counts}, expired idempotency keys: {keys}, replays: {replays}"));
        }
    }
}
