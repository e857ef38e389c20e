use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;
use opentelemetry_semantic_conventions::attribute::ERROR_TYPE;

use crate::signal::Signal;

const DROPPED: &str = "throughline.telemetry.dropped";
const SIGNAL: &str = "throughline.signal";

/// The books on one signal: what waits for export, and what was dropped.
///
/// The SDK drops what does not fit into its queue, and says nothing. So nothing gets there that does not
/// fit: what is admitted here waits in the queue, or is just about to, or has just left it.
#[derive(Debug)]
pub(crate) struct Ledger {
    signal: Signal,
    /// How many may wait.
    room: usize,
    waiting: AtomicUsize,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl Ledger {
    pub(crate) fn new(signal: Signal, room: usize) -> Arc<Self> {
        Arc::new(Self {
            signal,
            room,
            waiting: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    pub(crate) fn signal(&self) -> Signal {
        self.signal
    }

    /// Whether there is room for one more to wait; if not, it is dropped.
    pub(crate) fn admits(&self) -> bool {
        let is_admitted = self.waiting.fetch_add(1, Ordering::Acquire) < self.room;
        if !is_admitted {
            self.waiting.fetch_sub(1, Ordering::Release);
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        is_admitted
    }

    /// So many wait no longer: an export has begun.
    pub(crate) fn left(&self, count: usize) {
        self.waiting.fetch_sub(count, Ordering::Release);
    }

    /// So many were in an export that failed.
    pub(crate) fn failed(&self, count: usize) {
        self.failed.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Shows in the metrics what was dropped. There is a zero for what was not, so that the first is seen to come.
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
