use std::sync::{Arc, Mutex, PoisonError, Weak};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use rdkafka::Statistics;
use rdkafka::statistics::{Broker as NativeBroker, Window};

/// The latest statistics of librdkafka, for as long as its client lives.
///
/// Clients are distinguished by `client.id`: if `kafka.properties` sets one for all, only one of them is visible.
#[derive(Debug, Default)]
pub(crate) struct ClientStats(Mutex<Report>);

#[derive(Debug, Default)]
struct Report {
    /// The number of records that wait in a producer's queue, with the attribute of its client.
    queue: Option<(u64, KeyValue)>,
    brokers: Vec<Broker>,
}

#[derive(Debug)]
struct Broker {
    attributes: [KeyValue; 2],
    /// In seconds; none if there was no recent request.
    latency: Option<f64>,
    errors: u64,
}

impl ClientStats {
    /// Creates statistics that are read whenever metrics are collected.
    pub(crate) fn observed(meter: &Meter) -> Arc<Self> {
        let client_stats = Arc::new(Self::default());
        let queue = meter
            .u64_observable_gauge("throughline.kafka.queue.messages")
            .with_unit("{message}")
            .with_description("Records that wait in librdkafka's queue or for their acknowledgement.");
        let observe = |gauge: &dyn AsyncInstrument<u64>, report: &Report| {
            report.queue.iter().for_each(|(records, client)| {
                gauge.observe(*records, std::slice::from_ref(client));
            });
        };
        // Here and below: the meter owns the callback.
        queue.with_callback(client_stats.callback(observe)).build();

        let latency =
            meter.f64_observable_gauge("throughline.kafka.broker.latency").with_unit("s").with_description(
                "Mean response time of a broker; for a consumer, including its wait for records.",
            );
        let observe = |gauge: &dyn AsyncInstrument<f64>, report: &Report| {
            for broker in &report.brokers {
                broker.latency.iter().for_each(|latency| gauge.observe(*latency, &broker.attributes));
            }
        };
        latency.with_callback(client_stats.callback(observe)).build();

        let errors = meter
            .u64_observable_counter("throughline.kafka.broker.errors")
            .with_unit("{error}")
            .with_description("Transmission errors to and from a broker, and requests that timed out.");
        let observe = |counter: &dyn AsyncInstrument<u64>, report: &Report| {
            report.brokers.iter().for_each(|broker| counter.observe(broker.errors, &broker.attributes));
        };
        errors.with_callback(client_stats.callback(observe)).build();
        client_stats
    }

    /// Returns a callback that reports the latest statistics to an instrument.
    fn callback<T: 'static>(
        self: &Arc<Self>,
        observe: impl Fn(&dyn AsyncInstrument<T>, &Report) + Send + Sync + 'static,
    ) -> impl Fn(&dyn AsyncInstrument<T>) + Send + Sync + 'static {
        // Weak, because a client that was dropped has nothing to report.
        let client_stats: Weak<Self> = Arc::downgrade(self);
        move |instrument| {
            if let Some(client_stats) = client_stats.upgrade() {
                observe(instrument, &client_stats.0.lock().unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// Stores librdkafka's statistics.
    pub(crate) fn note(&self, statistics: &Statistics) {
        let client = KeyValue::new("messaging.client.id", statistics.client_id.clone());
        let is_producer = statistics.client_type == "producer";
        let report = Report {
            queue: is_producer.then(|| (statistics.msg_cnt, client.clone())),
            brokers: statistics
                .brokers
                .values()
                .filter(|broker| is_one(broker))
                .map(|broker| Broker::new(broker, &client))
                .collect(),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = report;
    }
}

impl Broker {
    fn new(native: &NativeBroker, client: &KeyValue) -> Self {
        let id = KeyValue::new("messaging.kafka.broker.id", native.nodeid.to_string());
        Self {
            attributes: [client.clone(), id],
            latency: native.rtt.as_ref().filter(|rtt| rtt.cnt > 0).map(mean_in_seconds),
            errors: native.txerrs + native.rxerrs + native.req_timeouts,
        }
    }
}

/// Returns whether it is a broker, and not an address to start from or an alias of the group's coordinator.
fn is_one(broker: &NativeBroker) -> bool {
    broker.nodeid >= 0 && broker.source != "logical"
}

#[expect(clippy::cast_precision_loss, reason = "no round trip takes so long")]
fn mean_in_seconds(window: &Window) -> f64 {
    window.avg as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use throughline_testkit::Measured;

    use super::*;

    const ERRORS: &str = "throughline.kafka.broker.errors";
    const LATENCY: &str = "throughline.kafka.broker.latency";
    const QUEUE: &str = "throughline.kafka.queue.messages";

    fn broker(nodeid: i32, source: &str, micros: &[i64]) -> NativeBroker {
        let (sum, cnt) = (micros.iter().sum::<i64>(), i64::try_from(micros.len()).unwrap());
        let rtt = Window { avg: sum / cnt.max(1), sum, cnt, ..Window::default() };
        let (txerrs, rxerrs, req_timeouts) = (1, 2, 4);
        let source = source.to_owned();
        NativeBroker {
            nodeid,
            source,
            txerrs,
            rxerrs,
            req_timeouts,
            rtt: Some(rtt),
            ..NativeBroker::default()
        }
    }

    fn report(client_type: &str, brokers: impl IntoIterator<Item = NativeBroker>) -> Statistics {
        let name = |(index, broker): (usize, NativeBroker)| (index.to_string(), broker);
        Statistics {
            client_id: "me".to_owned(),
            client_type: client_type.to_owned(),
            msg_cnt: 3,
            brokers: brokers.into_iter().enumerate().map(name).collect(),
            ..Statistics::default()
        }
    }

    #[test]
    fn only_brokers_are_measured_and_only_while_the_client_exists() {
        let measured = Measured::new();
        let client_stats = ClientStats::observed(&measured.meter());
        assert_eq!(measured.points(QUEUE).unwrap(), []);
        client_stats.note(&report(
            "producer",
            [
                broker(-1, "configured", &[1]),
                broker(1, "learned", &[1_000_000, 2_000_000]),
                broker(2, "learned", &[]),
                broker(3, "logical", &[1]),
            ],
        ));
        let of = |id| [("messaging.client.id", "me"), ("messaging.kafka.broker.id", id)];
        assert_eq!(measured.value(LATENCY, &of("1")).unwrap(), 1.5);
        assert_eq!(measured.points(LATENCY).unwrap().len(), 1, "the second one got no request");
        assert_eq!(measured.value(ERRORS, &of("2")).unwrap(), 7);
        assert_eq!(measured.points(ERRORS).unwrap().len(), 2);
        assert_eq!(measured.value(QUEUE, &of("1")[..1]).unwrap(), 3);
        client_stats.note(&report("consumer", []));
        assert_eq!((measured.points(QUEUE).unwrap(), measured.points(ERRORS).unwrap()), (vec![], vec![]));
        client_stats.note(&report("producer", []));
        drop(client_stats);
        assert_eq!(measured.points(QUEUE).unwrap(), []);
    }
}
