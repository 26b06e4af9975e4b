//! Fetching a run without waiting for anyone: what a worker does. Absent pages are claimed, read, stored; pages that are present, or that
//! another is fetching, are left to who reads them. Like a miss, it never calls the source itself.

use crate::error::Result;
use crate::lock::PageLock;
use crate::options::Limits;
use crate::pair::Pair;
use crate::range::Run;
use crate::stats::Counters;
use crate::store::{Attempt, Store};
use std::ops::Range;

/// What becomes of bytes that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Someone waits for them: they are handed over, stored or not.
    All,
    /// Someone may come for them: what could not be stored is handed over.
    Unstored,
    /// Only what can be stored is fetched.
    Nothing,
}

/// Bytes that were fetched, and where they begin.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) start: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Piece {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

pub(crate) struct Fill<'a> {
    pair: &'a Pair,
    limits: Limits,
    store: Store<'a>,
    keep: Keep,
    /// What is left of the run; `None`: nothing.
    rest: Option<Run>,
    lock: Option<PageLock<'a>>,
    asked: Range<u64>,
    buffer: Vec<u8>,
    pieces: Vec<Piece>,
    failed: bool,
}

impl<'a> Fill<'a> {
    pub(crate) fn new(pair: &'a Pair, limits: Limits, counters: &'a Counters, run: Run, keep: Keep) -> Fill<'a> {
        let store = Store::new(pair, limits, counters);
        // A page that comes in several pieces is for who asks for it.
        let fits = pair.pages().page_size <= limits.max_fetch;
        let rest = fits.then_some(run);
        Fill { pair, limits, store, keep, rest, lock: None, asked: 0..0, buffer: Vec::new(), pieces: Vec::new(), failed: false }
    }

    /// What to read of the source next, into [`Fill::buffer`], and the pages to beat for meanwhile; `None` when the run is done.
    pub(crate) fn next(&mut self) -> Option<(Range<u64>, Option<Run>)> {
        while let Some(rest) = self.rest {
            let head = rest.head(self.limits.max_fetch / self.pair.pages().page_size);
            let run = if self.store.is_faulty() { self.around(head) } else { self.claim(head) };
            let Some(run) = run else { continue };
            self.leave(run.last);
            self.asked = self.pair.pages().bytes_of(run);
            if !self.make_buffer() {
                self.lock = None;
                self.rest = None;
                return None;
            }
            return Some((self.asked.clone(), self.lock.is_some().then_some(run)));
        }
        None
    }

    pub(crate) fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Takes over what was read. After a failure the rest is left to who reads it, and hears of it.
    pub(crate) fn accept(&mut self, read: Result<()>) {
        let lock = self.lock.take();
        if read.is_err() {
            self.rest = None;
            self.failed = true;
        }
        let stored = match &lock {
            Some(lock) if read.is_ok() => self.store.keep(lock, &self.buffer),
            _ => false,
        };
        if let Some(lock) = lock {
            let run = lock.run();
            drop(lock);
            self.pair.index().beat(run);
        }
        if read.is_ok() && (self.keep == Keep::All || (self.keep == Keep::Unstored && !stored)) {
            let bytes = std::mem::take(&mut self.buffer);
            self.pieces.push(Piece { start: self.asked.start, bytes });
        }
    }

    /// Whether the source failed.
    pub(crate) fn failed(&self) -> bool {
        self.failed
    }

    pub(crate) fn into_pieces(self) -> Vec<Piece> {
        self.pieces
    }

    /// Nothing of what is left up to this page is wanted any more.
    fn leave(&mut self, last: u64) {
        self.rest = self.rest.and_then(|rest| (last < rest.last).then(|| Run { first: last + 1, last: rest.last }));
    }

    /// The disk is out of order: what is not there is read around it, for who waits.
    fn around(&mut self, head: Run) -> Option<Run> {
        match (self.keep, self.pair.absent_head(head)) {
            (Keep::Nothing, _) => self.rest = None,
            (_, Ok(Some(absent))) => return Some(absent),
            (_, Ok(None)) => self.leave(head.first),
            (_, Err(_)) => return Some(head),
        }
        None
    }

    fn claim(&mut self, head: Run) -> Option<Run> {
        if self.keep == Keep::Nothing && self.store.is_nearly_full() {
            self.rest = None;
            return None;
        }
        match self.store.claim(head) {
            Ok(Attempt::Held(lock)) => {
                let run = lock.run();
                self.lock = Some(lock);
                return Some(run);
            }
            Ok(Attempt::Present) => self.leave(head.first),
            Ok(Attempt::Busy { until, .. }) => self.leave(until),
            Err(error) => self.store.fault("the index cannot be used", &error),
        }
        None
    }

    fn make_buffer(&mut self) -> bool {
        let len = (self.asked.end - self.asked.start) as usize;
        self.buffer.truncate(len);
        if self.buffer.try_reserve_exact(len - self.buffer.len()).is_err() {
            return false;
        }
        self.buffer.resize(len, 0);
        true
    }
}
