//! Real input: the payloads of the npm package `@octokit/webhooks-examples`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::process::Command;

const PACKAGE: &str = "@octokit/webhooks-examples";
const VERSION: &str = "7.6.1";

/// Number of payloads in this version; fewer mean that they were read incorrectly.
const COUNT: usize = 726;

/// The folders of the package: one for github.com, and one for each GitHub Enterprise Server.
const SOURCES: [&str; 6] = ["api.github.com", "ghes-31", "ghes-32", "ghes-33", "ghes-34", "ghes-35"];

/// Every payload of the package, byte for byte.
pub(crate) struct Payloads(Vec<Box<RawValue>>);

/// An event with its examples; other fields are ignored.
#[derive(serde::Deserialize)]
struct Event {
    examples: Vec<Box<RawValue>>,
}

impl Payloads {
    /// Reads them from the cache. If the package is missing there, npm installs it first.
    pub(crate) async fn fetch() -> anyhow::Result<Self> {
        let package = cache()?;
        if !is_there(&package) {
            install(&package).await?;
        }
        let mut payloads = Vec::with_capacity(COUNT);
        for source in SOURCES {
            let file = package.join("node_modules").join(PACKAGE).join(source).join("index.json");
            let text =
                std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let events: Vec<Event> =
                serde_json::from_str(&text).with_context(|| file.display().to_string())?;
            payloads.extend(events.into_iter().flat_map(|event| event.examples));
        }
        ensure!(payloads.len() == COUNT, "{} payloads instead of {COUNT}", payloads.len());
        Ok(Self(payloads))
    }

    /// Each payload in three layouts: as it is in the package, compact, and with mangled white space.
    pub(crate) fn in_all_layouts(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut bodies = Vec::with_capacity(3 * self.0.len());
        for payload in &self.0 {
            let text = payload.get();
            bodies.push(text.as_bytes().to_vec());
            bodies.push(serde_json::to_vec(&serde_json::from_str::<Value>(text)?)?);
            // JSON strings contain no line breaks, so all of these are between tokens.
            bodies.push(format!("\r\n {}\n\n\t", text.replace('\n', "\r\n \t")).into_bytes());
        }
        Ok(bodies)
    }
}

/// `target/octokit-webhooks-examples`, next to the folder of the profile in which the test was built.
fn cache() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let target = test.ancestors().nth(3).context("the test is not in a target folder")?;
    Ok(target.join("octokit-webhooks-examples"))
}

fn is_there(package: &Path) -> bool {
    let manifest = std::fs::read(package.join("node_modules").join(PACKAGE).join("package.json"));
    let version =
        |manifest: Vec<u8>| serde_json::from_slice::<Value>(&manifest).ok()?.get("version").cloned();
    manifest.ok().and_then(version).is_some_and(|version| version == VERSION)
}

async fn install(package: &Path) -> anyhow::Result<()> {
    let npm = Command::new("npm")
        .args(["install", "--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"])
        .arg("--prefix")
        .arg(package)
        .arg(format!("{PACKAGE}@{VERSION}"))
        .output()
        .await
        .context("npm cannot be run")?;
    let said = String::from_utf8_lossy(&npm.stderr);
    ensure!(npm.status.success(), "npm cannot fetch {PACKAGE}@{VERSION}: {}", said.trim());
    Ok(())
}
