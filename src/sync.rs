//! Atomics, locks and conditions, from one place, so that a model checker can take it over.
//!
//! The locks are those of `std`: on Linux a futex word and nothing else. `parking_lot` keeps a process-wide table whose buckets a
//! forked child may inherit locked; a child that contends on a *fresh* lock then hangs (`tests/fork_locks.rs`).

pub(crate) use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{MutexGuard, PoisonError};
pub(crate) use std::thread::yield_now;
use std::time::Duration;

/// A lock without poison: what it guards is made whole before anything that can panic.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A condition over a [`Mutex`].
#[derive(Debug, Default)]
pub(crate) struct Condvar(std::sync::Condvar);

impl Condvar {
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wait_for<'a, T>(&self, guard: MutexGuard<'a, T>, time: Duration) -> MutexGuard<'a, T> {
        self.0.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

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
