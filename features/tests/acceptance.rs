//! Runs the features against the real programs.

mod client;
mod load;
mod octokit;
mod steps;
mod verdict;
mod world;

use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;

use clap::ValueEnum;
use cucumber::tag::Ext as _;
use cucumber::{World as _, cli};
use throughline_testkit::{Environment, Programs};
use tokio::task::unconstrained;

use crate::octokit::Payloads;
use crate::verdict::{Skipped, Verdict};
use crate::world::{Setting, World};

/// Each scenario has its own programs: more concurrent scenarios than processors only slow all of them down.
const SCENARIOS_AT_ONCE: usize = 4;

#[derive(clap::Args, Clone, Debug)]
struct Choice {
    /// The environment to run in (default: all).
    #[arg(long)]
    environment: Option<Parts>,
}

/// The database and broker that the programs use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Parts {
    Embedded,
    Containers,
    /// The programs of docker-compose.yml, from outside; only on request.
    Compose,
}

type Options = cli::Opts<
    cucumber::parser::basic::Cli,
    cucumber::runner::basic::Cli,
    cucumber::writer::basic::Cli,
    Choice,
>;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parsed();
    let mut verdict = Verdict::default();
    if let Err(error) = run(&options, &mut verdict).await {
        verdict.broke_off(&error);
    }
    verdict.report()
}

async fn run(options: &Options, verdict: &mut Verdict) -> anyhow::Result<()> {
    let programs = Programs::build()?;
    let chosen = options.custom.environment;
    if chosen == Some(Parts::Compose) {
        let payloads = payloads(verdict).await;
        let setting = Setting { environment: Environment::composed(programs).await?, payloads };
        verdict.ran("compose", run_in(setting, options.clone()).await);
        return Ok(());
    }
    let is_chosen = |parts| chosen.is_none_or(|chosen| chosen == parts);
    if is_chosen(Parts::Embedded) {
        let environment = Environment::embedded(programs.clone()).await?;
        let setting = Setting { environment, payloads: None };
        verdict.ran("embedded", run_in(setting, options.clone()).await);
    }
    if !is_chosen(Parts::Containers) {
        return Ok(());
    }
    if let Err(why) = Environment::engine().await {
        verdict.skipped(Skipped::Containers, &why);
        return Ok(());
    }
    let payloads = payloads(verdict).await;
    let setting = Setting { environment: Environment::containers(programs).await?, payloads };
    verdict.ran("containers", run_in(setting, options.clone()).await);
    Ok(())
}

/// The real payloads, unless they cannot be fetched.
async fn payloads(verdict: &mut Verdict) -> Option<Payloads> {
    Payloads::fetch().await.map_err(|why| verdict.skipped(Skipped::RealInput, &why)).ok()
}

/// Runs the selected scenarios that this setting supports, and counts the results.
async fn run_in(setting: Setting, mut options: Options) -> verdict::Count {
    let has_containers = setting.environment.has_containers();
    let has_payloads = setting.payloads.is_some();
    let is_composed = setting.environment.is_composed();
    // Cucumber would apply either these or the function below; this applies both.
    let (name, tags) = (options.re_filter.take(), options.tags_filter.take());
    let is_wanted = move |all: &[String], scenario: &str| {
        let needs = |what: &str| all.iter().any(|tag| tag == what);
        (has_containers || !needs("containers"))
            && (has_payloads || !needs("real-input"))
            && !(is_composed && needs("processes"))
            && name.as_ref().is_none_or(|name| name.is_match(scenario))
            && tags.as_ref().is_none_or(|tags| tags.eval(all))
    };
    let run = World::cucumber()
        // docker-compose.yml is a single environment.
        .max_concurrent_scenarios(if is_composed { 1 } else { SCENARIOS_AT_ONCE })
        .fail_on_skipped()
        .after(|_, _, scenario, event, world| {
            verdict::explain(&scenario.name, event, world);
            Box::pin(std::future::ready(()))
        })
        .with_cli(options)
        .filter_run(Path::new(env!("CARGO_MANIFEST_DIR")), move |feature, _, scenario| {
            is_wanted(&[&feature.tags[..], &scenario.tags[..]].concat(), &scenario.name)
        });
    // All scenarios are one task, and wiremock's servers block it when they are dropped, waiting on a tokio
    // primitive. If the task has used up its cooperative budget at this moment, the wait never ends. So the
    // task runs without a budget.
    unconstrained(world::SETTING.scope(Rc::new(setting), run)).await.inner_writer().into()
}
