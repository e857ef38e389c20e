/// The names of the internal topics. A route's own topic is in its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Outcomes of attempts, dispatch to ingest.
    pub outcomes: String,
    /// Deliveries to attempt again, ingest to dispatch.
    pub retries: String,
    /// Deliveries that ended without success, for whoever wants to read them.
    pub dead_letters: String,
    /// Foreign records, dispatch to ingest.
    pub adoptions: String,
}

impl Topics {
    /// The topics under a prefix, by default `throughline`; environments that share a cluster take
    /// one each.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self {
            outcomes: format!("{prefix}.outcomes"),
            retries: format!("{prefix}.retries"),
            dead_letters: format!("{prefix}.dead-letters"),
            adoptions: format!("{prefix}.adoptions"),
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> [&str; 4] {
        [&self.outcomes, &self.retries, &self.dead_letters, &self.adoptions]
    }
}
