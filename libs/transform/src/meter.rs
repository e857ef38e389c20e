//! What a run of a filter may use up: steps, time, stack and memory.
//!
//! jaq asks its data for the table of terms whenever it evaluates a term, be it of the filter, of a definition of jaq's
//! or of an argument of a native function; and it asks our [values](crate::value) for whatever is done with them.
//! Both tell the meter of the thread. What is used up ends the run by unwinding, which no `try`, `?` or `//` of a
//! filter catches.

use std::cell::Cell;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::time::Duration;

use tikv_jemalloc_ctl::thread::{ThreadLocal, allocatedp, deallocatedp};
use tokio::time::Instant;

use crate::error::Runaway;

/// The stack of a thread on which filters run. What is not touched of it costs only addresses.
///
/// [`RECURSION`] of it is for evaluation. The rest is for dropping what is nested: a level takes at least 48 bytes of
/// the memory that is bounded, and less than that of stack (without optimisation five times as much).
pub(crate) const STACK: usize = 512 * MIB;
/// How deep evaluation may go: some 70,000 terms within each other, 8,000 without optimisation.
const RECURSION: usize = 32 * MIB;
/// How often the meter is read. Reading it takes as long as half a step.
const INTERVAL: u64 = 16;

pub(crate) const MIB: usize = 1024 * 1024;

/// What one run may use up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) steps: u64,
    pub(crate) time: Duration,
    pub(crate) memory: usize,
}

impl Limits {
    /// What is far more than enough for a body of so many bytes.
    ///
    /// To rebuild each value of a body takes some two steps a byte, a step some 0.1 µs; the time is for machines that
    /// are very busy. Read, a byte of a body can take 50 bytes, and the largest body that fits into a record of Kafka
    /// must not take more than a process has.
    pub(crate) fn for_body(length: usize) -> Self {
        Self {
            steps: 10_000_000 + 10 * length as u64,
            time: Duration::from_secs(30),
            memory: (64 * MIB).saturating_add(length.saturating_mul(24)).min(256 * MIB),
        }
    }
}

/// How a run ended that did not come to its end.
pub(crate) enum Broken {
    RanAway(Runaway),
    Panicked,
}

/// Runs on this thread, which must have [`STACK`] bytes of stack, within the limits.
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
    // What a panic leaves behind is not used again.
    let result = catch_unwind(AssertUnwindSafe(run));
    METER.with(|meter| meter.reading.set(None));
    result.map_err(|panic| match panic.downcast::<Runaway>() {
        Ok(runaway) => Broken::RanAway(*runaway),
        Err(_) => Broken::Panicked,
    })
}

/// Tells the meter of one step.
pub(crate) fn step() {
    METER.with(|meter| {
        let steps = meter.steps.get() + 1;
        meter.steps.set(steps);
        if steps.is_multiple_of(INTERVAL) {
            meter.read(0);
        }
    });
}

/// Tells the meter that so many bytes are about to be taken, or may be taken in a single step.
pub(crate) fn room(bytes: usize) {
    if bytes > 4096 {
        METER.with(|meter| meter.read(bytes));
    }
}

/// Ends the run. The panic hook hears nothing of it.
pub(crate) fn end(runaway: Runaway) -> ! {
    resume_unwind(Box::new(runaway))
}

thread_local! {
    static METER: Meter = const { Meter { steps: Cell::new(0), reading: Cell::new(None) } };
}

struct Meter {
    steps: Cell<u64>,
    /// While a filter runs.
    reading: Cell<Option<Reading>>,
}

#[derive(Clone, Copy)]
struct Reading {
    limits: Limits,
    deadline: Instant,
    /// Where the stack was at the beginning.
    stack: usize,
    heap: Heap,
    /// What the thread held at the beginning.
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

/// Roughly where the top of the stack is.
fn stack_pointer() -> usize {
    let top = 0_u8;
    ptr::from_ref(black_box(&top)).addr()
}

/// What a thread holds, as its allocator counts it.
#[derive(Clone, Copy)]
struct Heap {
    allocated: ThreadLocal<u64>,
    deallocated: ThreadLocal<u64>,
}

impl Heap {
    /// Nothing if the allocator of the process is another one, which counts nothing.
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
