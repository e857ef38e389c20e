//! Log lines, readable or as JSON.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::{self, Debug};

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, format};
use tracing_subscriber::registry::LookupSpan;

/// One flat JSON object per line: time, level, message, target, the ids of trace and span, and the event's own
/// fields. An event field with the name of a standard one becomes `fields.<name>`.
#[derive(Debug)]
pub(crate) struct Json;

/// One readable line, for a terminal.
#[derive(Debug)]
pub(crate) struct Readable;

const TIMESTAMP: &str = "timestamp";
const LEVEL: &str = "level";
const MESSAGE: &str = "message";
const TARGET: &str = "target";
const TRACE_ID: &str = "trace_id";
const SPAN_ID: &str = "span_id";

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let mut own = Fields::default();
        event.record(&mut own);

        let metadata = event.metadata();
        let mut line = Object::begin(&mut writer)?;
        line.entry(TIMESTAMP, &timestamp.into())?;
        line.entry(LEVEL, &metadata.level().as_str().into())?;
        line.entry(MESSAGE, &own.message)?;
        line.entry(TARGET, &metadata.target().into())?;
        if let Some(span) = current_span() {
            line.entry(TRACE_ID, &span.trace_id().to_string().into())?;
            line.entry(SPAN_ID, &span.span_id().to_string().into())?;
        }
        for (name, value) in &own.others {
            line.entry(name, value)?;
        }
        line.end()
    }
}

impl<S, N> FormatEvent<S, N> for Readable
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let has_colours = writer.has_ansi_escapes();
        let mut line = String::new();
        let compact: Format<format::Compact, SystemTime> = format().compact().with_ansi(has_colours);
        compact.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        match current_span() {
            Some(span) if has_colours => {
                writeln!(writer, "{line} \x1b[2m{TRACE_ID}={}\x1b[0m", span.trace_id())
            }
            Some(span) => writeln!(writer, "{line} {TRACE_ID}={}", span.trace_id()),
            None => writeln!(writer, "{line}"),
        }
    }
}

/// Returns the span that the event occurred in, whether or not the span itself is logged.
fn current_span() -> Option<SpanContext> {
    Context::map_current(|context| {
        let span = context.span();
        let span = span.span_context();
        span.is_valid().then(|| span.clone())
    })
}

/// A JSON object that is being written.
struct Object<'a, 'w> {
    writer: &'a mut Writer<'w>,
    is_empty: bool,
}

impl<'a, 'w> Object<'a, 'w> {
    fn begin(writer: &'a mut Writer<'w>) -> Result<Self, fmt::Error> {
        writer.write_char('{')?;
        Ok(Self { writer, is_empty: true })
    }

    fn entry(&mut self, name: &str, value: &Value) -> fmt::Result {
        if !self.is_empty {
            self.writer.write_char(',')?;
        }
        self.is_empty = false;
        write!(self.writer, "{}:{value}", Value::from(name))
    }

    fn end(self) -> fmt::Result {
        self.writer.write_str("}\n")
    }
}

/// The fields of an event.
#[derive(Default)]
struct Fields {
    message: Value,
    others: Vec<(Cow<'static, str>, Value)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: impl Into<Value>) {
        match field.name() {
            MESSAGE => self.message = value.into(),
            name @ (TIMESTAMP | LEVEL | TARGET | TRACE_ID | SPAN_ID) => {
                self.others.push((format!("fields.{name}").into(), value.into()));
            }
            name => self.others.push((name.into(), value.into())),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.add(field, i64::try_from(value).map_or_else(|_| value.to_string().into(), Value::from));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.add(field, u64::try_from(value).map_or_else(|_| value.to_string().into(), Value::from));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut chain = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            chain = format!("{chain}: {cause}");
            source = cause.source();
        }
        self.add(field, chain);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}"));
    }
}
