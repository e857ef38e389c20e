use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use throughline_config::{DurationText, Findings, MASK, Path, Secret, at_least_one};
use url::Url;

/// The database that stores requests.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `postgres://…` or `sqlite://path`; a secret, since it may contain a password. Empty by default: dispatch needs
    /// no database.
    #[serde(serialize_with = "masked")]
    pub url: Secret,
    /// Maximum number of connections for writing requests, publishing and recording outcomes; each ingest opens up to
    /// 6 more for reads and for its lease. Default 16; SQLite uses a single connection for everything.
    pub max_connections: NonZeroU32,
    /// How long to wait for a connection. Default 5 s.
    #[serde(with = "DurationText")]
    pub connect_timeout: Duration,
    /// How long the database may take to answer a statement. PostgreSQL gets the same limit and cancels the statement
    /// by itself. Default 30 s.
    #[serde(with = "DurationText")]
    pub timeout: Duration,
    /// Whether a service migrates the schema when it starts. Default false.
    pub migrate: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: Secret::from(""),
            max_connections: at_least_one(16),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
            migrate: false,
        }
    }
}

impl Settings {
    /// Checks the meaning of settings of valid form.
    pub fn check(&self, path: &Path, findings: &mut Findings) {
        let url = self.url.expose();
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        findings.expect(
            url.is_empty() || matches!(scheme, "postgres" | "postgresql" | "sqlite"),
            || path.key("url"),
            "expected `postgres://user:password@host/name` or `sqlite://path`",
        );
    }

    /// Returns the URL with its password masked, for display; the whole URL is masked if the password in it cannot be
    /// identified with certainty.
    #[must_use]
    pub fn display_url(&self) -> String {
        without_password(self.url.expose())
    }
}

fn without_password(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let masked = || {
        let mut url = Url::parse(text).ok()?;
        let (_, rest) = text.split_once(':')?;
        let rest = rest.trim_start_matches('/');
        // An unescaped `/`, `?` or `#` in a password moves the rest of it behind the host.
        let after_host = rest.find(['/', '?', '#']).map_or("", |end| &rest[end..]);
        if after_host.contains(['@', '#']) {
            return None;
        }
        if url.password().is_some() {
            url.set_password(Some(MASK)).ok()?;
        }
        if url.query().is_some() {
            url.set_query(Some(MASK));
        }
        Some(url.into())
    };
    masked().unwrap_or_else(|| MASK.to_owned())
}

fn masked<S: Serializer>(url: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&without_password(url.expose()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("postgres://me:hunter2@db:5432/app", "postgres://me:***@db:5432/app"),
            ("postgres://me:hunt@er2@db/app", "postgres://me:***@db/app"),
            ("postgres://me@db/app", "postgres://me@db/app"),
            ("postgres://db/app?password=hunter2", "postgres://db/app?***"),
            ("postgres://me:1/hunter2@db/app", "***"),
            ("postgres://me:1#hunter2@db/app", "***"),
            ("postgres://me:1?hunter2@db/app", "***"),
            ("postgres://me:hunter/2@db/app", "***"),
            ("hunter2", "***"),
            ("sqlite://.throughline/throughline.db", "sqlite://.throughline/throughline.db"),
            ("sqlite:///var/lib/throughline.db", "sqlite:///var/lib/throughline.db"),
            ("sqlite::memory:", "sqlite::memory:"),
            ("", ""),
        ] {
            let settings = Settings { url: url.into(), ..Settings::default() };
            assert_eq!(settings.display_url(), shown, "{url}");
        }
    }
}
