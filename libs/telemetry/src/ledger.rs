use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use opentelemetry_semantic_conventions::attribute::ERROR_TYPE;

use crate::signal::Signal;

const DROPPED: &str = "throughline.telemetry.dropped";
const SIGNAL: &str = "throughline.signal";

/// Counts the queued and the dropped items of one signal.
///
/// The SDK silently drops items that do not fit into its queue. So only items that fit are passed to it: an admitted
/// item is in the queue, about to enter it, or has just left it.
#[derive(Debug)]
pub(crate) struct Ledger {
    signal: Signal,
    /// Maximum number of queued items.
    most: usize,
    waiting: AtomicUsize,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl Ledger {
    pub(crate) fn new(signal: Signal, most: usize) -> Arc<Self> {
        Arc::new(Self {
            signal,
            most,
            waiting: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    pub(crate) fn signal(&self) -> Signal {
        self.signal
    }

    /// Whether another item fits into the queue; if not, it is dropped.
    pub(crate) fn admits(&self) -> bool {
        let is_admitted = self.waiting.fetch_add(1, Ordering::Acquire) < self.most;
        if !is_admitted {
            self.waiting.fetch_sub(1, Ordering::Release);
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        is_admitted
    }

    /// Records that `count` items have left the queue because an export has begun.
    pub(crate) fn left(&self, count: usize) {
        self.waiting.fetch_sub(count, Ordering::Release);
    }

    /// Records that an export of `count` items failed.
    pub(crate) fn failed(&self, count: usize) {
        self.failed.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Exports the number of dropped items as a metric. Counts of zero are exported too, so that the first drop shows as
/// an increase.
pub(crate) fn show<const N: usize>(ledgers: [Arc<Ledger>; N], meter: &Meter) {
    let attributes = |ledger: &Ledger, reason| {
        [KeyValue::new(SIGNAL, ledger.signal.name()), KeyValue::new(ERROR_TYPE, reason)]
    };
    meter
        .u64_observable_counter(DROPPED)
        .with_unit("{item}")
        .with_description("Spans, log records and metrics that were not exported.")
        .with_callback(move |counter| {
            for ledger in &ledgers {
                let (refused, failed) = (&ledger.refused, &ledger.failed);
                counter.observe(refused.load(Ordering::Relaxed), &attributes(ledger, "queue_full"));
                counter.observe(failed.load(Ordering::Relaxed), &attributes(ledger, "export_failed"));
            }
        })
        .build();
}
