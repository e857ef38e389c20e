//! SQL conditions for the ways in which a delivery waits. They repeat the indexes' conditions word for word, so that
//! the databases recognise that the indexes apply.

use crate::dialect::Dialect;

/// The delivery waits for its due time alone: it is scheduled, or deferred because its key was busy, which delays no
/// other key.
pub(crate) const FOR_ITS_TIME: &str = "due_at IS NOT NULL AND published_at IS NULL \
     AND (deferred_by IS NULL OR deferred_by = 'key_busy')";

/// The delivery waits until its destination's slow start releases it.
pub(crate) const FOR_ITS_DESTINATION: &str = "deferred_by <> 'order' AND deferred_by <> 'key_busy'";

/// The delivery is published, and no outcome was recorded.
pub(crate) const FOR_AN_OUTCOME: &str = "due_at IS NOT NULL AND published_at IS NOT NULL";

/// No ingest has a claim on the delivery.
pub(crate) fn is_free(dialect: Dialect) -> String {
    format!("(claimed_until IS NULL OR claimed_until <= {})", dialect.now())
}
