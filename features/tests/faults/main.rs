//! Injects faults into real components under load, and verifies that nothing is lost.
//!
//! ```text
//! make test-faults                       # three minutes, each fault once
//! make test-faults MINUTES=30            # repeated rounds, with outages of realistic length
//! make test-faults ARGS='--seed 42'      # the same faults as in an earlier run
//! make test-faults ARGS='--only killed'  # only some of the faults
//! ```

mod books;
mod cast;
mod deeds;
mod faults;
mod flood;
mod foreign;
mod groups;
mod load;
mod rates;
mod scene;
mod strike;
mod third_party;
mod watch;

use std::env::{current_exe, var_os};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use throughline_testkit::{Environment, Programs, Service};
use tokio::time::sleep;

use crate::books::{Evidence, Verdict};
use crate::cast::{REPLICAS, Replica};

use crate::load::Load;
use crate::scene::Scene;
use crate::strike::{Strike, Window, round};
use crate::watch::{Watch, say, stamp};

/// Set in CI, where a suite that cannot run counts as failed.
const REQUIRE: &str = "REQUIRE_CONTAINERS";

/// Time without faults at the beginning.
const CALM: Duration = Duration::from_secs(6);
/// The shortest and the longest time between two faults: enough to recover, but not always completely.
const RESPITE: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(1800));

/// Injects faults into real components under load, and verifies that nothing is lost.
#[derive(Debug, Parser)]
struct Options {
    /// Duration in minutes; at least one round of all faults runs, which takes some three minutes.
    #[arg(long, default_value_t = 3)]
    minutes: u32,
    /// Seed of the order and the durations of the faults (default: random).
    #[arg(long)]
    seed: Option<u32>,
    /// Only faults whose description contains this text.
    #[arg(long, default_value_t)]
    only: String,
    /// Requests per second.
    #[arg(long, default_value_t = 60)]
    rate: u32,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(why) = Environment::engine().await {
        let is_required = var_os(REQUIRE).is_some_and(|value| value == "1");
        let word = if is_required { "FAILED" } else { "SKIPPED" };
        say(format_args!(
            "*** {word}: the fault suite needs containers of PostgreSQL and Kafka: {why:#} ***"
        ));
        return if is_required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    match run(&options).await {
        Ok(verdict) => report(&verdict),
        Err(error) => {
            say(format_args!("*** FAILED: {error:#} ***"));
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> anyhow::Result<Verdict> {
    let programs = Programs::build()?;
    let seed = options.seed.unwrap_or_else(rand::random);
    say(format_args!("seed {seed}, {} min, {} requests per second", options.minutes, options.rate));
    let watch = Watch::start();
    let mut scene = Scene::set(programs, watch).await?;
    let ended = play(options, seed, &mut scene).await;
    let is_well = ended.as_ref().is_ok_and(|verdict| verdict.wrong.is_empty());
    if !is_well {
        let folder = logs(seed)?;
        scene.cast.write_logs(&folder)?;
        say(format_args!("the output of the programs is in {}", folder.display()));
    }
    ended
}

/// Runs the load during the complete run, and the faults meanwhile.
async fn play(options: &Options, seed: u32, scene: &mut Scene) -> anyhow::Result<Verdict> {
    let watch = scene.watch;
    for service in [Service::Ingest, Service::Dispatch] {
        scene.shared_out(service, REPLICAS).await?;
    }
    watch.say(format_args!(
        "{REPLICAS} replicas of each service have their partitions; clients start to post"
    ));
    let load = Load::begin(watch, &scene.doors, options.rate)?;
    sleep(CALM).await;
    let calm_until = watch.now();
    let mut windows = Vec::new();
    let went_on = strike(options, seed, scene, &load, &mut windows).await;
    let mut answers = load.end().await;
    watch.say(format_args!(
        "no more faults; {} requests accepted; waiting for the remaining deliveries to end",
        accepted(&answers)
    ));
    let settled = match went_on {
        Ok(()) => scene.settle().await,
        Err(error) => Err(error),
    };
    // One error must not hide another.
    let mut ends = vec![settled, scene.cast.look_after().await];
    for replica in Replica::all() {
        ends.push(scene.cast.stop(replica).await);
    }
    watch.say("all deliveries have ended; comparing the records");
    answers.add(std::mem::take(&mut scene.beside));
    let mut verdict = books::close(&Evidence {
        watch,
        rate: options.rate,
        calm_until,
        windows,
        seen: answers,
        calls: scene.third_party.calls(),
        killed: scene.cast.killed().to_vec(),
        rows: scene.rows().await?,
        foreign: std::mem::take(&mut scene.foreign),
        unpublished: scene.unpublished().await?,
        lines: scene.cast.lines().collect(),
        faux_pas: scene.cast.faux_pas().to_vec(),
    });
    verdict.wrong.extend(ends.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")));
    Ok(verdict)
}

/// Runs one fault after the other, each at least once, until the time has passed.
async fn strike(
    options: &Options,
    seed: u32,
    scene: &mut Scene,
    load: &Load,
    windows: &mut Vec<Window>,
) -> anyhow::Result<()> {
    let mut dice = StdRng::seed_from_u64(seed.into());
    let time = Duration::from_mins(options.minutes.into());
    for number in 0.. {
        for act in round(options.minutes, &mut dice) {
            let first = windows.len();
            for next in act.into_iter().filter(|next| next.to_string().contains(&options.only)) {
                if number > 0 && scene.watch.now() >= time {
                    return Ok(());
                }
                windows.push(Strike::run(next, scene).await?);
                scene.watch.say(format_args!("    ended; {} requests accepted", load.accepted()));
                sleep(dice.random_range(RESPITE.0..=RESPITE.1)).await;
                scene.cast.look_after().await?;
            }
            // Otherwise, effects of this act would be attributed to the next one.
            scene.settle().await?;
            let now = scene.watch.now();
            scene.watch.say(format_args!("all deliveries accepted before {} have ended", stamp(now).trim()));
            windows[first..].iter_mut().for_each(|window| window.felt_until = now);
        }
        if scene.watch.now() >= time {
            break;
        }
    }
    Ok(())
}

fn accepted(seen: &load::Experience) -> usize {
    seen.posted.iter().filter(|posted| posted.id.is_some()).count()
}

fn report(verdict: &Verdict) -> ExitCode {
    say("");
    for (of, what) in &verdict.totals {
        say(format_args!("{of:12} {what}"));
    }
    say("");
    for wrong in &verdict.wrong {
        say(format_args!("*** WRONG: {wrong} ***"));
    }
    if verdict.wrong.is_empty() {
        say("nothing was lost");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// `target/faults/<seed>`, next to the folder of the profile in which the test was built.
fn logs(seed: u32) -> anyhow::Result<PathBuf> {
    let test = current_exe()?;
    let target = test.ancestors().nth(3).context("the test is not in a target folder")?;
    Ok(target.join("faults").join(seed.to_string()))
}
