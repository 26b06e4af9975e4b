//! Descriptors that can be spared: closed while nobody uses them, when a process runs out of descriptors, and opened again when they are
//! needed. So a loader that has a thousand files open under a limit of 1,024 goes on, and so do its forked workers.
//!
//! They stand in a table that is never freed and takes no lock, as whoever runs out looks over all of it, and as a child inherits it.

use crate::sync::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering, STRIPES, stripe_of_thread};
use crate::sys::fork::generation;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

/// What stands in the table.
///
/// | state | meaning |
/// |---|---|
/// | `CLOSED` | to be opened again by who needs it |
/// | `fd` | open |
/// | `generation << 32 \| fd` | being closed by that process, unless someone uses it; another process's is a closer that a child did not inherit |
#[derive(Debug)]
struct Entry {
    taken: AtomicBool,
    sparable: AtomicBool,
    state: AtomicU64,
    users: [Users; STRIPES],
}

const CLOSED: u64 = u32::MAX as u64;

/// How many use it just now, by thread; each on a cache line of its own.
#[repr(align(128))]
#[derive(Debug)]
struct Users(AtomicU32);

const ENTRIES: usize = 64;

struct Table {
    entries: [Entry; ENTRIES],
    next: AtomicPtr<Table>,
}

impl Table {
    const fn new() -> Table {
        Table {
            entries: [const {
                Entry {
                    taken: AtomicBool::new(false),
                    sparable: AtomicBool::new(false),
                    state: AtomicU64::new(CLOSED),
                    users: [const { Users(AtomicU32::new(0)) }; STRIPES],
                }
            }; ENTRIES],
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    fn next(&self) -> Option<&'static Table> {
        // SAFETY: null, or a leaked table.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }
}

static TABLE: Table = Table::new();

fn take_entry() -> &'static Entry {
    let mut table = &TABLE;
    loop {
        let free = |entry: &&Entry| !entry.taken.load(Ordering::Relaxed) && !entry.taken.swap(true, Ordering::AcqRel);
        if let Some(entry) = table.entries.iter().find(free) {
            return entry;
        }
        if let Some(next) = table.next() {
            table = next;
            continue;
        }
        let fresh = Box::into_raw(Box::new(Table::new()));
        if table.next.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: nobody has seen it.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

/// A descriptor, or the place of one that was closed.
#[derive(Debug)]
pub(crate) struct Spare {
    entry: &'static Entry,
}

/// A descriptor in use: it stays open.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    fd: BorrowedFd<'a>,
    users: &'a Users,
}

impl Spare {
    /// `sparable`: it can be opened again.
    pub(crate) fn new(fd: OwnedFd, sparable: bool) -> Spare {
        let entry = take_entry();
        entry.sparable.store(sparable, Ordering::Relaxed);
        entry.state.store(fd.into_raw_fd() as u64, Ordering::Release);
        Spare { entry }
    }

    /// The descriptor, opened by `again` if it was closed.
    #[inline]
    pub(crate) fn hold(&self, again: impl Fn() -> io::Result<OwnedFd>) -> io::Result<Held<'_>> {
        match self.entry.hold() {
            Some(held) => Ok(held),
            None => self.hold_again(again),
        }
    }

    #[cold]
    fn hold_again(&self, again: impl Fn() -> io::Result<OwnedFd>) -> io::Result<Held<'_>> {
        loop {
            match self.entry.state.load(Ordering::SeqCst) {
                CLOSED => {
                    let fresh = again()?.into_raw_fd();
                    let stored = self.entry.state.compare_exchange(CLOSED, fresh as u64, Ordering::SeqCst, Ordering::SeqCst);
                    if stored.is_err() {
                        close(fresh); // another was faster
                    }
                }
                closing if closing >> 32 != 0 => self.entry.wait_for_closer(closing),
                _ => {}
            }
            if let Some(held) = self.entry.hold() {
                return Ok(held);
            }
        }
    }
}

impl Entry {
    #[inline]
    fn hold(&self) -> Option<Held<'_>> {
        let users = &self.users[stripe_of_thread()];
        // Before the state is looked at: whoever closes changes that first, and then counts the users.
        users.0.fetch_add(1, Ordering::SeqCst);
        let state = self.state.load(Ordering::SeqCst);
        if state < CLOSED {
            // SAFETY: open, and not closed before `users` is lowered again, when `Held` is dropped.
            return Some(Held { fd: unsafe { BorrowedFd::borrow_raw(state as RawFd) }, users });
        }
        users.0.fetch_sub(1, Ordering::Release);
        None
    }

    /// Closes it unless someone uses it; true if that gave a descriptor back. A child that was forked in the middle of someone's use never
    /// closes it.
    fn close_if_idle(&self) -> bool {
        let open = self.state.load(Ordering::SeqCst);
        if open >= CLOSED || !self.taken.load(Ordering::Acquire) || !self.sparable.load(Ordering::Relaxed) {
            return false;
        }
        let closing = u64::from(generation()) << 32 | open;
        if self.state.compare_exchange(open, closing, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return false;
        }
        // Once more, now that whoever drops it waits: another may have taken the entry, and the number, since.
        let sparable = self.taken.load(Ordering::Acquire) && self.sparable.load(Ordering::Relaxed);
        let idle = sparable && self.users.iter().all(|users| users.0.load(Ordering::SeqCst) == 0);
        if idle {
            close(open as RawFd);
        }
        self.state.store(if idle { CLOSED } else { open }, Ordering::SeqCst);
        idle
    }

    /// Someone is about to close it, or was when this process was forked: then what is left of it is leaked.
    fn wait_for_closer(&self, closing: u64) {
        if closing >> 32 == u64::from(generation()) {
            std::thread::yield_now();
        } else {
            let _ = self.state.compare_exchange(closing, CLOSED, Ordering::SeqCst, Ordering::SeqCst);
        }
    }
}

fn close(fd: RawFd) {
    // SAFETY: the caller's own, out of everyone's reach.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

impl Drop for Spare {
    fn drop(&mut self) {
        // A closer may be looking at it.
        let open = loop {
            match self.entry.state.load(Ordering::SeqCst) {
                CLOSED => break None,
                closing if closing >> 32 != 0 => self.entry.wait_for_closer(closing),
                open => {
                    if self.entry.state.compare_exchange(open, CLOSED, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                        break Some(open as RawFd);
                    }
                }
            }
        };
        if let Some(open) = open {
            close(open);
        }
        // Users that a child inherited never leave: their entry is not used again.
        if self.entry.users.iter().all(|users| users.0.load(Ordering::SeqCst) == 0) {
            self.entry.taken.store(false, Ordering::Release);
        }
    }
}

impl AsFd for Held<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        self.users.0.fetch_sub(1, Ordering::Release);
    }
}

/// Others may take what was closed here before it is used.
const TRIES: u32 = 8;
const PAUSE: Duration = Duration::from_micros(100);

/// Opens, and where the process or the system is out of descriptors closes what can be spared and tries again.
pub(crate) fn with_relief<T>(open: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let is_out = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    let mut opened = open();
    for _ in 0..TRIES {
        if !opened.as_ref().is_err_and(is_out) {
            break;
        }
        if relieve() == 0 {
            std::thread::sleep(PAUSE); // what could be spared is in use just now
        }
        opened = open();
    }
    opened
}

/// Closes what is idle; returns how many that were.
#[cold]
fn relieve() -> usize {
    let mut closed = 0;
    let mut table = Some(&TABLE);
    while let Some(here) = table {
        closed += here.entries.iter().filter(|entry| entry.close_if_idle()).count();
        table = here.next();
    }
    closed
}
