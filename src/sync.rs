//! Atomics, locks and conditions, from one place, so that a model checker can take it over.
//!
//! The locks are those of `std`: on Linux a futex word and nothing else. `parking_lot` keeps a process-wide table whose buckets a
//! forked child may inherit locked; a child that contends on a *fresh* lock then hangs (`tests/fork_locks.rs`).

pub(crate) use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
pub(crate) use std::thread::yield_now;

#[cfg_attr(nearfile_tsan, path = "sync/seen.rs")]
#[cfg_attr(not(nearfile_tsan), path = "sync/locks.rs")] // said for benches/rooms.rs, which has this file elsewhere in its tree
mod locks;
pub(crate) use locks::{Condvar, Guard, Mutex};

/// What many threads count at once is counted in so many places, each on a cache line of its own.
pub(crate) const STRIPES: usize = 8;

/// The place in which this thread counts.
#[inline]
pub(crate) fn stripe_of_thread() -> usize {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    thread_local!(static MINE: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) });
    MINE.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) as usize % STRIPES);
        }
        mine.get()
    })
}
