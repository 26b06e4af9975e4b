//! `crate::sync` of the rooms under test: loom's atomics. Before each step on a 64-bit one, its process may die.

use crate::death;
pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, Ordering, fence};
pub(crate) use loom::thread::yield_now;

#[derive(Debug)]
pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64);

impl AtomicU64 {
    pub(crate) fn new(value: u64) -> AtomicU64 {
        AtomicU64(loom::sync::atomic::AtomicU64::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> u64 {
        death::step();
        self.0.load(order)
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        death::step();
        self.0.store(value, order);
    }

    pub(crate) fn swap(&self, value: u64, order: Ordering) -> u64 {
        death::step();
        self.0.swap(value, order)
    }

    pub(crate) fn fetch_add(&self, more: u64, order: Ordering) -> u64 {
        death::step();
        self.0.fetch_add(more, order)
    }

    pub(crate) fn fetch_update(&self, set: Ordering, fetch: Ordering, change: impl FnMut(u64) -> Option<u64>) -> Result<u64, u64> {
        death::step();
        self.0.fetch_update(set, fetch, change)
    }

    pub(crate) fn compare_exchange(&self, from: u64, to: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        death::step();
        self.0.compare_exchange(from, to, success, failure)
    }

    /// The newest value, as nobody's step. What follows it up to the next step of anybody sees the same instant.
    pub(crate) fn newest(&self) -> u64 {
        self.0.fetch_add(0, Ordering::AcqRel)
    }
}
