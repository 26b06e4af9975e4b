//! Sessions: from the first opener of a file to its last closer, over all processes. Two bytes of the file are locked, and one word of
//! it counts. It stands on a trait of locks and on atomics, so that a model checker runs these very lines (`tests/models`).
//!
//! Members hold one byte shared; whoever comes in, or looks whether it was the last to go, does so inside the gate, the other byte,
//! alone, and does what the first opener and the last closer must before it lets go of the gate. (Without it, one who saw others in a
//! session could join it after it ended.) The members' byte is looked at and never locked alone, and the first opener becomes a member
//! only when the session has begun: a child that is forked at any moment, and outlives its parent, keeps neither others out nor a
//! session alive that nobody has begun.

use crate::sync::{AtomicU64, Ordering};
use std::io;
use std::time::Duration;

/// An open file description, as far as a session locks bytes of its file on it. Its locks go when it is closed.
pub(crate) trait Description {
    /// A lock of a byte on another description of the same file, held until dropped.
    type Lock;

    /// Locks a byte alone, for a time: `None` when that is over.
    fn lock_apart(&self, byte: u64, wait: Duration) -> io::Result<Option<Self::Lock>>;
    /// Whether others hold the lock of a byte.
    fn is_held(&self, byte: u64) -> io::Result<bool>;
    /// Locks a byte here; false where another holds it alone.
    fn try_shared(&self, byte: u64) -> io::Result<bool>;
}

/// How a process came into a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Nobody else was in it: it begins here.
    First,
    /// Others are in it, and it had begun before the gate was free.
    Joined,
}

/// The bytes of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Session {
    pub(crate) gate: u64,
    pub(crate) members: u64,
}

/// While it lives, nobody else comes in or ends the session.
#[derive(Debug)]
pub(crate) struct Gate<L> {
    _lock: L,
    members: u64,
}

impl<L> Gate<L> {
    /// The session has begun: becomes a member, on a fresh description, until that is closed: never unlocked, as a forked child may hold
    /// it, too. Then lets others in.
    pub(crate) fn open<D: Description>(self, file: D) -> io::Result<()> {
        if file.try_shared(self.members)? { Ok(()) } else { Err(io::Error::other("its lock is held by another program")) }
    }
}

impl Session {
    /// Comes to the session through its gate. What has to be done first is done before the gate is opened. `None` when the time is
    /// over.
    pub(crate) fn enter<D: Description>(self, file: D, wait: Duration) -> io::Result<Option<(Entry, Gate<D::Lock>)>> {
        let Some(gate) = self.gate(&file, wait)? else { return Ok(None) };
        let entry = if file.is_held(self.members)? { Entry::Joined } else { Entry::First };
        Ok(Some((entry, gate)))
    }

    /// Whether nobody is in the session any more, seen from a fresh description; then nobody comes in while the gate lives.
    pub(crate) fn is_deserted<D: Description>(self, fresh: D, wait: Duration) -> io::Result<Option<Gate<D::Lock>>> {
        let Some(gate) = self.gate(&fresh, wait)? else { return Ok(None) };
        Ok((!fresh.is_held(self.members)?).then_some(gate))
    }

    fn gate<D: Description>(self, file: &D, wait: Duration) -> io::Result<Option<Gate<D::Lock>>> {
        Ok(file.lock_apart(self.gate, wait)?.map(|lock| Gate { _lock: lock, members: self.members }))
    }
}

/// The word that counts sessions: `count << 1 | clean`, where clean says that the last one ended well.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionWord<'a>(pub(crate) &'a AtomicU64);

impl SessionWord<'_> {
    pub(crate) fn count(self) -> u64 {
        self.0.load(Ordering::Acquire) >> 1
    }

    /// What the session before the coming one left: the count of the coming one, and whether it was left clean. Inside the gate.
    pub(crate) fn coming(self) -> (u64, bool) {
        let before = self.0.load(Ordering::Acquire);
        ((before >> 1).wrapping_add(1) & (u64::MAX >> 1), before & 1 == 1)
    }

    /// The first opener's part, inside the gate.
    pub(crate) fn begin(self, count: u64) {
        self.0.store(count << 1, Ordering::Release);
    }

    /// Whether a session is still on.
    pub(crate) fn stands(self, count: u64) -> bool {
        self.0.load(Ordering::Acquire) == count << 1
    }

    /// The last closer's part, inside the gate, once everything else is done.
    pub(crate) fn end_clean(self, count: u64) -> bool {
        let open = count << 1;
        self.0.compare_exchange(open, open | 1, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}
