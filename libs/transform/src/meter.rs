//! Limits on the steps, time, stack and memory of a filter's run.
//!
//! jaq requests the table of terms whenever it evaluates a term of the filter, of one of jaq's definitions or of an
//! argument of a native function, and it calls our [values](crate::value) for every operation on them. Both report to
//! the meter of the thread. A run that exceeds a limit ends by unwinding, which no `try`, `?` or `//` of a filter
//! catches.

use std::cell::Cell;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::time::Duration;

use tikv_jemalloc_ctl::thread::{ThreadLocal, allocatedp, deallocatedp};
use tokio::time::Instant;

use crate::error::Runaway;

/// The stack size of a filter thread. Untouched stack costs only address space.
///
/// [`RECURSION`] bytes of it are for evaluation. The rest is for dropping nested values: a level takes at least 48
/// bytes of the limited memory, and less than that of stack (without optimisation five times as much).
pub(crate) const STACK: usize = 512 * MIB;
/// The maximum stack that evaluation uses: about 70,000 nested terms, or 8,000 without optimisation.
const RECURSION: usize = 32 * MIB;
/// The number of steps between two readings of the meter. A reading takes as long as half a step.
const INTERVAL: u64 = 16;

pub(crate) const MIB: usize = 1024 * 1024;

/// The limits of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) steps: u64,
    pub(crate) time: Duration,
    pub(crate) memory: usize,
}

impl Limits {
    /// Returns limits far above the needs of a body of this many bytes.
    ///
    /// Rebuilding each value of a body takes about two steps per byte, and a step about 0.1 µs; the time limit is set
    /// for very busy machines. A byte of a body can take 50 bytes of memory once parsed, and the largest body that
    /// fits into a Kafka record must not exceed the memory of a process.
    pub(crate) fn for_body(length: usize) -> Self {
        Self {
            steps: 10_000_000 + 10 * length as u64,
            time: Duration::from_secs(30),
            memory: (64 * MIB).saturating_add(length.saturating_mul(24)).min(256 * MIB),
        }
    }
}

/// Why a run ended early.
pub(crate) enum Broken {
    RanAway(Runaway),
    Panicked,
}

/// Runs within the limits on the current thread, which must have [`STACK`] bytes of stack.
pub(crate) fn run<T>(limits: Limits, run: impl FnOnce() -> T) -> Result<T, Broken> {
    let heap = Heap::of_this_thread().ok_or(Broken::RanAway(Runaway::Unmeasured))?;
    let reading = Reading {
        limits,
        deadline: Instant::now() + limits.time,
        stack: stack_pointer(),
        heap,
        held: heap.held(),
    };
    METER.with(|meter| {
        meter.steps.set(0);
        meter.reading.set(Some(reading));
    });
    // State that a panic leaves behind is not used again.
    let result = catch_unwind(AssertUnwindSafe(run));
    METER.with(|meter| meter.reading.set(None));
    result.map_err(|panic| match panic.downcast::<Runaway>() {
        Ok(runaway) => Broken::RanAway(*runaway),
        Err(_) => Broken::Panicked,
    })
}

/// Counts one step.
pub(crate) fn step() {
    METER.with(|meter| {
        let steps = meter.steps.get() + 1;
        meter.steps.set(steps);
        if steps.is_multiple_of(INTERVAL) {
            meter.read(0);
        }
    });
}

/// Tells the meter that this many bytes are about to be allocated, or may be allocated in a single step.
pub(crate) fn reserve(bytes: usize) {
    if bytes > 4096 {
        METER.with(|meter| meter.read(bytes));
    }
}

/// Terminates the run. The panic hook is not called.
pub(crate) fn end(runaway: Runaway) -> ! {
    resume_unwind(Box::new(runaway))
}

thread_local! {
    static METER: Meter = const { Meter { steps: Cell::new(0), reading: Cell::new(None) } };
}

struct Meter {
    steps: Cell<u64>,
    /// Set while a filter runs.
    reading: Cell<Option<Reading>>,
}

#[derive(Clone, Copy)]
struct Reading {
    limits: Limits,
    deadline: Instant,
    /// The stack pointer when the run started.
    stack: usize,
    heap: Heap,
    /// The bytes that the thread held when the run started.
    held: u64,
}

impl Meter {
    fn read(&self, more: usize) {
        let Some(Reading { limits, deadline, stack, heap, held }) = self.reading.get() else { return };
        // A thread that frees more than it takes has negative growth.
        let grown = usize::try_from(heap.held().wrapping_sub(held).cast_signed()).unwrap_or(0);
        if self.steps.get() > limits.steps {
            end(Runaway::Steps(limits.steps));
        }
        if stack.abs_diff(stack_pointer()) > RECURSION {
            end(Runaway::Recursion);
        }
        if grown.saturating_add(more) > limits.memory {
            end(Runaway::Memory(limits.memory / MIB));
        }
        if Instant::now() > deadline {
            end(Runaway::Time(limits.time));
        }
    }
}

/// Returns the approximate address of the top of the stack.
fn stack_pointer() -> usize {
    let top = 0_u8;
    ptr::from_ref(black_box(&top)).addr()
}

/// The memory of a thread, as counted by its allocator.
#[derive(Clone, Copy)]
struct Heap {
    allocated: ThreadLocal<u64>,
    deallocated: ThreadLocal<u64>,
}

impl Heap {
    /// Returns `None` if the process uses another allocator, which counts nothing.
    fn of_this_thread() -> Option<Self> {
        let heap = Self { allocated: allocatedp::read().ok()?, deallocated: deallocatedp::read().ok()? };
        let before = heap.allocated.get();
        drop(black_box(Box::new(before)));
        (heap.allocated.get() != before).then_some(heap)
    }

    fn held(self) -> u64 {
        self.allocated.get().wrapping_sub(self.deallocated.get())
    }
}
