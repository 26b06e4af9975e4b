//! Pages given up: made absent, punched, and only then their bytes given back to the budget, so that the count is never below what the
//! disk holds. A dropper notes in the index what it is at: should it be killed, its pages stay counted until the next dropper punches
//! them, or until one that is fetched again takes over its bytes.

use crate::format::{BLOCK, State, cost};
use crate::hook;
use crate::lock::{Claim, PageLock, dropping};
use crate::pair::Pair;
use crate::range::Run;
use crate::sys::fork::ChildCloses;
use std::io;
use std::ops::Range;
use std::time::Duration;

/// What was dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) pages: u64,
    /// As the budget counts them.
    pub(crate) bytes: u64,
}

impl std::ops::AddAssign for Dropped {
    fn add_assign(&mut self, more: Dropped) {
        self.pages += more.pages;
        self.bytes += more.bytes;
    }
}

/// The right to drop pages of a pair: one process at a time has it.
#[derive(Debug)]
pub(crate) struct Dropper<'a> {
    pair: &'a Pair,
    _right: ChildCloses,
}

/// How long a discard waits for an evictor of the same pair.
const DISCARD_WAIT: Duration = Duration::from_millis(500);

impl Pair {
    /// The right to drop pages; `None` where they are frozen, or another is at it.
    pub(crate) fn dropper(&self, wait: Duration) -> io::Result<Option<Dropper<'_>>> {
        if self.index().is_fixed() || !self.mirror().can_punch() {
            return Ok(None);
        }
        self.before_drop()?;
        let Some(right) = dropping(self.index().file(), wait)? else { return Ok(None) };
        let dropper = Dropper { pair: self, _right: right };
        Ok(dropper.finish_left()?.then_some(dropper))
    }

    /// Drops the pages of a run that nobody is fetching or has pinned; none where the pair is frozen.
    pub(crate) fn discard(&self, run: Run) -> io::Result<Dropped> {
        let mut gone = Dropped::default();
        let Some(dropper) = self.dropper(DISCARD_WAIT)? else { return Ok(gone) };
        let mut from = run.first;
        while from <= run.last {
            let Some(stretch) = self.index().next_allocated(from) else { break };
            if stretch.first > run.last {
                break;
            }
            let (dropped, until) = dropper.drop_head(Run { first: stretch.first, last: stretch.last.min(run.last) })?;
            gone += dropped;
            from = until + 1;
        }
        Ok(gone)
    }

    /// The pages that a run begins with and that are all absent, or all are not.
    fn head_alike(&self, run: Run) -> io::Result<(Run, State)> {
        let first = self.index().load(run.first)?.state();
        let mut last = run.first;
        while last < run.last && (self.index().load(last + 1)?.state() == State::Absent) == (first == State::Absent) {
            last += 1;
        }
        Ok((Run { first: run.first, last }, first))
    }

    /// What the pages of a run cost.
    pub(crate) fn cost_of(&self, run: Run) -> u64 {
        (run.first..=run.last).map(|page| cost(&self.pages().bytes(page))).sum()
    }
}

impl Dropper<'_> {
    /// Drops the pages that a run begins with and that nobody holds; also returns the last page that it is done with.
    pub(crate) fn drop_head(&self, run: Run) -> io::Result<(Dropped, u64)> {
        match self.pair.claim(run)? {
            Claim::Busy { until, .. } => Ok((Dropped::default(), until)),
            Claim::Held(lock) => Ok((self.drop_locked(lock.run(), lock.run())?, lock.run().last)),
        }
    }

    /// Drops the pages of a run. The caller has locked those of `locked`, and the run's are among them.
    pub(crate) fn drop_locked(&self, run: Run, locked: Run) -> io::Result<Dropped> {
        self.pair.index().before_change()?;
        let mut gone = Dropped::default();
        let mut first = run.first;
        while first <= run.last {
            let (alike, state) = self.pair.head_alike(Run { first, last: run.last })?;
            if state != State::Absent {
                gone += self.drop_present(alike, locked)?;
            }
            first = alike.last + 1;
        }
        Ok(gone)
    }

    /// Drops pages of which none is absent: one note, one hole.
    fn drop_present(&self, run: Run, locked: Run) -> io::Result<Dropped> {
        let index = self.pair.index();
        index.note_dropping(Some(run));
        for page in run.first..=run.last {
            self.give_up(page)?;
        }
        self.punch(run, locked)?;
        index.note_dropping(None);
        let bytes = self.pair.cost_of(run);
        index.let_go(bytes);
        self.pair.give_back(bytes);
        Ok(Dropped { pages: run.count(), bytes })
    }

    /// A reader may stamp or mistrust the page meanwhile, so this tries until the word holds still.
    fn give_up(&self, page: u64) -> io::Result<()> {
        loop {
            let word = self.pair.index().load(page)?;
            if word.state() == State::Absent || self.pair.index().give_up(page, word) {
                return Ok(());
            }
        }
    }

    /// Finishes what a dropper that was killed had noted. False where some of it is held by another just now.
    fn finish_left(&self) -> io::Result<bool> {
        let (pair, index) = (self.pair, self.pair.index());
        while let Some(left) = index.left_dropping() {
            let (alike, state) = pair.head_alike(left)?;
            let after = |page| (page < left.last).then(|| Run { first: page + 1, last: left.last });
            if state != State::Absent {
                index.note_dropping(after(alike.last)); // never given up, or fetched again: a page answers for it
                continue;
            }
            let Claim::Held(lock) = pair.claim(alike)? else { return Ok(false) };
            let (absent, state) = pair.head_alike(lock.run())?;
            if state == State::Absent {
                self.punch(absent, lock.run())?;
                index.note_dropping(after(absent.last));
                let bytes = pair.cost_of(absent);
                index.let_go(bytes);
                pair.give_back(bytes);
            }
        }
        Ok(true)
    }

    /// Punches pages that are absent now.
    fn punch(&self, run: Run, locked: Run) -> io::Result<()> {
        let (hole, _neighbours) = self.hole(run, locked)?;
        hook::widen_drop();
        self.pair.mirror().punch(hole)
    }

    /// What to punch for a run: a hole over part of a block frees nothing, so where pages do not end with blocks the hole reaches over
    /// those neighbours in the same blocks that are absent, whose locks it keeps meanwhile. A neighbour that is there, or being
    /// fetched, answers for the block itself.
    fn hole(&self, run: Run, locked: Run) -> io::Result<(Range<u64>, [Option<PageLock<'_>>; 2])> {
        let pages = self.pair.pages();
        let mut hole = pages.bytes_of(run);
        let mut locks = [None, None];
        let block = hole.start / BLOCK * BLOCK;
        if block < hole.start && run.first > 0 {
            let neighbours = Run { first: pages.page_of(block), last: run.first - 1 };
            if let Some(lock) = self.lock_absent(neighbours, locked)? {
                (hole.start, locks[0]) = (block, lock);
            }
        }
        let end = hole.end.next_multiple_of(BLOCK);
        if hole.end == pages.size {
            hole.end = end; // past the end there is nobody
        } else if end > hole.end {
            let neighbours = Run { first: run.last + 1, last: pages.page_of(end.min(pages.size) - 1) };
            if let Some(lock) = self.lock_absent(neighbours, locked)? {
                (hole.end, locks[1]) = (end, lock);
            }
        }
        Ok((hole, locks))
    }

    /// Locks what of a run is not locked yet, if all of the run is absent; the outer `None` where that is not so.
    #[expect(clippy::option_option, reason = "there may be nothing to lock")]
    fn lock_absent(&self, run: Run, locked: Run) -> io::Result<Option<Option<PageLock<'_>>>> {
        let outside = if run.last < locked.first || run.first > locked.last {
            Some(run)
        } else if run.first < locked.first {
            Some(Run { first: run.first, last: locked.first - 1 })
        } else if run.last > locked.last {
            Some(Run { first: locked.last + 1, last: run.last })
        } else {
            None
        };
        let lock = match outside.map(|outside| self.pair.claim(outside)).transpose()? {
            None => None,
            Some(Claim::Held(lock)) if Some(lock.run()) == outside => Some(lock),
            Some(_) => return Ok(None),
        };
        let (alike, state) = self.pair.head_alike(run)?;
        Ok((alike == run && state == State::Absent).then_some(lock))
    }
}
