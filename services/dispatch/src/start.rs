//! Decides whether a record is processed here or left to the next owner of its partition.

use std::sync::OnceLock;

use throughline_kafka::Claim;

/// The start of the work on a record. All its deliveries share it, since a record is finished as a whole.
pub(crate) struct Start {
    claim: Claim,
    decided: OnceLock<bool>,
}

impl Start {
    pub(crate) fn new(claim: Claim) -> Self {
        Self { claim, decided: OnceLock::new() }
    }

    /// Returns whether the record is processed here. The first call decides, just before any work begins: if the
    /// claim has ended by then, the record is left to the next owner, and nothing may be called or reported.
    pub(crate) fn is_ours(&self) -> bool {
        *self.decided.get_or_init(|| !self.claim.has_ended())
    }

    /// Returns whether the claim has ended, so that only work in progress may continue.
    pub(crate) fn has_ended(&self) -> bool {
        self.claim.has_ended()
    }

    /// Waits for a future, but no longer than the claim lasts. Returns `None` if the claim ends first.
    pub(crate) async fn unless_ended<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            got = what => Some(got),
            () = self.claim.ended() => None,
        }
    }
}
