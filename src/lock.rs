//! Byte-range locks, each holder with a description of its own: those of page runs, and what a session locks.

use crate::format::{DIRECTORY_GATE, DIRECTORY_SESSION, FREEZE_LOCK, LOCK_BASE, SESSION_GATE, SESSION_LOCK};
use crate::hook;
use crate::range::Run;
use crate::session::{Description, Session};
use crate::sync::{AtomicU32, Mutex, Ordering};
use crate::sys::file;
use crate::sys::fork::{ChildCloses, PerProcess};
use crate::sys::lock::{Holder, Kind, holder, try_lock, unlock};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Descriptions kept for the next fetch of the same file, and of all files of the process.
const KEPT: usize = 4;
const KEPT_OF_ALL: u32 = 8;

/// How many are kept.
static ALL_KEPT: PerProcess<AtomicU32> = PerProcess::new();

/// The locks of one index's pages. Nobody waits here: a page is claimed at once or not at all.
#[derive(Debug)]
pub(crate) struct PageLocks {
    free: PerProcess<Mutex<Vec<ChildCloses>>>,
}

/// What came of a claim.
#[derive(Debug)]
pub(crate) enum Claim<'a> {
    /// The pages are locked: all that were asked for, or the first of them.
    Held(PageLock<'a>),
    /// The first page is someone else's, up to this one at least; pinned pages are not coming free soon.
    Busy { until: u64, pinned: bool },
}

/// Pages locked for this holder alone, until dropped.
#[derive(Debug)]
pub(crate) struct PageLock<'a> {
    locks: &'a PageLocks,
    description: Option<ChildCloses>,
    run: Run,
    /// What may still be locked after the run, should letting go of it have failed.
    locked_to: u64,
}

impl PageLocks {
    pub(crate) const fn new() -> PageLocks {
        PageLocks { free: PerProcess::new() }
    }

    /// Locks a run, or as much of its beginning as is free.
    pub(crate) fn claim(&self, index: BorrowedFd<'_>, run: Run) -> io::Result<Claim<'_>> {
        let kept = self.free.get().lock().pop();
        let description = match kept {
            Some(description) => {
                ALL_KEPT.get().fetch_sub(1, Ordering::Relaxed);
                description
            }
            None => ChildCloses::open(|| file::reopen(index))?,
        };
        let mut lock = PageLock { locks: self, description: Some(description), run, locked_to: run.last };
        let mut last = run.last;
        // Each round ends nearer to the first page, or finds that the holder has gone meanwhile.
        for _ in 0..64 {
            let wanted = Run { first: run.first, last };
            if lock.take(wanted)? {
                return Ok(Claim::Held(lock));
            }
            match lock.other_holder(wanted)? {
                Some(other) if other.first > run.first => last = other.first - 1,
                Some(other) => {
                    lock.give_back();
                    return Ok(Claim::Busy { until: other.last.min(run.last), pinned: other.kind == Kind::Shared });
                }
                None => {}
            }
        }
        lock.give_back();
        Ok(Claim::Busy { until: run.first, pinned: false })
    }
}

impl Drop for PageLocks {
    fn drop(&mut self) {
        if let Some(free) = self.free.peek() {
            ALL_KEPT.get().fetch_sub(u32::try_from(free.lock().len()).unwrap_or(0), Ordering::Relaxed);
        }
    }
}

/// Pages that nobody may fetch again, drop or punch while this lives, in any process. A forked child inherits it: it is closed, never
/// unlocked, so the pages stay until the last process that has it let go or ended.
#[derive(Debug)]
pub(crate) struct PinLock {
    _description: OwnedFd,
}

/// Pins a run by one try over all of it.
pub(crate) fn pin(index: BorrowedFd<'_>, run: Run) -> io::Result<Option<PinLock>> {
    let description = file::reopen(index)?;
    let held = try_lock(description.as_fd(), Kind::Shared, LOCK_BASE + run.first, run.count())?;
    Ok(held.then_some(PinLock { _description: description }))
}

impl PageLock<'_> {
    pub(crate) fn run(&self) -> Run {
        self.run
    }

    fn take(&mut self, run: Run) -> io::Result<bool> {
        let Some(description) = &self.description else { return Ok(false) };
        (self.run, self.locked_to) = (run, run.last);
        try_lock(description.as_fd(), Kind::Exclusive, LOCK_BASE + run.first, run.count())
    }

    fn other_holder(&self, run: Run) -> io::Result<Option<Holder>> {
        let Some(description) = &self.description else { return Ok(None) };
        let found = holder(description.as_fd(), LOCK_BASE + run.first, run.count())?;
        let page = |byte: u64| byte.saturating_sub(LOCK_BASE);
        Ok(found.map(|held| Holder { first: page(held.first), last: page(held.last), kind: held.kind }))
    }

    /// Lets go of the pages after `last`.
    pub(crate) fn shrink(&mut self, last: u64) {
        if last < self.run.last {
            if let Some(description) = &self.description {
                // An error leaves them locked until the whole lock goes: others wait a little longer.
                if unlock(description.as_fd(), LOCK_BASE + last + 1, self.run.last - last).is_ok() {
                    self.locked_to = last;
                }
            }
            self.run.last = last;
        }
    }

    /// Keeps the description, on which nothing is locked, for the next claim.
    fn give_back(&mut self) {
        if let Some(description) = self.description.take() {
            let mut free = self.locks.free.get().lock();
            let all = ALL_KEPT.get();
            if free.len() < KEPT && all.load(Ordering::Relaxed) < KEPT_OF_ALL {
                all.fetch_add(1, Ordering::Relaxed);
                free.push(description);
            }
        }
    }
}

impl Drop for PageLock<'_> {
    fn drop(&mut self) {
        let Some(description) = &self.description else { return };
        if unlock(description.as_fd(), LOCK_BASE + self.run.first, self.locked_to - self.run.first + 1).is_ok() {
            self.give_back();
        } // else the description is closed, which unlocks too
    }
}

/// The session of an index.
pub(crate) const INDEX_SESSION: Session = Session { gate: SESSION_GATE, members: SESSION_LOCK };
/// The session of a cache directory, on `control`.
pub(crate) const CONTROL_SESSION: Session = Session { gate: DIRECTORY_GATE, members: DIRECTORY_SESSION };

impl Description for BorrowedFd<'_> {
    type Lock = ChildCloses;

    fn lock_apart(&self, byte: u64, wait: Duration) -> io::Result<Option<ChildCloses>> {
        let description = ChildCloses::open(|| file::reopen(*self))?;
        let held = hook::NO_GATE || lock_within(description.as_fd(), Kind::Exclusive, byte, wait)?;
        Ok(held.then_some(description))
    }

    fn is_held(&self, byte: u64) -> io::Result<bool> {
        Ok(holder(*self, byte, 1)?.is_some())
    }

    fn try_shared(&self, byte: u64) -> io::Result<bool> {
        try_lock(*self, Kind::Shared, byte, 1)
    }
}

/// Locks a byte; false when the time is over.
fn lock_within(description: BorrowedFd<'_>, kind: Kind, byte: u64, wait: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + wait;
    let mut pause = Duration::from_micros(50);
    while !try_lock(description, kind, byte, 1)? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(2));
    }
    Ok(true)
}

/// Keeps every page of an index where it is, until the description is closed; `None` where someone does not stop dropping pages.
/// A forked child that inherits the description keeps them, too.
pub(crate) fn freeze(index: BorrowedFd<'_>, wait: Duration) -> io::Result<Option<OwnedFd>> {
    let description = file::reopen(index)?;
    lock_within(description.as_fd(), Kind::Shared, FREEZE_LOCK, wait).map(|held| held.then_some(description))
}

/// The right to drop pages of an index, alone; `None` where they are frozen, which is not waited for, or another is dropping.
pub(crate) fn dropping(index: BorrowedFd<'_>, wait: Duration) -> io::Result<Option<ChildCloses>> {
    let description = ChildCloses::open(|| file::reopen(index))?;
    let deadline = Instant::now() + wait;
    while !try_lock(description.as_fd(), Kind::Exclusive, FREEZE_LOCK, 1)? {
        let frozen = holder(description.as_fd(), FREEZE_LOCK, 1)?.is_some_and(|holder| holder.kind == Kind::Shared);
        if frozen || Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(Some(description))
}

/// Whether some handle keeps every page of an index where it is.
pub(crate) fn is_frozen(index: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(holder(index, FREEZE_LOCK, 1)?.is_some_and(|holder| holder.kind == Kind::Shared))
}

/// The pages that others hold now, of the first `count`, in order: shared by pins, or alone by who fetches or drops them.
pub(crate) fn held(index: BorrowedFd<'_>, count: u64) -> io::Result<Vec<(Run, Kind)>> {
    let (mut found, mut unasked) = (Vec::new(), Vec::from_iter((count > 0).then(|| Run { first: 0, last: count - 1 })));
    while let Some(run) = unasked.pop() {
        let Some(other) = holder(index, LOCK_BASE + run.first, run.count())? else { continue };
        // It reaches beyond what was asked for, perhaps, and others hold the pages beside it.
        let first = other.first.saturating_sub(LOCK_BASE).max(run.first);
        let last = other.last.saturating_sub(LOCK_BASE).min(run.last);
        found.push((Run { first, last }, other.kind));
        unasked.extend((first > run.first).then(|| Run { first: run.first, last: first - 1 }));
        unasked.extend((last < run.last).then(|| Run { first: last + 1, last: run.last }));
    }
    found.sort_by_key(|(run, _)| run.first);
    Ok(found)
}
