/// The names of the internal topics. A route's own topic is named in its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Outcomes of attempts, from dispatch to ingest.
    pub outcomes: String,
    /// Deliveries to retry, from ingest to dispatch.
    pub retries: String,
    /// Deliveries that ended without success, for any consumer.
    pub dead_letters: String,
    /// Foreign records, from dispatch to ingest.
    pub adoptions: String,
}

impl Topics {
    /// Returns the topics with a prefix, by default `throughline`. Environments that share a cluster use one prefix
    /// each.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self {
            outcomes: format!("{prefix}.outcomes"),
            retries: format!("{prefix}.retries"),
            dead_letters: format!("{prefix}.dead-letters"),
            adoptions: format!("{prefix}.adoptions"),
        }
    }

    /// Returns all names.
    #[must_use]
    pub fn all(&self) -> [&str; 4] {
        [&self.outcomes, &self.retries, &self.dead_letters, &self.adoptions]
    }
}
