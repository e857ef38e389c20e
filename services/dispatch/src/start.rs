//! Whether a record is processed here, or left to the next owner of its partition.

use std::sync::OnceLock;

use throughline_kafka::Claim;

/// The start of the work on a record: the same for all its deliveries, since a record is finished as a whole.
pub(crate) struct Start {
    claim: Claim,
    decided: OnceLock<bool>,
}

impl Start {
    pub(crate) fn new(claim: Claim) -> Self {
        Self { claim, decided: OnceLock::new() }
    }

    /// Whether the record is processed here. Until something has begun, it is left to the next owner once the claim
    /// has ended; then nothing may have been called or reported.
    pub(crate) fn is_ours(&self) -> bool {
        *self.decided.get_or_init(|| !self.claim.has_ended())
    }

    /// Whether only what is in progress may go on.
    pub(crate) fn has_ended(&self) -> bool {
        self.claim.has_ended()
    }

    /// Waits for something, but no longer than the claim lasts: then there is none.
    pub(crate) async fn unless_ended<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            got = what => Some(got),
            () = self.claim.ended() => None,
        }
    }
}
