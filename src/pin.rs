//! Pins: bytes without a copy. A pinned range is mapped for reading, and a shared lock on its pages keeps it from eviction, discard
//! and refetching in every process until it is released or the last process that has it dies. Where that cannot be, the pin is a copy on the heap.

use crate::lock::{self, PinLock};
use crate::pair::{Pair, Trust};
use crate::sys::map::Window;
use std::ops::Range;
use std::sync::Arc;

/// A range of a file, held in memory. Usable from any thread, and in forked children, which hold it for themselves: it ends when each
/// process that has it let go of it or ended.
#[derive(Debug)]
pub struct Pin {
    held: Held,
}

#[derive(Debug)]
enum Held {
    // Dropped in this order: the map before the lock that makes it safe to read.
    Mapped { window: Window, len: usize, _lock: PinLock, _pair: Arc<Pair> },
    Copied(Vec<u8>),
}

impl Pin {
    pub(crate) fn mapped(window: Window, len: usize, lock: PinLock, pair: Arc<Pair>) -> Pin {
        Pin { held: Held::Mapped { window, len, _lock: lock, _pair: pair } }
    }

    pub(crate) fn copied(bytes: Vec<u8>) -> Pin {
        Pin { held: Held::Copied(bytes) }
    }

    /// The bytes, as long as the pin lives.
    pub fn bytes(&self) -> &[u8] {
        match &self.held {
            Held::Mapped { window, len, .. } => window.bytes(*len),
            Held::Copied(bytes) => bytes,
        }
    }

    /// Whether the bytes are the mirror's own, not a copy.
    pub fn is_mapped(&self) -> bool {
        matches!(self.held, Held::Mapped { .. })
    }
}

impl Pair {
    /// Locks and maps a range of which every page stands; `None` where one does not, or cannot be locked.
    pub(crate) fn pin(self: &Arc<Self>, range: &Range<u64>, trust: Trust) -> Option<Pin> {
        if self.index().is_in_memory() {
            return None; // a hole of a full tmpfs would raise SIGBUS, should a page go after all
        }
        let run = self.pages().touched(range);
        let lock = lock::pin(self.index().file(), run).ok().flatten()?;
        let stands = |page| {
            self.index().load(page).is_ok_and(|word| word.is_present() && self.stands(word, Trust { never: false, ..trust }))
        };
        if !(run.first..=run.last).all(stands) {
            return None;
        }
        let window = self.mirror().window(range.clone()).ok()?;
        Some(Pin::mapped(window, (range.end - range.start) as usize, lock, Arc::clone(self)))
    }
}
