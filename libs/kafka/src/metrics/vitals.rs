use std::sync::{Arc, Mutex, PoisonError, Weak};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};
use rdkafka::Statistics;
use rdkafka::statistics::{Broker as NativeBroker, Window};

/// What librdkafka last said of itself, for as long as its client lives.
///
/// Clients are told apart by `client.id`: who sets one in `kafka.properties` sees only one of them.
#[derive(Debug, Default)]
pub(crate) struct Vitals(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    /// The number of records that wait in a producer's queue, and whose.
    queue: Option<(u64, KeyValue)>,
    brokers: Vec<Broker>,
}

#[derive(Debug)]
struct Broker {
    attributes: [KeyValue; 2],
    /// In seconds; none if nothing was asked of it lately.
    latency: Option<f64>,
    errors: u64,
}

impl Vitals {
    /// Has them looked at whenever metrics are collected.
    pub(crate) fn observed(meter: &Meter) -> Arc<Self> {
        let vitals = Arc::new(Self::default());
        let queue = meter
            .u64_observable_gauge("throughline.kafka.queue.messages")
            .with_unit("{message}")
            .with_description("Records that wait in librdkafka's queue, or for their acknowledgement.");
        let observe = |gauge: &dyn AsyncInstrument<u64>, said: &Said| {
            said.queue.iter().for_each(|(records, client)| {
                gauge.observe(*records, std::slice::from_ref(client));
            });
        };
        // Here and below: the callback stays with the meter.
        queue.with_callback(vitals.told(observe)).build();

        let latency = meter
            .f64_observable_gauge("throughline.kafka.broker.latency")
            .with_unit("s")
            .with_description(
                "Mean time in which a broker has answered; of a consumer, with how long it has waited for records.",
            );
        let observe = |gauge: &dyn AsyncInstrument<f64>, said: &Said| {
            for broker in &said.brokers {
                broker.latency.iter().for_each(|latency| gauge.observe(*latency, &broker.attributes));
            }
        };
        latency.with_callback(vitals.told(observe)).build();

        let errors = meter
            .u64_observable_counter("throughline.kafka.broker.errors")
            .with_unit("{error}")
            .with_description("Errors of transmission to and from a broker, and requests that timed out.");
        let observe = |counter: &dyn AsyncInstrument<u64>, said: &Said| {
            said.brokers.iter().for_each(|broker| counter.observe(broker.errors, &broker.attributes));
        };
        errors.with_callback(vitals.told(observe)).build();
        vitals
    }

    /// A callback that tells an instrument what was said.
    fn told<T: 'static>(
        self: &Arc<Self>,
        observe: impl Fn(&dyn AsyncInstrument<T>, &Said) + Send + Sync + 'static,
    ) -> impl Fn(&dyn AsyncInstrument<T>) + Send + Sync + 'static {
        // A client that is gone has nothing to tell.
        let vitals: Weak<Self> = Arc::downgrade(self);
        move |instrument| {
            if let Some(vitals) = vitals.upgrade() {
                observe(instrument, &vitals.0.lock().unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// Takes what librdkafka says.
    pub(crate) fn note(&self, statistics: &Statistics) {
        let client = KeyValue::new("messaging.client.id", statistics.client_id.clone());
        let is_producer = statistics.client_type == "producer";
        let said = Said {
            queue: is_producer.then(|| (statistics.msg_cnt, client.clone())),
            brokers: statistics
                .brokers
                .values()
                .filter(|broker| is_one(broker))
                .map(|broker| Broker::new(broker, &client))
                .collect(),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = said;
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

/// Whether it is a broker, and not an address to start from, or another name for the group's coordinator.
fn is_one(broker: &NativeBroker) -> bool {
    broker.nodeid >= 0 && broker.source != "logical"
}

#[expect(clippy::cast_precision_loss, reason = "no round trip takes that many microseconds")]
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

    fn said(client_type: &str, brokers: impl IntoIterator<Item = NativeBroker>) -> Statistics {
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
    fn only_brokers_are_told_of_and_only_while_the_client_lives() {
        let measured = Measured::new();
        let vitals = Vitals::observed(&measured.meter());
        assert_eq!(measured.points(QUEUE).unwrap(), []);
        vitals.note(&said(
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
        assert_eq!(measured.points(LATENCY).unwrap().len(), 1, "nobody asked the second one anything");
        assert_eq!(measured.value(ERRORS, &of("2")).unwrap(), 7);
        assert_eq!(measured.points(ERRORS).unwrap().len(), 2);
        assert_eq!(measured.value(QUEUE, &of("1")[..1]).unwrap(), 3);
        vitals.note(&said("consumer", []));
        assert_eq!((measured.points(QUEUE).unwrap(), measured.points(ERRORS).unwrap()), (vec![], vec![]));
        vitals.note(&said("producer", []));
        drop(vitals);
        assert_eq!(measured.points(QUEUE).unwrap(), []);
    }
}
