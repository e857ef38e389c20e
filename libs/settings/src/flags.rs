use std::fmt;
use std::path::PathBuf;

use throughline_config::FlagValue;

/// Command-line flags that override the configuration; flatten them into a command's arguments.
#[derive(Clone, Default, clap::Args)]
pub struct Flags {
    /// Configuration file. Default: the path in `THROUGHLINE_CONFIG`, else `throughline.yaml` if it exists.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Address that ingest listens on (`http.address`).
    #[arg(long, value_name = "ADDRESS")]
    pub http: Option<String>,
    /// Kafka bootstrap servers (`kafka.bootstrap_servers`).
    #[arg(long, value_name = "HOST:PORT")]
    pub kafka: Option<String>,
    /// Database URL (`database.url`). Other users of this machine can see command lines: keep a password in the file
    /// or the environment instead.
    #[arg(long, value_name = "URL")]
    pub database: Option<String>,
}

impl fmt::Debug for Flags {
    /// Leaves out the database URL, which may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flags")
            .field("config", &self.config)
            .field("http", &self.http)
            .field("kafka", &self.kafka)
            .finish_non_exhaustive()
    }
}

impl Flags {
    /// Returns the values of the settings.
    pub(crate) fn values(&self) -> Vec<FlagValue> {
        let values: [(_, &'static [&'static str], _); 3] = [
            ("--http", &["http", "address"], &self.http),
            ("--kafka", &["kafka", "bootstrap_servers"], &self.kafka),
            ("--database", &["database", "url"], &self.database),
        ];
        let given = |(flag, keys, value): (_, _, &Option<String>)| {
            Some(FlagValue { flag, keys, value: value.clone()? })
        };
        values.into_iter().filter_map(given).collect()
    }
}
