//! The bytes of a directory, over all files and processes: reserved before they are written, given back after they are punched, so the
//! count is above what the disk holds at every instant, and the limit above the count.
//!
//! What a process has reserved and not yet put into a page stands in its slot of `control`, whose byte it has locked; so does what its
//! private pairs hold. Whoever finds a slot unlocked gives its bytes back. Every order of two steps is such that a kill between them
//! leaves the count too high, never too low; the first opener of the directory counts anew after an unclean end.

use crate::control::{Control, DirectoryLock};
use crate::format::{AT_CONTROL_DURABLE, AT_CONTROL_SESSION, AT_LIMIT, AT_RECOUNT, AT_USED, SLOT_LOCKS, SLOTS};
use crate::ledger::{Ledger, subtract};
use crate::lock::CONTROL_SESSION;
use crate::log;
use crate::session::{Entry, SessionWord};
use crate::sync::{AtomicU64, Ordering};
use crate::sys::file;
use crate::sys::fork::{ChildCloses, PerProcess};
use crate::sys::lock::{Kind, try_lock};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// Who gives up pages of a directory.
pub(crate) trait MakeRoom: Send + Sync + std::fmt::Debug {
    /// Until so many bytes are free within the limit, or nothing is left to give up.
    fn make_room(&self, bytes: u64);

    /// So many bytes, although the limit has room for more. Returns how many it was.
    fn give_up(&self, bytes: u64) -> u64;
}

/// What was found in a directory whose last session did not end well.
#[derive(Debug)]
pub(crate) struct Census {
    /// What its pairs hold.
    pub(crate) bytes: u64,
    /// There is something that only a later look can judge: the next first opener looks again.
    pub(crate) again: bool,
}

/// The budget of an open directory.
#[derive(Debug)]
pub(crate) struct Budget {
    control: Arc<Control>,
    dir: Arc<OwnedFd>,
    /// The description on which this process is in the directory's session; inherited by children, who are in it, too.
    session: OnceLock<OwnedFd>,
    min_free: u64,
    /// How long its end waits for others who come in or go.
    wait: Duration,
    slots: PerProcess<Slots>,
    evictor: OnceLock<Weak<dyn MakeRoom>>,
}

/// This process's slots: one for what it reserves, gone with it; one for its private pairs, which its children keep, too.
#[derive(Debug, Default)]
struct Slots {
    reserving: OnceLock<Option<(u64, ChildCloses)>>,
    private: OnceLock<Option<(u64, OwnedFd)>>,
}

/// The account of one pair.
#[derive(Debug)]
pub(crate) struct Account {
    budget: Arc<Budget>,
    /// The slot that answers for a private pair.
    private: Option<u64>,
}

/// Bytes reserved in an account; what was not spent goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation<'a> {
    account: &'a Account,
    left: u64,
}

/// The band below the limit in which new pages must earn their place, and the portion that is evicted at once: this part of the limit.
const PORTION: u64 = 128;

impl Budget {
    /// Enters the directory's session; `census` counts what its pairs hold, should that be unknown.
    pub(crate) fn open(
        control: Arc<Control>,
        dir: Arc<OwnedFd>,
        limit: u64,
        min_free: u64,
        wait: Duration,
        census: impl FnOnce() -> Census,
    ) -> io::Result<Arc<Budget>> {
        let session = control.reopen()?;
        let Some((entry, gate)) = CONTROL_SESSION.enter(session.as_fd(), wait)? else {
            return Err(io::Error::other("another process does not come to an end with opening or closing the directory"));
        };
        if entry == Entry::First {
            let word = SessionWord(control.word(AT_CONTROL_SESSION));
            let (count, opened_clean) = word.coming();
            if !opened_clean {
                for slot in 0..SLOTS {
                    control.slot(slot).clear();
                }
                let census = census();
                control.word(AT_USED).store(census.bytes, Ordering::Release);
                control.word(AT_RECOUNT).store(u64::from(census.again), Ordering::Release);
            }
            word.begin(count);
        }
        gate.open(session.as_fd())?;
        if limit != 0 {
            control.word(AT_LIMIT).store(limit, Ordering::Release);
        }
        let session = OnceLock::from(session);
        Ok(Arc::new(Budget { control, dir, session, min_free, wait, slots: PerProcess::new(), evictor: OnceLock::new() }))
    }

    /// Names who makes room when a reservation cannot be met.
    pub(crate) fn set_evictor(&self, evictor: Weak<dyn MakeRoom>) {
        let _ = self.evictor.set(evictor);
    }

    pub(crate) fn limit(&self) -> u64 {
        self.control.word(AT_LIMIT).load(Ordering::Acquire)
    }

    pub(crate) fn used(&self) -> u64 {
        self.control.word(AT_USED).load(Ordering::Acquire)
    }

    /// Whether new pages must earn their place.
    pub(crate) fn is_nearly_full(&self) -> bool {
        let limit = self.limit();
        limit != 0 && self.used().saturating_add(2 * self.portion()) > limit
    }

    /// What is evicted at once, bytes.
    pub(crate) fn portion(&self) -> u64 {
        self.limit() / PORTION
    }

    /// Bytes over the limit, or short of the free space to keep, if `more` came on top.
    pub(crate) fn lacking(&self, more: u64) -> u64 {
        let limit = self.limit();
        let over = if limit == 0 { 0 } else { self.used().saturating_add(more).saturating_sub(limit) };
        over.max(self.short_of_free(more))
    }

    fn short_of_free(&self, more: u64) -> u64 {
        if self.min_free == 0 {
            return 0;
        }
        file::free_bytes(self.dir.as_fd()).map_or(0, |free| self.min_free.saturating_add(more).saturating_sub(free))
    }

    /// Gives back what files that are gone held.
    pub(crate) fn give_back(&self, bytes: u64) {
        subtract(self.control.word(AT_USED), bytes);
    }

    /// Sees that the directory's session is known on the disk to have begun, before its count first moves.
    fn before_change(&self) -> io::Result<()> {
        let session = self.control.word(AT_CONTROL_SESSION).load(Ordering::Acquire);
        let durable = self.control.word(AT_CONTROL_DURABLE);
        if durable.load(Ordering::Acquire) != session {
            self.control.sync()?;
            durable.store(session, Ordering::Release);
        }
        Ok(())
    }

    /// To be called before pages or files go: the session's number is on the disk, and a slot tells of a kill before the count is right.
    pub(crate) fn before_drop(&self) -> io::Result<()> {
        self.before_change()?;
        self.answer_for_files();
        Ok(())
    }

    /// Asks for room; true if it may be worth another try.
    pub(crate) fn make_room(&self, bytes: u64) -> bool {
        let limit = self.limit();
        if limit != 0 && bytes > limit {
            return false;
        }
        if !self.reclaim_for(bytes) {
            if let Some(evictor) = self.evictor.get().and_then(Weak::upgrade) {
                evictor.make_room(bytes);
            }
        }
        self.lacking(bytes) == 0
    }

    /// The disk is full below the limit: gives up what is there. Returns how many bytes that was.
    pub(crate) fn give_up(&self, bytes: u64) -> u64 {
        self.evictor.get().and_then(Weak::upgrade).map_or(0, |evictor| evictor.give_up(bytes))
    }

    pub(crate) fn lock_evictor(&self, wait: Duration) -> io::Result<Option<DirectoryLock>> {
        self.control.lock_evictor(wait)
    }

    /// Whether what dead processes had makes the room.
    pub(crate) fn reclaim_for(&self, bytes: u64) -> bool {
        self.reclaim();
        self.lacking(bytes) == 0
    }

    /// Gives back what dead processes had reserved or held in private pairs.
    pub(crate) fn reclaim(&self) {
        for slot in (0..SLOTS).filter(|&slot| self.control.slot(slot).holds()) {
            let Ok(description) = ChildCloses::open(|| self.control.reopen()) else { return };
            if matches!(try_lock(description.as_fd(), Kind::Exclusive, SLOT_LOCKS + slot, 1), Ok(true)) {
                self.empty(slot);
            }
        }
    }

    /// The caller has the slot's lock. A process that died with it may have been between two steps.
    fn empty(&self, slot: u64) {
        self.control.slot(slot).empty(self.control.word(AT_USED), || self.recount_later());
    }

    /// Finds a slot that nobody has; what a dead process left in it goes back.
    fn find_slot(&self, description: BorrowedFd<'_>) -> Option<u64> {
        let free = |slot: &u64| matches!(try_lock(description, Kind::Exclusive, SLOT_LOCKS + slot, 1), Ok(true));
        let found = (0..SLOTS).find(free);
        match found {
            Some(slot) => {
                self.empty(slot);
                self.control.slot(slot).take();
            }
            None => log::warn(|| {
                format!(
                    "all {SLOTS} slots of the cache directory are taken: what this process reserves is lost to the limit if it is killed"
                )
            }),
        }
        found
    }

    fn reserving(&self) -> Option<&AtomicU64> {
        let find = || {
            let description = ChildCloses::open(|| self.control.reopen()).ok()?;
            Some((self.find_slot(description.as_fd())?, description))
        };
        let slot = self.slots.get().reserving.get_or_init(find);
        slot.as_ref().map(|(slot, _)| self.control.slot(*slot).reserved)
    }

    /// Before files are made or taken away: a process that is killed there leaves its slot, so that the next first opener counts anew
    /// and sweeps.
    pub(crate) fn answer_for_files(&self) {
        let _ = self.reserving();
    }

    fn private_slot(&self) -> Option<u64> {
        let find = || {
            let description = self.control.reopen().ok()?;
            Some((self.find_slot(description.as_fd())?, description))
        };
        let slot = self.slots.get().private.get_or_init(find);
        slot.as_ref().map(|(slot, _)| *slot)
    }

    /// The count may be too high: the next first opener counts anew.
    pub(crate) fn recount_later(&self) {
        self.control.word(AT_RECOUNT).store(1, Ordering::Release);
    }

    /// Leaves this process's slots, with nothing in them but what private pairs hold that children still have.
    fn leave_slots(&mut self) {
        if let Some(slots) = self.slots.peek() {
            let mine = [
                slots.reserving.get().and_then(Option::as_ref).map(|mine| mine.0),
                slots.private.get().and_then(Option::as_ref).map(|mine| mine.0),
            ];
            for slot in mine.into_iter().flatten() {
                self.control.slot(slot).leave();
            }
        }
        self.slots = PerProcess::new();
    }

    fn leave(&mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        let fresh = self.control.reopen()?;
        self.leave_slots();
        drop(session);
        let Some(_gate) = CONTROL_SESSION.is_deserted(fresh.as_fd(), self.wait)? else { return Ok(()) };
        self.reclaim();
        if self.control.word(AT_RECOUNT).load(Ordering::Acquire) != 0 {
            return Ok(()); // stays unclean
        }
        let session = SessionWord(self.control.word(AT_CONTROL_SESSION));
        let count = session.count();
        let changed = self.control.word(AT_CONTROL_DURABLE).load(Ordering::Acquire) == count << 1;
        if changed {
            self.control.sync()?;
        }
        session.end_clean(count);
        if changed { self.control.sync() } else { Ok(()) }
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        if let Err(error) = self.leave() {
            log::warn(|| format!("cache directory not closed cleanly ({error}): its bytes are counted when it is opened next"));
        }
    }
}

impl Account {
    pub(crate) fn new(budget: Arc<Budget>, private: bool) -> Account {
        let private = if private { budget.private_slot() } else { None };
        Account { budget, private }
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Reserves bytes without waiting; `None` where they do not fit.
    pub(crate) fn reserve(&self, bytes: u64) -> io::Result<Option<Reservation<'_>>> {
        self.budget.before_change()?;
        let fits = self.budget.short_of_free(bytes) == 0 && self.reserving().reserve(bytes, self.budget.limit());
        Ok(fits.then(|| Reservation { account: self, left: bytes }))
    }

    fn ledger<'a>(&'a self, reserved: Option<&'a AtomicU64>) -> Ledger<'a> {
        let control = &self.budget.control;
        Ledger { used: control.word(AT_USED), reserved, private: self.private.map(|slot| control.slot(slot).private) }
    }

    /// With the slot of this process, which takes one if it has none.
    fn reserving(&self) -> Ledger<'_> {
        self.ledger(self.budget.reserving())
    }

    /// Gives back bytes that no page holds any more.
    pub(crate) fn give_back(&self, bytes: u64) {
        self.ledger(None).give_back(bytes);
    }
}

impl Reservation<'_> {
    /// Spends a part: from now on a page answers for it.
    pub(crate) fn spend(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.left -= bytes;
        self.account.reserving().spend(bytes);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.left > 0 {
            self.account.reserving().cancel(self.left);
        }
    }
}
