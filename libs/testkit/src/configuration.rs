use std::path::Path;

use anyhow::Context as _;
use throughline_settings::{Flags, Settings};

use crate::third_party::{CLIENT_ID, CLIENT_SECRET};

/// The file that programs read without a flag or variable.
const FILE: &str = "throughline.yaml";

/// The parts of a configuration that differ between stages.
pub(crate) struct Configuration {
    pub(crate) name: String,
    pub(crate) database: String,
}

/// The addresses that programs listen on, and those that they connect to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses<'a> {
    pub(crate) http: &'a str,
    pub(crate) health: &'a str,
    pub(crate) dispatch: &'a str,
    pub(crate) broker: &'a str,
    pub(crate) third_party: &'a str,
}

impl<'a> Addresses<'a> {
    /// Returns the addresses for programs on this machine, which listen on any port.
    pub(crate) fn here(broker: &'a str, third_party: &'a str) -> Self {
        let any = "127.0.0.1:0";
        Self { http: any, health: any, dispatch: any, broker, third_party }
    }
}

impl Configuration {
    /// Returns the text of `throughline.yaml`.
    pub(crate) fn text(&self, addresses: Addresses<'_>) -> String {
        include_str!("throughline.yaml")
            .replace("${NAME}", &self.name)
            .replace("${DATABASE}", &self.database)
            .replace("${HTTP}", addresses.http)
            .replace("${HEALTH}", addresses.health)
            .replace("${DISPATCH}", addresses.dispatch)
            .replace("${BROKER}", addresses.broker)
            .replace("${THIRD_PARTY}", addresses.third_party)
            .replace("${CLIENT_ID}", CLIENT_ID)
            .replace("${CLIENT_SECRET}", CLIENT_SECRET)
    }
}

/// Loads `throughline.yaml` from a folder as the programs do.
pub(crate) fn load(folder: &Path) -> anyhow::Result<Settings> {
    let flags = Flags { config: Some(folder.join(FILE)), ..Flags::default() };
    Ok(throughline_settings::load(&flags)?.settings)
}

/// Writes a text as `throughline.yaml`.
pub(crate) fn write(folder: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(folder.join(FILE), text).with_context(|| format!("cannot write {FILE}"))
}

/// Reads the text of `throughline.yaml`.
pub(crate) fn read(folder: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(folder.join(FILE)).with_context(|| format!("cannot read {FILE}"))
}
