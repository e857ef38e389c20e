//! The settings of both services, in one YAML file: the sections that the libraries declare, and those of the services.
//!
//! [`load`] reads `throughline.yaml`, the environment variables `THROUGHLINE_…` and the [`Flags`], as
//! [`throughline_config`] describes. It checks that destinations exist, filters and schemas compile, Kafka accepts the
//! topics, and paths and keys are unique.

mod check;
mod client;
mod flags;
mod links;
mod node_ids;
mod retention;
mod route;
mod settings;
#[cfg(test)]
mod tests;

use throughline_config::{Configuration, Context, Environment, Findings, Format, Problems, Sources};

pub use client::Client;
pub use flags::Flags;
pub use links::Links;
pub use node_ids::NodeIds;
pub use retention::Retention;
pub use route::{Content, Ordering, Route, SchemaSource};
pub use settings::{Dispatch, Http, Ingest, Settings};

/// Settings that were loaded and checked.
pub type Loaded = throughline_config::Loaded<Settings>;

impl Configuration for Settings {
    const FILE: &'static str = "throughline.yaml";
    const PREFIX: &'static str = "THROUGHLINE_";
    const FORMATS: &'static [Format] = &[(node_ids::FORMAT, |text| text.parse::<NodeIds>().is_ok())];

    fn check(&self, context: &Context<'_>, findings: &mut Findings) {
        check::check(self, context, findings);
    }
}

/// Loads the settings from the file, the environment and the flags.
///
/// # Errors
/// If the configuration has problems: all of them.
pub fn load(flags: &Flags) -> Result<Loaded, Problems> {
    load_in(flags, None, &Environment::of_process())
}

/// Loads the settings on top of further defaults, in YAML.
///
/// # Errors
/// If the configuration has problems: all of them.
pub fn load_over(defaults: &str, flags: &Flags) -> Result<Loaded, Problems> {
    load_in(flags, Some(defaults), &Environment::of_process())
}

/// Returns the reference of all settings, in Markdown.
///
/// # Errors
/// If the schema of the settings does not compile.
pub fn reference() -> Result<String, Problems> {
    let settings = throughline_config::reference::<Settings>()?;
    Ok(format!("{}\n{settings}", include_str!("reference.md")))
}

fn load_in(flags: &Flags, defaults: Option<&str>, environment: &Environment) -> Result<Loaded, Problems> {
    let sources = Sources { defaults, file: flags.config.clone(), flags: flags.values() };
    throughline_config::load(sources, environment)
}
