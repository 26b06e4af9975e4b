//! Claiming absent pages, and storing what came for them: reserved within the limits, taken, written, published. A limit or a local
//! fault keeps pages out of the mirror and fails nobody.

use crate::budget::Reservation;
use crate::clock::TURNS;
use crate::format::{State, Word, cost, crc32c};
use crate::lock::{Claim, PageLock};
use crate::log;
use crate::options::{Limits, WhenFull};
use crate::pair::Pair;
use crate::range::Run;
use crate::stats::{Count, Counters};
use std::io;
use std::time::Duration;

/// One read's way into a pair.
pub(crate) struct Store<'a> {
    pair: &'a Pair,
    limits: Limits,
    counters: &'a Counters,
    /// The local disk failed this read once, or fails all the time: nothing more is kept.
    faulty: bool,
    /// The disk was full once, and pages were given up for it.
    freed: bool,
    passed: bool,
}

/// What came of a claim.
pub(crate) enum Attempt<'a> {
    Held(PageLock<'a>),
    Busy { until: u64, pinned: bool },
    Present,
}

/// Pages are stored together up to multiples of this, bytes: what stays in the CPU's cache between checksum and copy, and what the kernel
/// keeps, and maps, as one huge page where it is written at once.
const GROUP: u64 = 2 << 20;

impl<'a> Store<'a> {
    pub(crate) fn new(pair: &'a Pair, limits: Limits, counters: &'a Counters) -> Store<'a> {
        let faulty = pair.mirror().reads.is_open() || !pair.mirror().stores.allows();
        Store { pair, limits, counters, faulty, freed: false, passed: false }
    }

    pub(crate) fn is_faulty(&self) -> bool {
        self.faulty
    }

    /// Locks the absent pages that a run begins with, and looks again under the lock.
    pub(crate) fn claim(&self, wanted: Run) -> io::Result<Attempt<'a>> {
        let Some(absent) = self.pair.absent_head(wanted)? else { return Ok(Attempt::Present) };
        let mut lock = match self.pair.claim(absent)? {
            Claim::Busy { until, pinned } => return Ok(Attempt::Busy { until, pinned }),
            Claim::Held(lock) => lock,
        };
        match self.pair.absent_head(lock.run())? {
            None => Ok(Attempt::Present),
            Some(still) => {
                lock.shrink(still.last);
                Ok(Attempt::Held(lock))
            }
        }
    }

    /// Stores and publishes the pages of a locked run, whose bytes these are; a limit or a local fault keeps the rest out, and fails nobody.
    /// True if all of them were kept.
    pub(crate) fn keep(&mut self, lock: &PageLock<'_>, bytes: &[u8]) -> bool {
        let (pages, run) = (self.pair.pages(), lock.run());
        let mut all = true;
        let mut first = run.first;
        while first <= run.last {
            let to_boundary = GROUP - first * pages.page_size % GROUP;
            let Some(group) = self.admitted(Run { first, last: run.last }.head(to_boundary / pages.page_size)) else {
                self.count_passed();
                all = false;
                first += 1;
                continue;
            };
            match self.store_head(group, run, bytes) {
                Ok(Some(last)) => first = last + 1,
                Ok(None) => {
                    self.count_passed();
                    return false;
                }
                Err(error) if is_full(&error) && self.free_disk(group) => {}
                Err(error) => {
                    self.fault("a page cannot be stored", &error);
                    return false;
                }
            }
        }
        all
    }

    /// Stores a group, or, where not all of it has room, its first page. Returns the last page stored; `None` where there is no room.
    fn store_head(&self, group: Run, run: Run, bytes: &[u8]) -> io::Result<Option<u64>> {
        if self.store_group(group, run, bytes)? {
            return Ok(Some(group.last));
        }
        Ok((group.count() > 1 && self.store_group(Run::one(group.first), run, bytes)?).then_some(group.first))
    }

    /// The disk is full, whatever the limits say: gives up pages for a group, once a miss.
    fn free_disk(&mut self, group: Run) -> bool {
        if std::mem::replace(&mut self.freed, true) {
            return false;
        }
        let bytes = self.pair.cost_of(group);
        match (self.limits.when_full, self.pair.account()) {
            (WhenFull::Stop, _) => false,
            (WhenFull::Flush, _) => self.flush().unwrap_or(false),
            (WhenFull::Evict, Some(account)) => account.budget().give_up(bytes) > 0,
            (WhenFull::Evict, None) => self.pair.sweep(bytes, TURNS).is_ok_and(|gone| gone.pages > 0),
        }
    }

    /// The pages that a run begins with and that are to be kept; `None` where the first is not.
    fn admitted(&self, run: Run) -> Option<Run> {
        if self.limits.when_full != WhenFull::Evict || !self.is_nearly_full() {
            return Some(run);
        }
        let earned = (run.first..=run.last).take_while(|&page| self.pair.earns_its_place(page)).last();
        earned.map(|last| Run { first: run.first, last })
    }

    /// Whether pages must earn their place.
    pub(crate) fn is_nearly_full(&self) -> bool {
        let limit = self.limits.file_limit;
        (limit != 0 && self.pair.index().held().saturating_add(limit / 64) > limit)
            || self.pair.account().is_some_and(|account| account.budget().is_nearly_full())
    }

    /// Stores a group of the pages of `run`, whose bytes these are; false where there is no room for it within the limits.
    fn store_group(&self, group: Run, run: Run, bytes: &[u8]) -> io::Result<bool> {
        let (index, pages) = (self.pair.index(), self.pair.pages());
        let start = pages.bytes_of(run).start;
        let range = pages.bytes_of(group);
        let bytes = &bytes[(range.start - start) as usize..(range.end - start) as usize];
        index.before_change()?;
        index.make_room(group)?;
        if !index.session_stands() {
            return Err(io::Error::other("its session was ended by another process"));
        }
        let Some(mut room) = self.reserve(group)? else { return Ok(false) };
        let mut taken = Vec::with_capacity(group.count() as usize);
        for (page, bytes) in (group.first..=group.last).zip(bytes.chunks(pages.page_size as usize)) {
            let uses = u32::from(self.is_nearly_full());
            taken.push((page, self.take(page, &mut room), crc32c(bytes)));
            index.set_uses(page, uses);
        }
        // Every fill looks once more, now that its pages are taken: a session that has ended takes no page.
        let stored = if index.session_stands() {
            self.pair.mirror().write(bytes, range.start)
        } else {
            Err(io::Error::other("its session was ended by another process"))
        };
        if let Err(error) = stored {
            self.undo(group, run);
            return Err(error);
        }
        for (page, taken, crc) in taken {
            if let Some(taken) = taken {
                self.publish(page, taken, crc);
            }
        }
        self.pair.mirror().stores.worked(self.pair.place().data.display());
        index.beat(group);
        Ok(true)
    }

    /// Takes a page for which there is room.
    fn take(&self, page: u64, room: &mut Room<'_>) -> Option<Word> {
        room.spend(self.uncounted(page).unwrap_or(0));
        self.pair.index().take(page)
    }

    /// What a page that is about to be taken costs. What a dead fetcher or dropper left of it is counted already.
    fn uncounted(&self, page: u64) -> io::Result<u64> {
        let index = self.pair.index();
        let counted = index.load(page)?.state() != State::Absent || index.is_left(page);
        Ok(if counted { 0 } else { cost(&self.pair.pages().bytes(page)) })
    }

    /// Takes one page that is fetched in pieces; `None` where it is not to be kept.
    pub(crate) fn take_alone(&self, page: u64) -> io::Result<Option<Word>> {
        if self.admitted(Run::one(page)).is_none() {
            return Ok(None);
        }
        self.pair.index().before_change()?;
        self.pair.index().make_room(Run::one(page))?;
        let Some(mut room) = self.reserve(Run::one(page))? else { return Ok(None) };
        Ok(self.take(page, &mut room))
    }

    /// Reserves what the absent pages of a group will hold, making room as the policy says; `None` where there is none.
    fn reserve(&self, group: Run) -> io::Result<Option<Room<'a>>> {
        let (pair, index) = (self.pair, self.pair.index());
        let bytes = (group.first..=group.last).map(|page| self.uncounted(page)).sum::<io::Result<u64>>()?;
        for last_try in [false, true] {
            if !index.hold(bytes, self.limits.file_limit) {
                if last_try || !self.make_room_in_file(bytes)? {
                    return Ok(None);
                }
                continue;
            }
            let mut room = Room { pair, reservation: None, left: bytes };
            let Some(account) = pair.account() else { return Ok(Some(room)) };
            if let Some(reservation) = account.reserve(bytes)? {
                room.reservation = Some(reservation);
                return Ok(Some(room));
            }
            drop(room);
            if last_try || !self.make_room_in_directory(bytes)? {
                return Ok(None);
            }
        }
        Ok(None)
    }

    fn make_room_in_file(&self, bytes: u64) -> io::Result<bool> {
        let limit = self.limits.file_limit;
        if bytes > limit {
            return Ok(false);
        }
        match self.limits.when_full {
            WhenFull::Stop => Ok(false),
            WhenFull::Flush => self.flush(),
            WhenFull::Evict => {
                let gone = self.pair.sweep(bytes.max(limit / 128), TURNS)?;
                self.counters.add(Count::PagesEvicted, gone.pages);
                Ok(gone.pages > 0)
            }
        }
    }

    fn make_room_in_directory(&self, bytes: u64) -> io::Result<bool> {
        let Some(account) = self.pair.account() else { return Ok(false) };
        let budget = account.budget();
        match self.limits.when_full {
            WhenFull::Stop => Ok(budget.reclaim_for(bytes)),
            WhenFull::Flush => Ok(budget.reclaim_for(bytes) || self.flush()?),
            WhenFull::Evict => Ok(budget.make_room(bytes)),
        }
    }

    /// Drops all pages of the file.
    fn flush(&self) -> io::Result<bool> {
        let gone = self.pair.discard(Run { first: 0, last: self.pair.pages().count() - 1 })?;
        self.counters.add(Count::PagesEvicted, gone.pages);
        Ok(gone.pages > 0)
    }

    /// taken → filled.
    pub(crate) fn publish(&self, page: u64, taken: Word, crc: u32) {
        if self.pair.index().publish(page, taken, crc) {
            self.counters.one(Count::PagesFetched);
        }
    }

    /// Gives back pages that were taken and not filled. Where another is dropping pages they stay taken, for the next who fetches them.
    pub(crate) fn undo(&self, run: Run, locked: Run) {
        let dropped = self.pair.dropper(Duration::ZERO).and_then(|dropper| match dropper {
            Some(dropper) => dropper.drop_locked(run, locked).map(drop),
            None => Ok(()),
        });
        if let Err(error) = dropped {
            log::warn(|| format!("{}: space of a page that was not stored stays used ({error})", self.pair.place().data.display()));
        }
    }

    /// Counts, once a read, that not all of it was kept.
    pub(crate) fn count_passed(&mut self) {
        if !self.passed {
            self.passed = true;
            self.counters.one(Count::PassedThrough);
        }
    }

    /// A local fault: nothing more is kept for this read.
    pub(crate) fn fault(&mut self, what: &str, error: &io::Error) {
        self.faulty = true;
        self.count_passed();
        self.pair.mirror().stores.failed(self.pair.place().data.display(), what, error);
    }
}

/// Bytes that a group may come to hold; what it does not spend goes back.
struct Room<'a> {
    pair: &'a Pair,
    reservation: Option<Reservation<'a>>,
    left: u64,
}

impl Room<'_> {
    fn spend(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
        if let Some(reservation) = &mut self.reservation {
            reservation.spend(bytes);
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.pair.index().let_go(self.left);
    }
}

/// No space, or no quota.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}
