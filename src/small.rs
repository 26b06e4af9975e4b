//! Small reads that follow each other, served from a small buffer of the handle, as stdio does: the system is asked once for many of them.
//! It serves as long as the page's word is the one that it had when the bytes were copied.

use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::sys::fork::PerProcess;

/// What is copied at once, bytes.
const LEN: usize = 16 << 10;
/// Reads of more than this go their own way.
const SMALL: usize = 2 << 10;

#[derive(Debug)]
pub(crate) struct Small {
    state: PerProcess<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Where the buffer's bytes are in the file.
    start: u64,
    bytes: Vec<u8>,
    /// The word of their page.
    word: u64,
    /// Where the last small read ended, plus 1.
    expected: u64,
}

impl Small {
    pub(crate) const fn new() -> Small {
        Small { state: PerProcess::new() }
    }

    /// Reads at the position and moves it, if the buffer has it all, or `fill`, which copies what is present of one page and returns how
    /// much that is, brings it. `word` is the word of the page that holds an offset, if that is present.
    #[inline]
    pub(crate) fn read(
        &self,
        position: &AtomicU64,
        size: u64,
        out: &mut [u8],
        word: impl Fn(u64) -> Option<u64>,
        fill: impl FnOnce(u64, &mut [u8]) -> usize,
    ) -> bool {
        if out.len() > SMALL || out.is_empty() {
            return false;
        }
        let mut state = self.state.get().lock();
        let at = position.load(Ordering::Acquire);
        // Looked at here, where it is used: another thread may move it past the end meanwhile.
        let Some(end) = at.checked_add(out.len() as u64).filter(|&end| end <= size) else { return false };
        if !(state.has(at, end) && word(state.start) == Some(state.word)) {
            let follows = state.expected == at + 1;
            state.expected = end + 1;
            if !follows || !state.fill(at, end, word, fill) {
                return false;
            }
        }
        // Another thread may have moved it: then this read is not served here.
        if position.compare_exchange(at, end, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        let from = (at - state.start) as usize;
        out.copy_from_slice(&state.bytes[from..from + out.len()]);
        state.expected = end + 1;
        true
    }
}

impl State {
    fn has(&self, at: u64, end: u64) -> bool {
        at >= self.start && end <= self.start + self.bytes.len() as u64
    }

    fn fill(&mut self, at: u64, end: u64, word: impl Fn(u64) -> Option<u64>, fill: impl FnOnce(u64, &mut [u8]) -> usize) -> bool {
        self.bytes.clear();
        if self.bytes.try_reserve_exact(LEN).is_err() {
            return false;
        }
        self.bytes.resize(LEN, 0);
        self.start = at;
        let len = fill(at, &mut self.bytes);
        self.bytes.truncate(len);
        match word(at) {
            Some(word) => self.word = word,
            None => self.bytes.clear(),
        }
        self.has(at, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_that_follow_each_other_are_filled_once() {
        let (small, position) = (Small::new(), AtomicU64::new(0));
        let mut fills = 0;
        let mut served = 0;
        for _ in 0..200 {
            let mut out = [0; 100];
            let before = position.load(Ordering::Relaxed);
            let word = |_| Some(if before < 2_000 { 1 } else { 2 }); // the page goes and comes back once
            let here = small.read(&position, 20_000, &mut out, word, |at, buffer| {
                fills += 1;
                for (n, byte) in buffer.iter_mut().enumerate() {
                    *byte = (at as usize + n) as u8;
                }
                buffer.len()
            });
            if here {
                served += 1;
                assert!(out.iter().enumerate().all(|(n, &byte)| byte == (before as usize + n) as u8));
            } else {
                position.store(before + 100, Ordering::Relaxed);
            }
        }
        assert_eq!((served, fills), (199, 3));
        position.store(7, Ordering::Relaxed);
        assert!(!small.read(&position, 20_000, &mut [0; 10], |_| None, |_, _| panic!("a jump is not filled for")));
        assert!(!small.read(&position, 20_000, &mut [0; SMALL + 1], |_| None, |_, _| panic!("a large one neither")));
    }
}
