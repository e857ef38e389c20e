//! How a delivery waits, in SQL: word for word what the indexes hold, by which databases know that they serve.

/// For its time alone: planned, or deferred since its key was busy, which holds up none but its own.
pub(crate) const FOR_ITS_TIME: &str = "due_at IS NOT NULL AND published_at IS NULL \
     AND (deferred_by IS NULL OR deferred_by = 'key_busy')";

/// Until its destination's hold lets it go.
pub(crate) const FOR_ITS_DESTINATION: &str = "deferred_by <> 'order' AND deferred_by <> 'key_busy'";

/// Published, and no outcome was recorded.
pub(crate) const FOR_AN_OUTCOME: &str = "due_at IS NOT NULL AND published_at IS NOT NULL";

/// No ingest works on it.
pub(crate) fn is_free(now: &str) -> String {
    format!("(claimed_until IS NULL OR claimed_until <= {now})")
}
