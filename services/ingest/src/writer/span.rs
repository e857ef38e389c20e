//! The CLIENT span of a commit, according to OpenTelemetry's conventions for databases.

use throughline_messages::TraceContext;
use tracing::field::Empty;
use tracing::{Span, info_span};

use super::NotCommitted;

/// Maximum number of links: the default limit of a span.
const LINKS: usize = 128;

/// Creates the span of a commit. A commit serves the traces of many requests, so it has a trace of its own, linked to
/// the traces that are sampled. If none is sampled, there is no span.
pub(super) fn commit<'a>(
    database: &'static str,
    size: usize,
    traces: impl Iterator<Item = &'a TraceContext>,
) -> Span {
    let mut recorded = traces.filter(|trace| trace.is_sampled()).take(LINKS).peekable();
    if recorded.peek().is_none() {
        return Span::none();
    }
    let span = info_span!(
        parent: None,
        "commit",
        otel.kind = "client",
        otel.name = "accept requests",
        otel.status_code = Empty,
        otel.status_description = Empty,
        error.type = Empty,
        db.system.name = database,
        db.operation.name = "accept",
        db.operation.batch.size = Empty,
        db.collection.name = "requests",
    );
    if size > 1 {
        span.record("db.operation.batch.size", size);
    }
    for trace in recorded {
        throughline_telemetry::add_link(&span, trace);
    }
    span
}

/// Records in the span why the rows are not known to be committed.
pub(super) fn note(span: &Span, error: &NotCommitted) {
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", tracing::field::display(error));
    span.record("error.type", error.kind());
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};
    use std::sync::Mutex;
    use std::time::Duration;

    use tracing_subscriber::fmt::format::FmtSpan;

    use super::super::Cause;
    use super::*;

    fn commit_of(flags: &[&str]) -> Span {
        let trace = |flags: &&str| TraceContext {
            traceparent: format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"),
            tracestate: None,
        };
        let traces: Vec<_> = flags.iter().map(trace).collect();
        commit("sqlite", traces.len(), traces.iter())
    }

    /// Returns the spans that `make` creates, one a line.
    fn spans(make: impl FnOnce()) -> String {
        let mut log = tempfile::tempfile().unwrap();
        let writer = Mutex::new(log.try_clone().unwrap());
        let subscriber = tracing_subscriber::fmt().with_span_events(FmtSpan::CLOSE).with_ansi(false);
        tracing::subscriber::with_default(subscriber.with_writer(writer).finish(), make);
        let mut lines = String::new();
        log.rewind().unwrap();
        log.read_to_string(&mut lines).unwrap();
        lines
    }

    #[test]
    fn there_is_no_span_if_no_request_is_recorded() {
        assert_eq!(spans(|| assert!(commit_of(&["00", "00"]).is_none())), "");
        let spans = spans(|| drop(commit_of(&["00", "01"])));
        assert!(spans.contains("db.operation.batch.size=2"), "{spans}");
    }

    #[test]
    fn a_failed_commit_records_its_cause() {
        let spans = spans(|| {
            let overdue = NotCommitted::Unknown(Cause::Overdue(Duration::from_secs(5)));
            note(&commit_of(&["01"]), &overdue);
        });
        assert!(spans.contains(r#"error.type="timeout""#), "{spans}");
        assert!(spans.contains("did not answer within 5s"), "{spans}");
        assert!(!spans.contains("batch.size"), "{spans}");
    }
}
