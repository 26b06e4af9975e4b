//! The generations of a line of forked processes, and the values that stand under them. It stands on atomics alone (the memory is the
//! caller's), so that a model checker runs these very lines (`tests/models`).
//!
//! A child counts on from its parent's last generation, so what was made before a fork always bears a smaller number than the child's
//! own, and siblings never meet each other's memory.

use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering, yield_now};

const NUMBERING: u32 = u32::MAX;

/// The generation in a word that forks wipe; `None` where nobody has numbered this process yet.
#[inline]
pub(super) fn known(word: &AtomicU32) -> Option<u32> {
    let generation = word.load(Ordering::Acquire);
    (generation != 0 && generation != NUMBERING).then_some(generation)
}

/// Numbers this process, unless another thread has.
pub(super) fn number(word: &AtomicU32, last: &AtomicU32) -> u32 {
    loop {
        match word.compare_exchange(0, NUMBERING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                let generation = draw(last);
                word.store(generation, Ordering::Release);
                return generation;
            }
            Err(NUMBERING) => yield_now(),
            Err(generation) => return generation,
        }
    }
}

/// The same where nothing is wiped, by a word that holds `pid << 32 | generation`.
pub(super) fn number_by_pid(word: &AtomicU64, last: &AtomicU32, pid: u32) -> u32 {
    let pid = u64::from(pid);
    loop {
        let known = word.load(Ordering::Acquire);
        if known >> 32 == pid {
            return known as u32;
        }
        let generation = draw(last);
        if word.compare_exchange(known, pid << 32 | u64::from(generation), Ordering::AcqRel, Ordering::Acquire).is_ok() {
            return generation;
        }
    }
}

/// Before it is published: a child that is forked between the two counts on from it.
fn draw(last: &AtomicU32) -> u32 {
    last.fetch_add(1, Ordering::AcqRel) + 1
}

/// A value and who made it.
#[derive(Debug)]
pub(super) struct Made<T> {
    pub(super) generation: u32,
    /// From the heap, as the kernel had no more maps to give.
    pub(super) on_heap: bool,
    pub(super) value: T,
}

/// The value of a generation, made and published if this is its first use; another generation's is left alone, and leaked.
///
/// # Safety
/// `current` is null or points to what `make` returned, here or in a parent, and that stays for as long as `current` is borrowed. `unmake`
/// gets what `make` returned and nobody has seen.
#[inline]
pub(super) unsafe fn value<T>(
    current: &AtomicPtr<Made<T>>,
    generation: u32,
    make: impl Fn() -> *mut Made<T>,
    unmake: impl Fn(*mut Made<T>),
) -> &T {
    loop {
        let known = current.load(Ordering::Acquire);
        // SAFETY: by the caller.
        if let Some(made) = unsafe { known.as_ref() } {
            if made.generation == generation {
                return &made.value;
            }
        }
        let fresh = make();
        if current.compare_exchange(known, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            unmake(fresh);
        }
    }
}
