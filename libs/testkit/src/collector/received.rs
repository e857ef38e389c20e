use std::collections::BTreeMap;

use opentelemetry::trace::SpanKind;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::ResourceLogs;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as PointValue;
use opentelemetry_proto::tonic::metrics::v1::{HistogramDataPoint, NumberDataPoint, ResourceMetrics};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind as Kind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{self as trace, ResourceSpans, span};

use crate::measured::{Number, Point};

/// Attributes by name, as text.
pub type Attributes = BTreeMap<String, String>;

/// A span, as a collector receives it.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The resource that created the span.
    pub resource: Attributes,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: SpanKind,
    /// The id of its trace, in hexadecimal digits.
    pub trace_id: String,
    /// Its own id, in hexadecimal digits.
    pub span_id: String,
    /// The id of its parent, if it has one.
    pub parent_id: Option<String>,
    /// The W3C `tracestate` that it carries.
    pub trace_state: String,
    /// Its attributes.
    pub attributes: Attributes,
    /// The linked spans.
    pub links: Vec<Link>,
    /// The message of its status, if the status is an error.
    pub error: Option<String>,
    /// Its duration, in nanoseconds.
    pub duration_ns: u64,
}

/// A link to a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The id of the trace, in hexadecimal digits.
    pub trace_id: String,
    /// The id of the span, in hexadecimal digits.
    pub span_id: String,
}

/// A log record, as a collector receives it.
#[derive(Debug, Clone, PartialEq)]
pub struct LogRecord {
    /// The resource that wrote the record.
    pub resource: Attributes,
    /// Its level: `INFO`, …
    pub severity: String,
    /// Its message.
    pub body: String,
    /// Its fields.
    pub attributes: Attributes,
    /// The id of the trace in which it was written, in hexadecimal digits.
    pub trace_id: Option<String>,
    /// The id of the span in which it was written, in hexadecimal digits.
    pub span_id: Option<String>,
}

/// A metric, as a collector receives it.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// The resource that recorded the metric.
    pub resource: Attributes,
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Its values, one for each set of attributes.
    pub points: Vec<Point>,
}

pub(super) fn spans(all: Vec<ResourceSpans>) -> impl Iterator<Item = Span> {
    all.into_iter().flat_map(|of_one| {
        let resource = attributes_of(of_one.resource);
        of_one
            .scope_spans
            .into_iter()
            .flat_map(|scope| scope.spans)
            .map(move |span| span_from(resource.clone(), span))
    })
}

pub(super) fn logs(all: Vec<ResourceLogs>) -> impl Iterator<Item = LogRecord> {
    all.into_iter().flat_map(|of_one| {
        let resource = attributes_of(of_one.resource);
        of_one.scope_logs.into_iter().flat_map(|scope| scope.log_records).map(move |record| LogRecord {
            resource: resource.clone(),
            severity: record.severity_text,
            body: record.body.map(text).unwrap_or_default(),
            attributes: attributes(record.attributes),
            trace_id: id(&record.trace_id),
            span_id: id(&record.span_id),
        })
    })
}

pub(super) fn metrics(all: Vec<ResourceMetrics>) -> Vec<Metric> {
    let of_one = |of_one: ResourceMetrics| {
        let resource = attributes_of(of_one.resource);
        of_one.scope_metrics.into_iter().flat_map(|scope| scope.metrics).map(move |metric| Metric {
            resource: resource.clone(),
            name: metric.name,
            unit: metric.unit,
            points: metric.data.map(points).unwrap_or_default(),
        })
    };
    all.into_iter().flat_map(of_one).collect()
}

fn span_from(resource: Attributes, span: trace::Span) -> Span {
    let kind = span.kind();
    let status = span.status.unwrap_or_default();
    Span {
        resource,
        name: span.name,
        kind: match kind {
            Kind::Unspecified | Kind::Internal => SpanKind::Internal,
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
            Kind::Producer => SpanKind::Producer,
            Kind::Consumer => SpanKind::Consumer,
        },
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        parent_id: id(&span.parent_span_id),
        trace_state: span.trace_state,
        attributes: attributes(span.attributes),
        links: span.links.iter().map(link).collect(),
        error: (status.code() == StatusCode::Error).then_some(status.message),
        duration_ns: span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
    }
}

fn link(link: &span::Link) -> Link {
    Link { trace_id: hex(&link.trace_id), span_id: hex(&link.span_id) }
}

fn points(data: Data) -> Vec<Point> {
    match data {
        Data::Gauge(gauge) => gauge.data_points.into_iter().map(number).collect(),
        Data::Sum(sum) => sum.data_points.into_iter().map(number).collect(),
        Data::Histogram(histogram) => histogram.data_points.into_iter().map(distribution).collect(),
        // The project uses none of these.
        Data::ExponentialHistogram(_) | Data::Summary(_) => Vec::new(),
    }
}

fn number(point: NumberDataPoint) -> Point {
    #[expect(clippy::cast_precision_loss, reason = "no test counts that far")]
    let value = match point.value {
        Some(PointValue::AsDouble(value)) => value,
        Some(PointValue::AsInt(value)) => value as f64,
        None => f64::NAN,
    };
    Point { attributes: attributes(point.attributes), value: Number(value), count: 1 }
}

fn distribution(point: HistogramDataPoint) -> Point {
    let value = Number(point.sum.unwrap_or(f64::NAN));
    Point { attributes: attributes(point.attributes), value, count: point.count }
}

fn attributes_of(resource: Option<Resource>) -> Attributes {
    attributes(resource.unwrap_or_default().attributes)
}

fn attributes(pairs: Vec<KeyValue>) -> Attributes {
    pairs.into_iter().map(|pair| (pair.key, pair.value.map(text).unwrap_or_default())).collect()
}

fn text(value: AnyValue) -> String {
    match value.value {
        Some(Value::StringValue(value)) => value,
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    }
}

/// Returns an id, or `None` if it is empty.
fn id(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}
