//! The arithmetic of a budget: bytes within a limit, and the slot that answers for a process which dies with some. It stands on atomics
//! alone, so that a model checker runs these very lines (`tests/models`).
//!
//! Invariants, at every step of every process, however many of them die there:
//! 1. Used bytes are at least what pages and slots hold together, and at most the limit.
//! 2. What a dead process had is given back at most once; where it died between two steps it may be given back too little, and then its
//!    slot was taken, which has the bytes counted anew.

use crate::sync::{AtomicU64, Ordering};

/// The words of a slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot<'a> {
    /// Bytes that no page holds yet.
    pub(crate) reserved: &'a AtomicU64,
    /// Bytes that the private pairs of its process hold.
    pub(crate) private: &'a AtomicU64,
    /// Not 0 while a process has the slot, and after it died with it.
    pub(crate) taken: &'a AtomicU64,
}

impl Slot<'_> {
    /// Whether there is something for [`Slot::empty`] to do.
    pub(crate) fn holds(self) -> bool {
        [self.reserved, self.private, self.taken].iter().any(|word| word.load(Ordering::Acquire) != 0)
    }

    /// Gives back what a dead process left, once `recount` has noted that it may be too little. The caller has the slot's lock.
    pub(crate) fn empty(self, used: &AtomicU64, recount: impl FnOnce()) {
        if self.taken.swap(0, Ordering::AcqRel) != 0 {
            recount();
        }
        let held = self.reserved.swap(0, Ordering::AcqRel).saturating_add(self.private.swap(0, Ordering::AcqRel));
        subtract(used, held);
    }

    /// For a process that has its lock, after it was emptied.
    pub(crate) fn take(self) {
        self.taken.store(1, Ordering::Release);
    }

    /// By its process, before that unlocks it.
    pub(crate) fn leave(self) {
        self.taken.store(0, Ordering::Release);
    }

    /// Nobody has it, and the bytes are about to be counted anew.
    pub(crate) fn clear(self) {
        for word in [self.reserved, self.private, self.taken] {
            word.store(0, Ordering::Release);
        }
    }
}

/// The words through which the bytes of one pair go: those used in all, those reserved by this process, those of its private pairs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ledger<'a> {
    pub(crate) used: &'a AtomicU64,
    /// None: all slots were taken.
    pub(crate) reserved: Option<&'a AtomicU64>,
    /// None: not a private pair.
    pub(crate) private: Option<&'a AtomicU64>,
}

impl Ledger<'_> {
    /// Reserves bytes, if they fit within the limit (0: none).
    pub(crate) fn reserve(self, bytes: u64, limit: u64) -> bool {
        let fits = add_within(self.used, bytes, limit);
        if fits {
            add(self.reserved, bytes);
        }
        fits
    }

    /// Before a page takes bytes that were reserved.
    pub(crate) fn spend(self, bytes: u64) {
        subtract_from(self.reserved, bytes);
        add(self.private, bytes);
    }

    /// Gives back what was reserved and not spent.
    pub(crate) fn cancel(self, bytes: u64) {
        subtract_from(self.reserved, bytes);
        subtract(self.used, bytes);
    }

    /// Gives back what pages held that are absent and punched.
    pub(crate) fn give_back(self, bytes: u64) {
        subtract_from(self.private, bytes);
        subtract(self.used, bytes);
    }
}

fn add(to: Option<&AtomicU64>, bytes: u64) {
    if let Some(to) = to {
        to.fetch_add(bytes, Ordering::SeqCst);
    }
}

fn subtract_from(from: Option<&AtomicU64>, bytes: u64) {
    if let Some(from) = from {
        subtract(from, bytes);
    }
}

/// Adds, if the sum stays within a limit (0: none).
pub(crate) fn add_within(to: &AtomicU64, bytes: u64, limit: u64) -> bool {
    let fits = |value: u64| value.checked_add(bytes).filter(|&sum| limit == 0 || sum <= limit);
    to.fetch_update(Ordering::SeqCst, Ordering::Acquire, fits).is_ok()
}

pub(crate) fn subtract(from: &AtomicU64, bytes: u64) {
    // An update that always has a value cannot fail.
    let _ = from.fetch_update(Ordering::SeqCst, Ordering::Acquire, |value| Some(value.saturating_sub(bytes)));
}
