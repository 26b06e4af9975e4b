//! One page's word in the memory that all processes share: its transitions, and the way to copy the bytes it speaks for. It stands on
//! atomics alone, so that a model checker runs these very lines (`tests/models`).
//!
//! | from → to | who | method |
//! |---|---|---|
//! | absent → taken | the fetcher, holding the page's lock, before it writes | [`PageWord::take`] |
//! | taken → taken | the next holder of the lock, after a fetcher died | [`PageWord::take`] |
//! | taken → filled | the fetcher, after the whole page is in the mirror | [`PageWord::publish`] |
//! | filled → verified | any reader, its checksum matched, once a session | [`PageWord::stamp`] |
//! | filled, verified → taken | a reader whose checksum did not match; space stays counted | [`PageWord::mistrust`] |
//! | filled, verified, taken → absent | the page's exclusive holder, before it punches | [`PageWord::give_up`] |
//!
//! A word changes by compare-and-swap only, so state and checksum are published together.

use crate::format::Word;
use crate::hook;
use crate::sync::{AtomicU64, Ordering, fence};

/// Where a page's word is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageWord<'a>(pub(crate) &'a AtomicU64);

impl PageWord<'_> {
    #[inline]
    pub(crate) fn load(self) -> Word {
        Word(self.0.load(Ordering::Acquire))
    }

    fn change(self, from: Word, to: Word) -> Option<Word> {
        self.0.compare_exchange(from.0, to.0, Ordering::SeqCst, Ordering::Acquire).is_ok().then_some(to)
    }

    /// Takes an absent or left-over page. The caller holds its lock.
    pub(crate) fn take(self, epoch: u16) -> Option<Word> {
        let seen = self.load();
        if seen.is_present() {
            return None;
        }
        self.change(seen, seen.taken(epoch))
    }

    /// The caller took the page, and has written all of it.
    pub(crate) fn publish(self, taken: Word, crc: u32, epoch: u16) -> bool {
        self.change(taken, taken.filled(crc, epoch)).is_some()
    }

    /// The caller compared the page while its word was `seen`, and it matched.
    pub(crate) fn stamp(self, seen: Word, epoch: u16) -> Option<Word> {
        self.change(seen, seen.verified(epoch))
    }

    /// The caller compared the page while its word was `seen`, and it did not match.
    pub(crate) fn mistrust(self, seen: Word, epoch: u16) -> bool {
        self.change(seen, seen.mistrusted(epoch)).is_some()
    }

    /// Makes a page absent. The caller holds its lock alone, and punches after this returns true, never before.
    pub(crate) fn give_up(self, seen: Word) -> bool {
        let gone = self.change(seen, seen.absent()).is_some();
        fence(Ordering::SeqCst);
        gone
    }

    /// Puts a word where nobody else changes it: before a session, or in an index without a name.
    pub(crate) fn put(self, word: Word) {
        self.0.store(word.0, Ordering::Release);
    }
}

/// Copies the bytes of neighbouring pages whose words were `seen`, then looks at their words again. False where one has changed: the
/// bytes may have, too, and the copy is worth nothing.
#[inline]
pub(crate) fn copy<E>(seen: &[Word], now: impl Fn(usize) -> Option<Word>, copy: impl FnOnce() -> Result<(), E>) -> Result<bool, E> {
    hook::widen_hit();
    copy()?;
    fence(Ordering::Acquire);
    Ok(hook::NO_RECHECK || seen.iter().enumerate().all(|(at, &seen)| now(at) == Some(seen)))
}

/// The second look of one page, after its bytes were copied by the caller.
#[inline(always)]
pub(crate) fn stood(seen: Word, now: impl FnOnce() -> Option<Word>) -> bool {
    fence(Ordering::Acquire);
    hook::NO_RECHECK || now() == Some(seen)
}
