use std::fmt;
use std::path::PathBuf;

/// What the command line says about the configuration; flatten it into a command's arguments.
#[derive(Clone, Default, clap::Args)]
pub struct Flags {
    /// The configuration file; else what `THROUGHLINE_CONFIG` names, else `throughline.yaml` if there
    /// is one.
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Where ingest listens (`http.address`).
    #[arg(long, value_name = "ADDRESS")]
    pub http: Option<String>,
    /// The broker's servers (`kafka.bootstrap_servers`).
    #[arg(long, value_name = "HOST:PORT")]
    pub kafka: Option<String>,
    /// The database (`database.url`). Others on this machine can see it: better keep a password in
    /// the file or the environment.
    #[arg(long, value_name = "URL")]
    pub database: Option<String>,
}

impl fmt::Debug for Flags {
    /// Without the database's URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flags")
            .field("config", &self.config)
            .field("http", &self.http)
            .field("kafka", &self.kafka)
            .finish_non_exhaustive()
    }
}
