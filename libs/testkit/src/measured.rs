use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider as _, NoopMeterProvider};
use opentelemetry_sdk::metrics::data::{
    AggregatedMetrics, Metric, MetricData, ResourceMetrics, ScopeMetrics,
};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};

/// Longer than any test: measurements are collected on demand.
const NEVER: Duration = Duration::from_hours(1);

/// Keeps all measurements of its meter.
#[derive(Debug)]
pub struct Measured {
    provider: SdkMeterProvider,
    exporter: InMemoryMetricExporter,
}

/// The measurements of one metric with the same attributes.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Its attributes, as text.
    pub attributes: BTreeMap<String, String>,
    /// The value; for a histogram, the sum.
    pub value: Number,
    /// For a histogram, the number of measurements; otherwise 1.
    pub count: u64,
}

/// A measured number. Tests compare it with whole numbers, or with numbers that floating point represents exactly.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Number(pub f64);

impl Point {
    /// Whether the point has at least these attributes.
    #[must_use]
    pub fn has(&self, attributes: &[(&str, &str)]) -> bool {
        attributes.iter().all(|(key, value)| self.attributes.get(*key).is_some_and(|it| it == value))
    }

    pub(crate) fn sum<'a>(points: impl IntoIterator<Item = &'a Self>) -> Number {
        Number(points.into_iter().map(|point| point.value.0).sum())
    }
}

impl PartialEq<i32> for Number {
    fn eq(&self, other: &i32) -> bool {
        *self == Self(f64::from(*other))
    }
}

impl PartialEq<f64> for Number {
    fn eq(&self, other: &f64) -> bool {
        *self == Self(*other)
    }
}

/// Returns a meter that records nothing.
#[must_use]
pub fn unmeasured() -> Meter {
    NoopMeterProvider::new().meter("unmeasured")
}

impl Measured {
    /// Creates an instance without measurements.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a value that is not measured with is useless")]
    pub fn new() -> Self {
        let exporter = InMemoryMetricExporter::default();
        let reader = PeriodicReader::builder(exporter.clone()).with_interval(NEVER).build();
        Self { provider: SdkMeterProvider::builder().with_reader(reader).build(), exporter }
    }

    /// Returns the meter.
    #[must_use]
    pub fn meter(&self) -> Meter {
        self.provider.meter("test")
    }

    /// Returns the sum of all points of a metric with at least these attributes.
    ///
    /// # Errors
    /// If there are no such points.
    pub fn value(&self, name: &str, attributes: &[(&str, &str)]) -> anyhow::Result<Number> {
        Ok(Point::sum(&self.such(name, attributes)?))
    }

    /// Returns the number of measurements in a histogram with at least these attributes.
    ///
    /// # Errors
    /// If there are no such measurements.
    pub fn count(&self, name: &str, attributes: &[(&str, &str)]) -> anyhow::Result<u64> {
        Ok(self.such(name, attributes)?.iter().map(|point| point.count).sum())
    }

    /// Returns all points of a metric.
    ///
    /// # Errors
    /// If the metrics cannot be collected.
    pub fn points(&self, name: &str) -> anyhow::Result<Vec<Point>> {
        self.look(|metrics| metrics.filter(|metric| metric.name() == name).flat_map(points).collect())
    }

    /// Returns the names of all metrics measured so far, with their units.
    ///
    /// # Errors
    /// If the metrics cannot be collected.
    pub fn units(&self) -> anyhow::Result<BTreeMap<String, String>> {
        self.look(|metrics| {
            metrics.map(|metric| (metric.name().to_owned(), metric.unit().to_owned())).collect()
        })
    }

    fn such(&self, name: &str, attributes: &[(&str, &str)]) -> anyhow::Result<Vec<Point>> {
        let all = self.points(name)?;
        let such: Vec<Point> = all.iter().filter(|point| point.has(attributes)).cloned().collect();
        ensure!(!such.is_empty(), "nothing was measured as {name} with {attributes:?}, but {all:?}");
        Ok(such)
    }

    fn look<T: Default>(
        &self,
        see: impl FnOnce(&mut dyn Iterator<Item = &Metric>) -> T,
    ) -> anyhow::Result<T> {
        self.exporter.reset();
        self.provider.force_flush()?;
        let collected = self.exporter.get_finished_metrics()?;
        let Some(last) = collected.last() else { return Ok(T::default()) };
        Ok(see(&mut metrics(last)))
    }
}

fn metrics(collected: &ResourceMetrics) -> impl Iterator<Item = &Metric> {
    collected.scope_metrics().flat_map(ScopeMetrics::metrics)
}

fn points(metric: &Metric) -> Vec<Point> {
    #[expect(clippy::cast_precision_loss, reason = "no test counts that far")]
    match metric.data() {
        AggregatedMetrics::F64(data) => points_of(data, |value| value),
        AggregatedMetrics::I64(data) => points_of(data, |value| value as f64),
        AggregatedMetrics::U64(data) => points_of(data, |value| value as f64),
    }
}

fn points_of<T: Copy>(data: &MetricData<T>, number: impl Fn(T) -> f64) -> Vec<Point> {
    match data {
        MetricData::Gauge(gauge) => {
            gauge.data_points().map(|it| point(it.attributes(), number(it.value()), 1)).collect()
        }
        MetricData::Sum(sum) => {
            sum.data_points().map(|it| point(it.attributes(), number(it.value()), 1)).collect()
        }
        MetricData::Histogram(histogram) => {
            histogram.data_points().map(|it| point(it.attributes(), number(it.sum()), it.count())).collect()
        }
        // The project uses none of these.
        MetricData::ExponentialHistogram(_) => Vec::new(),
    }
}

fn point<'a>(attributes: impl Iterator<Item = &'a KeyValue>, value: f64, count: u64) -> Point {
    let attributes = attributes.map(|it| (it.key.to_string(), it.value.to_string())).collect();
    Point { attributes, value: Number(value), count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_can_be_read_back() {
        let measured = Measured::new();
        let meter = measured.meter();
        let attempts = meter.u64_counter("attempts").with_unit("{attempt}").build();
        for (destination, outcome) in
            [("three", "dead"), ("three", "dead"), ("four", "dead"), ("three", "ok")]
        {
            let attributes = [KeyValue::new("destination", destination), KeyValue::new("outcome", outcome)];
            attempts.add(1, &attributes);
        }
        let (three, dead) = (("destination", "three"), ("outcome", "dead"));
        assert_eq!(measured.value("attempts", &[three, dead]).unwrap(), 2);
        assert_eq!(measured.value("attempts", &[dead]).unwrap(), 3);
        assert_eq!(measured.points("attempts").unwrap().len(), 3);
        let error = measured.value("attempts", &[("outcome", "late")]).unwrap_err().to_string();
        assert!(error.contains("four"), "{error}");

        let duration = meter.f64_histogram("duration").with_unit("s").build();
        duration.record(0.5, &[]);
        duration.record(0.25, &[]);
        assert_eq!(measured.value("duration", &[]).unwrap(), 0.75);
        assert_eq!(measured.count("duration", &[]).unwrap(), 2);
        let units = [("attempts", "{attempt}"), ("duration", "s")];
        assert_eq!(measured.units().unwrap(), units.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn nothing_measured_is_an_error_and_an_observed_value_is_the_newest() {
        let measured = Measured::new();
        assert!(measured.value("depth", &[]).is_err());
        let depth = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(3));
        let observed = std::sync::Arc::clone(&depth);
        let _gauge = measured
            .meter()
            .i64_observable_gauge("depth")
            .with_callback(move |gauge| {
                gauge.observe(observed.load(std::sync::atomic::Ordering::Relaxed), &[]);
            })
            .build();
        assert_eq!(measured.value("depth", &[]).unwrap(), 3);
        depth.store(-1, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(measured.value("depth", &[]).unwrap(), -1);
    }
}
