use std::path::Path;

use anyhow::Context as _;
use throughline_config::{Flags, Settings};

use crate::third_party::{CLIENT_ID, CLIENT_SECRET};

/// Where the programs look when nobody tells them.
const FILE: &str = "throughline.yaml";

/// What differs between the configurations of two stages.
pub(crate) struct Configuration {
    pub(crate) name: String,
    pub(crate) database: String,
    pub(crate) broker: String,
    pub(crate) third_party: String,
}

impl Configuration {
    /// Writes `throughline.yaml` into a folder, and reads it as the programs will.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<Settings> {
        write(folder, &self.text())?;
        let flags = Flags { config: Some(folder.join(FILE)), ..Flags::default() };
        Ok(throughline_config::load(&flags)?.settings)
    }

    fn text(&self) -> String {
        include_str!("throughline.yaml")
            .replace("${NAME}", &self.name)
            .replace("${DATABASE}", &self.database)
            .replace("${BROKER}", &self.broker)
            .replace("${THIRD_PARTY}", &self.third_party)
            .replace("${CLIENT_ID}", CLIENT_ID)
            .replace("${CLIENT_SECRET}", CLIENT_SECRET)
    }
}

/// Writes any text as `throughline.yaml`.
pub(crate) fn write(folder: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(folder.join(FILE), text).with_context(|| format!("cannot write {FILE}"))
}

/// Reads the text of `throughline.yaml`.
pub(crate) fn read(folder: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(folder.join(FILE)).with_context(|| format!("cannot read {FILE}"))
}
