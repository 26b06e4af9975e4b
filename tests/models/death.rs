//! Processes that die between any two of their steps, and the locks that the kernel frees for them.

use loom::sync::atomic::{AtomicBool, Ordering};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

loom::thread_local! {
    /// The steps that this thread's process has left; `None`: it lives for ever.
    static LEFT: Cell<Option<u32>> = Cell::new(None);
}

struct Died;

/// One step of this thread's process is about to be done.
pub(crate) fn step() {
    match LEFT.with(Cell::get) {
        Some(0) => resume_unwind(Box::new(Died)),
        Some(left) => LEFT.with(|cell| cell.set(Some(left - 1))),
        None => {}
    }
}

/// A process that dies after so many steps, if it has more. Returns whether it died; whoever called is the kernel.
pub(crate) fn dies_after(steps: u32, life: impl FnOnce()) -> bool {
    LEFT.with(|cell| cell.set(Some(steps)));
    let ended = catch_unwind(AssertUnwindSafe(life));
    LEFT.with(|cell| cell.set(None));
    match ended {
        Ok(()) => false,
        Err(panic) if panic.is::<Died>() => true,
        Err(panic) => resume_unwind(panic),
    }
}

/// A lock of the kernel's: tried, never waited for.
#[derive(Debug)]
pub(crate) struct Lock(AtomicBool);

pub(crate) struct Held<'a>(&'a Lock);

impl Lock {
    pub(crate) fn new() -> Lock {
        Lock(AtomicBool::new(false))
    }

    pub(crate) fn try_hold(&self) -> Option<Held<'_>> {
        self.0.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).ok().map(|_| Held(self))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0.0.store(false, Ordering::Release);
        }
    }
}
