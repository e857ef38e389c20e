use opentelemetry::metrics::Meter;
use opentelemetry_semantic_conventions::metric::PROCESS_UPTIME;
use tokio::runtime::{Handle, RuntimeMetrics};
use tokio::time::Instant;

/// Exports metrics of the process and its runtime. They are observed at each export, on its thread.
pub(crate) fn show(meter: &Meter, runtime: &Handle) {
    show_runtime(meter, runtime.metrics());
    show_uptime(meter);
    #[cfg(target_os = "linux")]
    linux::show(meter);
}

fn show_runtime(meter: &Meter, runtime: RuntimeMetrics) {
    let of = runtime.clone();
    meter
        .u64_observable_gauge("tokio.runtime.workers")
        .with_unit("{worker}")
        .with_description("Threads that run tasks.")
        .with_callback(move |gauge| gauge.observe(of.num_workers() as u64, &[]))
        .build();
    let of = runtime.clone();
    meter
        .u64_observable_gauge("tokio.runtime.alive_tasks")
        .with_unit("{task}")
        .with_description("Tasks that have not ended.")
        .with_callback(move |gauge| gauge.observe(of.num_alive_tasks() as u64, &[]))
        .build();
    let of = runtime.clone();
    meter
        .u64_observable_gauge("tokio.runtime.global_queue_depth")
        .with_unit("{task}")
        .with_description("Tasks that wait for a worker.")
        .with_callback(move |gauge| gauge.observe(of.global_queue_depth() as u64, &[]))
        .build();
    meter
        .f64_observable_counter("tokio.runtime.busy")
        .with_unit("s")
        .with_description("Total time for which workers were busy.")
        .with_callback(move |counter| {
            let workers = 0..runtime.num_workers();
            let busy = workers.map(|worker| runtime.worker_total_busy_duration(worker).as_secs_f64());
            counter.observe(busy.sum(), &[]);
        })
        .build();
}

fn show_uptime(meter: &Meter) {
    let started = Instant::now();
    meter
        .f64_observable_gauge(PROCESS_UPTIME)
        .with_unit("s")
        .with_description("Time since the start of the process.")
        .with_callback(move |gauge| gauge.observe(started.elapsed().as_secs_f64(), &[]))
        .build();
}

/// Metrics from `/proc/self`. Unreadable values are omitted.
#[cfg(target_os = "linux")]
mod linux {
    use opentelemetry::KeyValue;
    use opentelemetry::metrics::Meter;
    use opentelemetry_semantic_conventions::attribute::CPU_MODE;
    use opentelemetry_semantic_conventions::metric::{
        PROCESS_CPU_TIME, PROCESS_MEMORY_USAGE, PROCESS_THREAD_COUNT,
    };
    use procfs::process::{Process, Stat};

    pub(super) fn show(meter: &Meter) {
        meter
            .f64_observable_counter(PROCESS_CPU_TIME)
            .with_unit("s")
            .with_description("Processor time, by mode.")
            .with_callback(|counter| {
                let Some(stat) = stat() else { return };
                for (mode, ticks) in [("user", stat.utime), ("system", stat.stime)] {
                    counter.observe(seconds(ticks), &[KeyValue::new(CPU_MODE, mode)]);
                }
            })
            .build();
        meter
            .i64_observable_up_down_counter(PROCESS_MEMORY_USAGE)
            .with_unit("By")
            .with_description("Resident memory.")
            .with_callback(|counter| {
                let bytes = stat().map(|stat| stat.rss.saturating_mul(procfs::page_size()));
                if let Some(Ok(bytes)) = bytes.map(i64::try_from) {
                    counter.observe(bytes, &[]);
                }
            })
            .build();
        meter
            .i64_observable_up_down_counter(PROCESS_THREAD_COUNT)
            .with_unit("{thread}")
            .with_description("Threads.")
            .with_callback(|counter| {
                if let Some(stat) = stat() {
                    counter.observe(stat.num_threads, &[]);
                }
            })
            .build();
        meter
            .i64_observable_up_down_counter("process.open_file_descriptor.count")
            .with_unit("{file_descriptor}")
            .with_description("Open file descriptors.")
            .with_callback(|counter| {
                let count = Process::myself().and_then(|process| process.fd_count());
                if let Ok(Ok(count)) = count.map(i64::try_from) {
                    counter.observe(count, &[]);
                }
            })
            .build();
    }

    fn stat() -> Option<Stat> {
        Process::myself().ok()?.stat().ok()
    }

    #[expect(clippy::cast_precision_loss, reason = "it is exact for thousands of years")]
    fn seconds(ticks: u64) -> f64 {
        ticks as f64 / procfs::ticks_per_second() as f64
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use throughline_testkit::{Measured, Number};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn the_runtime_is_measured() {
        let measured = Measured::new();
        show(&measured.meter(), &Handle::current());
        let waiting = tokio::spawn(pending::<()>());
        tokio::task::yield_now().await;
        assert_eq!(measured.value("tokio.runtime.workers", &[]).unwrap(), 3);
        assert!(measured.value("tokio.runtime.alive_tasks", &[]).unwrap() >= Number(1.0));
        assert_eq!(measured.value("tokio.runtime.global_queue_depth", &[]).unwrap(), 0);
        assert!(measured.value("tokio.runtime.busy", &[]).unwrap() > Number(0.0));
        assert!(measured.value("process.uptime", &[]).unwrap() > Number(0.0));
        waiting.abort();
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_process_is_measured() {
        let measured = Measured::new();
        show(&measured.meter(), &Handle::current());
        let value = |name, attributes: &[_]| measured.value(name, attributes).unwrap();
        let used = value("process.cpu.time", &[("cpu.mode", "user")]);
        assert!(used >= Number(0.0) && used < Number(3600.0), "{used:?}");
        value("process.cpu.time", &[("cpu.mode", "system")]);
        let memory = value("process.memory.usage", &[]);
        assert!(memory > Number(1e6) && memory < Number(1e10), "{memory:?}");
        assert!(value("process.thread.count", &[]) > Number(1.0));
        let _files: Vec<_> = (0..100).map(|_| tempfile::tempfile().unwrap()).collect();
        assert!(value("process.open_file_descriptor.count", &[]) > Number(100.0));
        let units = measured.units().unwrap();
        assert_eq!((&*units["process.memory.usage"], &*units["process.cpu.time"]), ("By", "s"));
    }
}
