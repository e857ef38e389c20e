//! Spans and events as exporters receive them.

use std::io;
use std::sync::{Arc, Mutex};

use http::HeaderMap;
use opentelemetry::logs::AnyValue;
use opentelemetry::trace::{SpanId, TraceFlags};
use opentelemetry_sdk::logs::in_memory_exporter::LogDataWithResource;
use opentelemetry_sdk::logs::{InMemoryLogExporter, SdkLoggerProvider};
use opentelemetry_sdk::trace::{InMemorySpanExporter, Sampler, SdkTracerProvider, SpanData};
use serde_json::Value;
use throughline_messages::TraceContext;
use tracing::field::Empty;
use tracing::{Span, error, info, info_span, warn};

use super::{Following, Service, Telemetry, default_filter, resource};
use crate::{add_link, context_of, extract, inject, set_parent, trace_id_of};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
pub(super) const SERVICE: Service<'static> =
    Service { name: "throughline-test", version: "1.2.3", environment: None };

/// The exports and log lines of a test's spans and events.
struct Heard {
    spans: Vec<SpanData>,
    logs: Vec<LogDataWithResource>,
    lines: String,
}

impl Heard {
    fn span(&self, name: &str) -> &SpanData {
        self.spans.iter().find(|span| span.name == name).unwrap()
    }

    /// The one line that was logged.
    fn line(&self) -> Value {
        serde_json::from_str(&self.lines).unwrap_or_else(|error| panic!("{error}: {}", self.lines))
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn listen(sampler: Sampler, filter: &str, is_terminal: bool, speak: impl FnOnce()) -> Heard {
    let (spans, logs) = (InMemorySpanExporter::default(), InMemoryLogExporter::default());
    let telemetry = Telemetry {
        traces: SdkTracerProvider::builder()
            .with_sampler(Following(sampler))
            .with_simple_exporter(spans.clone())
            .build(),
        logs: Some(SdkLoggerProvider::builder().with_simple_exporter(logs.clone()).build()),
        metrics: None,
    };
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = telemetry.subscriber("test", filter, is_terminal, move || writer.clone());
    tracing::subscriber::with_default(subscriber, speak);
    let lines = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    Heard { spans: spans.get_finished_spans().unwrap(), logs: logs.get_emitted_logs().unwrap(), lines }
}

fn hear(speak: impl FnOnce()) -> Heard {
    listen(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)), "info", false, speak)
}

fn remote() -> TraceContext {
    TraceContext {
        traceparent: format!("00-{TRACE}-{SPAN}-01"),
        tracestate: Some("vendor=one,other=two".to_owned()),
    }
}

fn traceparent(span: &Span) -> String {
    context_of(span).unwrap().traceparent
}

#[test]
fn a_span_continues_the_trace_of_its_remote_parent() {
    let heard = hear(|| {
        let span = info_span!("server");
        set_parent(&span, &remote());
        assert_eq!(trace_id_of(&span).unwrap(), TRACE);
    });
    let span = heard.span("server");
    assert_eq!(span.span_context.trace_id().to_string(), TRACE);
    assert_eq!(span.parent_span_id.to_string(), SPAN);
    assert!(span.parent_span_is_remote);
    assert_eq!(span.span_context.trace_state().header(), "vendor=one,other=two");
}

#[test]
fn the_context_of_a_span_is_its_own_and_not_that_of_the_one_around_it() {
    let heard = hear(|| {
        let outer = info_span!("outer");
        let _entered = outer.enter();
        let inner = info_span!("inner");
        let (outer, inner) = (traceparent(&outer), traceparent(&inner));
        assert_eq!(outer[..36], inner[..36], "one trace");
        assert_ne!(outer, inner);
    });
    let (inner, outer) = (heard.span("inner"), heard.span("outer"));
    assert_eq!(inner.parent_span_id, outer.span_context.span_id());
}

#[test]
fn the_other_side_extracts_the_injected_context() {
    let mut headers = HeaderMap::new();
    headers.insert("tracestate", "stale=1".parse().unwrap());
    let heard = hear(|| {
        let client = info_span!("client");
        set_parent(&client, &remote());
        inject(&client, &mut headers);
        let server = info_span!("server");
        set_parent(&server, &extract(&headers).unwrap());
    });
    assert_eq!(headers["tracestate"], "vendor=one,other=two");
    assert_eq!(heard.span("server").parent_span_id, heard.span("client").span_context.span_id());
}

#[test]
fn baggage_and_an_empty_tracestate_are_not_injected() {
    let mut headers = HeaderMap::new();
    headers.insert("tracestate", "stale=1".parse().unwrap());
    hear(|| {
        use opentelemetry::baggage::BaggageExt;
        let baggage =
            opentelemetry::Context::current_with_baggage([opentelemetry::KeyValue::new("user", "me")]);
        let _attached = baggage.attach();
        inject(&info_span!("client"), &mut headers);
    });
    assert_eq!(headers.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["traceparent"]);
}

#[test]
fn a_malformed_traceparent_is_ignored() {
    for malformed in [
        "",
        "00",
        &format!("00-{TRACE}-{SPAN}"),
        &format!("00-{TRACE}-{SPAN}-01-00"),
        &format!("ff-{TRACE}-{SPAN}-01"),
        &format!("00-{}-{SPAN}-01", &TRACE[1..]),
        &format!("00-{TRACE}-+{}-01", &SPAN[1..]),
        &format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        &format!("00-{}-{SPAN}-01", "0".repeat(32)),
        &format!("00-{TRACE}-{}-01", "0".repeat(16)),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", malformed.parse().unwrap());
        assert_eq!(extract(&headers), None, "{malformed}");
        let context = TraceContext { traceparent: malformed.to_owned(), tracestate: None };
        let heard = hear(|| {
            let span = info_span!("server");
            set_parent(&span, &context);
            add_link(&span, &context);
        });
        assert_eq!(heard.span("server").parent_span_id, SpanId::INVALID, "{malformed}");
        assert_eq!(heard.span("server").links.len(), 0, "{malformed}");
    }
}

#[test]
fn a_traceparent_of_a_later_version_is_understood() {
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", format!("01-{TRACE}-{SPAN}-01-more").parse().unwrap());
    assert_eq!(extract(&headers).unwrap().traceparent, format!("00-{TRACE}-{SPAN}-01"));
}

#[test]
fn a_tracestate_may_come_in_several_lines_and_a_traceparent_may_not() {
    let mut headers = HeaderMap::new();
    headers.append("traceparent", remote().traceparent.parse().unwrap());
    headers.append("tracestate", "vendor=one".parse().unwrap());
    headers.append("tracestate", " other=two ".parse().unwrap());
    assert_eq!(extract(&headers), Some(remote()));
    headers.append("traceparent", remote().traceparent.parse().unwrap());
    assert_eq!(extract(&headers), None);
}

#[test]
fn an_unreadable_tracestate_leaves_the_traceparent_alone() {
    let mut headers = HeaderMap::new();
    headers.append("traceparent", remote().traceparent.parse().unwrap());
    headers.append("tracestate", "no list at all".parse().unwrap());
    assert_eq!(extract(&headers), Some(TraceContext { tracestate: None, ..remote() }));
}

#[test]
fn a_link_joins_two_traces_and_leaves_them_two() {
    let heard = hear(|| {
        let span = info_span!("late");
        add_link(&span, &remote());
        assert_ne!(trace_id_of(&span).unwrap(), TRACE);
    });
    let [link] = &heard.span("late").links.links[..] else { panic!("one link") };
    assert_eq!(link.span_context.trace_id().to_string(), TRACE);
    assert_eq!(link.span_context.span_id().to_string(), SPAN);
}

#[test]
fn a_parent_that_is_set_too_late_is_logged() {
    let heard = hear(|| {
        let span = info_span!("server");
        let own = traceparent(&span);
        set_parent(&span, &remote());
        assert_eq!(traceparent(&span), own);
    });
    assert_eq!(heard.line()["level"], "WARN");
}

#[test]
fn without_telemetry_or_a_span_there_is_no_context() {
    let span = info_span!("no subscriber");
    set_parent(&span, &remote());
    let mut headers = HeaderMap::new();
    inject(&span, &mut headers);
    assert_eq!((context_of(&span), trace_id_of(&span), headers.len()), (None, None, 0));
    hear(|| assert_eq!(context_of(&Span::none()), None));
}

#[test]
fn an_unrecorded_trace_has_an_id_and_is_marked_as_unrecorded() {
    let heard = listen(Sampler::AlwaysOff, "info", false, || {
        let span = info_span!("server");
        set_parent(&span, &remote());
        let context = context_of(&span).unwrap();
        assert!(context.traceparent.starts_with(&format!("00-{TRACE}-")), "{}", context.traceparent);
        assert!(context.traceparent.ends_with("-00"), "{}", context.traceparent);
        assert_eq!(context.tracestate, remote().tracestate);
    });
    assert!(heard.spans.is_empty());
}

#[test]
fn the_parents_decision_to_record_is_kept() {
    let unsampled = TraceContext { traceparent: format!("00-{TRACE}-{SPAN}-00"), tracestate: None };
    let heard = hear(|| {
        let span = info_span!("server");
        set_parent(&span, &unsampled);
        assert!(traceparent(&span).ends_with("-00"));
    });
    assert!(heard.spans.is_empty());
}

#[test]
fn a_new_trace_is_recorded_if_its_linked_trace_is() {
    let remote =
        |flags: &str| TraceContext { traceparent: format!("00-{TRACE}-{SPAN}-{flags}"), tracestate: None };
    let speak = || {
        for (name, links) in [("none", &["00", "00"][..]), ("one", &["00", "01"])] {
            let span = info_span!("root", otel.name = name);
            for flags in links {
                add_link(&span, &remote(flags));
            }
        }
        let child = info_span!("child");
        set_parent(&child, &remote("00"));
        add_link(&child, &remote("01"));
        let _alone = info_span!("alone");
    };
    let names = |sampler| {
        let heard = listen(sampler, "info", false, speak);
        heard.spans.iter().map(|span| span.name.to_string()).collect::<Vec<_>>()
    };
    let parent_based = |root| Sampler::ParentBased(Box::new(root));
    assert_eq!(names(parent_based(Sampler::AlwaysOn)), ["one", "alone"]);
    assert_eq!(names(parent_based(Sampler::AlwaysOff)), ["one"]);
    assert_eq!(names(Sampler::AlwaysOff), Vec::<String>::new());
}

#[test]
fn attributes_have_the_names_and_kinds_of_the_conventions() {
    let heard = hear(|| {
        let span = info_span!("send", otel.name = "send topic", otel.kind = "producer", error.r#type = Empty);
        span.record("error.type", "refused");
    });
    let span = heard.span("send topic");
    assert_eq!(span.span_kind, opentelemetry::trace::SpanKind::Producer);
    let attributes: Vec<String> =
        span.attributes.iter().map(|it| format!("{}={}", it.key, it.value)).collect();
    assert_eq!(attributes, ["error.type=refused"]);
}

#[test]
fn a_log_line_is_one_flat_json_object_with_the_ids_of_its_span() {
    let heard = hear(|| {
        let span = info_span!("server", not.logged = true);
        set_parent(&span, &remote());
        span.in_scope(|| info!(count = 3, ratio = 0.5, on = true, path = %"/one", "a \"quoted\"\nmessage"));
    });
    assert_eq!(heard.lines.matches('\n').count(), 1, "{}", heard.lines);
    let mut line = heard.line();
    let line = line.as_object_mut().unwrap();
    let timestamp = line.remove("timestamp").unwrap();
    assert!(timestamp.as_str().unwrap().ends_with('Z'), "{timestamp}");
    let span_id = heard.span("server").span_context.span_id().to_string();
    let expected = serde_json::json!({
        "level": "INFO", "target": module_path!(), "message": "a \"quoted\"\nmessage",
        "trace_id": TRACE, "span_id": span_id,
        "count": 3, "ratio": 0.5, "on": true, "path": "/one",
    });
    assert_eq!(Value::from(line.clone()), expected);
}

#[test]
fn a_log_line_outside_a_span_has_no_ids() {
    let line = hear(|| info!("alone")).line();
    assert_eq!((line.get("trace_id"), line.get("span_id")), (None, None));
}

#[test]
fn a_field_does_not_hide_a_standard_field() {
    let line = hear(|| info!(level = "low", target = "moon", "hit")).line();
    assert_eq!((&line["level"], &line["fields.level"]), (&"INFO".into(), &"low".into()));
    assert_eq!((&line["target"], &line["fields.target"]), (&module_path!().into(), &"moon".into()));
}

#[test]
fn an_error_is_logged_with_its_causes() {
    #[derive(Debug, thiserror::Error)]
    #[error("cannot save")]
    struct Outer(#[source] io::Error);
    let line = hear(|| {
        let failure = Outer(io::Error::other("disk full"));
        error!(error = &failure as &dyn std::error::Error, "stopping");
    });
    assert_eq!(line.line()["error"], "cannot save: disk full");
}

#[test]
fn a_terminal_gets_a_readable_line_with_the_trace() {
    let heard = listen(Sampler::AlwaysOn, "info", true, || {
        let span = info_span!("server", not.logged = true);
        set_parent(&span, &remote());
        span.in_scope(|| info!(count = 3, "hello"));
    });
    assert!(heard.lines.contains("hello"), "{}", heard.lines);
    assert!(heard.lines.contains(&format!("trace_id={TRACE}")), "{}", heard.lines);
    assert!(!heard.lines.contains("not.logged"), "{}", heard.lines);
    assert_eq!(heard.lines.matches('\n').count(), 1, "{}", heard.lines);
}

#[test]
fn a_line_has_its_ids_also_when_spans_are_below_the_log_level() {
    let heard = listen(Sampler::AlwaysOn, "warn", false, || {
        let span = info_span!("server");
        set_parent(&span, &remote());
        span.in_scope(|| {
            info!("not logged");
            error!("logged");
        });
    });
    assert_eq!(heard.line()["trace_id"], TRACE);
}

#[test]
fn exported_logs_carry_the_ids_of_their_span() {
    let heard = hear(|| {
        let span = info_span!("server");
        set_parent(&span, &remote());
        span.in_scope(|| info!("hello"));
    });
    let context = heard.logs[0].record.trace_context().unwrap();
    assert_eq!(context.trace_id.to_string(), TRACE);
    assert_eq!(context.span_id, heard.span("server").span_context.span_id());
    assert_eq!(context.trace_flags, Some(TraceFlags::SAMPLED));
    assert_eq!(heard.span("server").events.len(), 0, "events are logs, and are exported once");
}

#[test]
fn the_event_field_reaches_json_lines_readable_lines_and_exported_logs() {
    for is_terminal in [false, true] {
        let heard =
            listen(Sampler::AlwaysOn, "info", is_terminal, || warn!(event = "lease.expired", "hello"));
        // Between the name and the value, a terminal gets codes for colours.
        let texts =
            if is_terminal { ["event", "\"lease.expired\""] } else { ["\"event\":", "\"lease.expired\""] };
        assert!(texts.iter().all(|text| heard.lines.contains(text)), "{}", heard.lines);
        let mut attributes = heard.logs[0].record.attributes_iter();
        let is_event =
            |value: &AnyValue| matches!(value, AnyValue::String(name) if name.as_str() == "lease.expired");
        assert!(attributes.any(|(key, value)| key.as_str() == "event" && is_event(value)));
    }
}

#[test]
fn events_of_an_export_are_not_exported() {
    let heard = listen(Sampler::AlwaysOn, "trace", false, || {
        let span = info_span!(target: "h2::client", "Connection");
        span.in_scope(|| info!(target: "hyper_util::client", "connecting"));
        info!(target: "opentelemetry_sdk", "exporting");
        info!("hello");
    });
    assert_eq!(heard.spans.len(), 0);
    assert_eq!(heard.logs.len(), 1);
    assert_eq!(heard.lines.matches('\n').count(), 3, "{}", heard.lines);
}

#[test]
fn noisy_libraries_are_quieter_than_the_rest() {
    let filter = default_filter(tracing::level_filters::LevelFilter::INFO);
    let heard = listen(Sampler::AlwaysOn, &filter, false, || {
        info!(target: "librdkafka", "chatter");
        info!(target: "sqlx::query", "chatter");
        info!("hello");
    });
    assert_eq!(heard.line()["message"], "hello");
}

#[test]
fn a_resource_identifies_the_service_and_the_environment_takes_precedence() {
    let attributes = [("service.namespace", "mine"), ("deployment.environment.name", "test")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let service = Service { environment: Some("production"), ..SERVICE };
    let get = |attributes: &[(String, String)], key: &'static str| {
        resource(service, attributes).get(&key.into()).map(|value| value.to_string())
    };
    for (key, value) in [
        ("service.namespace", "throughline"),
        ("service.name", "throughline-test"),
        ("service.version", "1.2.3"),
        ("deployment.environment.name", "production"),
    ] {
        assert_eq!(get(&[], key).as_deref(), Some(value), "{key}");
    }
    assert!(get(&[], "service.instance.id").is_some());
    assert_eq!(get(&attributes, "service.namespace").as_deref(), Some("mine"));
    assert_eq!(get(&attributes, "deployment.environment.name").as_deref(), Some("test"));
}
