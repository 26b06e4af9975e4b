//! Sessions: processes that open a file, use it, close it and look whether they were the last; they die between any two steps, and the
//! kernel frees their locks in one order or the other.

use crate::death::{dies_after, step};
use crate::session::{Description, Entry, Session, SessionWord};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::{breaks, breaks_when_it_dies, holds, holds_whenever_it_dies};
use loom::sync::{Mutex, MutexGuard};
use loom::thread;
use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool as GhostFlag, AtomicU32 as Ghost, Ordering::Relaxed};
use std::time::Duration;

const SESSION: Session = Session { gate: 1, members: 2 };

struct File {
    word: AtomicU64,
    /// How many share the members' byte.
    members: AtomicU32,
    gate: Mutex<()>,
    has_gate: bool,
    /// Processes that are in the session, and whether its first opener has begun it.
    inside: Ghost,
    begun: GhostFlag,
    /// Somebody died, or did not come in.
    marred: GhostFlag,
}

/// One description of the file, with what is locked on it, and for whom the gate was locked.
struct Open<'a> {
    file: &'a File,
    is_member: Cell<bool>,
    gate: RefCell<Option<MutexGuard<'a, ()>>>,
    inside: Cell<bool>,
}

impl File {
    fn new(has_gate: bool) -> Arc<File> {
        Arc::new(File {
            word: AtomicU64::new(1),
            members: AtomicU32::new(0),
            gate: Mutex::new(()),
            has_gate,
            inside: Ghost::new(0),
            begun: GhostFlag::new(false),
            marred: GhostFlag::new(false),
        })
    }

    fn word(&self) -> SessionWord<'_> {
        SessionWord(&self.word)
    }

    fn open(&self) -> Open<'_> {
        Open { file: self, is_member: Cell::new(false), gate: RefCell::new(None), inside: Cell::new(false) }
    }
}

impl Open<'_> {
    /// What the kernel does at a close or a death.
    fn release(&self) {
        if self.is_member.replace(false) {
            self.file.members.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn comes_in(&self) {
        self.inside.set(true);
        self.file.inside.fetch_add(1, Relaxed);
    }

    fn goes(&self) {
        if self.inside.replace(false) {
            self.file.inside.fetch_sub(1, Relaxed);
        }
        self.release();
    }
}

/// The gate, locked on a description of its own.
struct Gate<'b, 'a>(&'b Open<'a>);

impl Drop for Gate<'_, '_> {
    fn drop(&mut self) {
        if !thread_dies() {
            drop(self.0.gate.take());
        }
    }
}

/// Then the kernel lets go of its locks.
fn thread_dies() -> bool {
    std::thread::panicking()
}

impl<'b, 'a> Description for &'b Open<'a> {
    type Lock = Gate<'b, 'a>;

    fn lock_apart(&self, _byte: u64, _wait: Duration) -> io::Result<Option<Gate<'b, 'a>>> {
        step();
        if self.file.has_gate {
            *self.gate.borrow_mut() = Some(self.file.gate.lock().unwrap());
        }
        Ok(Some(Gate(self)))
    }

    fn is_held(&self, _byte: u64) -> io::Result<bool> {
        step();
        Ok(self.file.members.fetch_add(0, Ordering::AcqRel) != u32::from(self.is_member.get()))
    }

    fn try_shared(&self, _byte: u64) -> io::Result<bool> {
        step();
        if !self.is_member.replace(true) {
            self.file.members.fetch_add(1, Ordering::AcqRel);
        }
        Ok(true)
    }
}

// ---- a process, as `making.rs` and `pair.rs` play it ----

type Enter = for<'b, 'a> fn(&'b Open<'a>) -> Option<u64>;

/// Comes in, and returns the number of the session.
fn enter(member: &Open<'_>) -> Option<u64> {
    let (entry, gate) = SESSION.enter(member, Duration::ZERO).unwrap()?;
    let count = begin_or_join(member, entry);
    gate.open(member).unwrap();
    Some(count)
}

fn begin_or_join(member: &Open<'_>, entry: Entry) -> u64 {
    let file = member.file;
    match entry {
        Entry::First => {
            assert_eq!(file.inside.load(Relaxed), 0, "first in a session that others are in");
            file.begun.store(false, Relaxed);
            member.comes_in();
            let (count, _) = file.word().coming();
            file.word().begin(count);
            file.begun.store(true, Relaxed);
            count
        }
        Entry::Joined => {
            member.comes_in();
            assert!(file.begun.load(Relaxed), "joined a session that nobody has begun");
            file.word().count()
        }
    }
}

/// Opens, uses, closes.
fn live(member: &Open<'_>, fresh: &Open<'_>, enter: Enter) {
    let file = member.file;
    let Some(count) = enter(member) else { return file.marred.store(true, Relaxed) };
    assert!(file.word().stands(count), "in a session that has ended");
    step();
    member.goes();
    if let Some(_gate) = SESSION.is_deserted(fresh, Duration::ZERO).unwrap() {
        file.word().end_clean(count);
        assert_eq!(file.inside.load(Relaxed), 0, "ended while others are in it");
    }
}

/// Whether it died.
fn process(file: &File, steps: u32, gate_goes_first: bool, enter: Enter) -> bool {
    let (member, fresh) = (file.open(), file.open());
    let died = dies_after(steps, || live(&member, &fresh, enter));
    if died {
        file.marred.store(true, Relaxed);
    }
    let gates = || drop((member.gate.take(), fresh.gate.take()));
    let members = || {
        fresh.release();
        member.goes();
    };
    if gate_goes_first {
        gates();
        members();
    } else {
        members();
        gates();
    }
    died
}

// ---- the same, each without a step ----

/// A member before the session has begun.
fn enter_before_it_has_begun(member: &Open<'_>) -> Option<u64> {
    let (entry, _gate) = SESSION.enter(member, Duration::ZERO).unwrap()?;
    assert!(member.try_shared(SESSION.members).unwrap());
    Some(begin_or_join(member, entry))
}

// ---- together ----

fn processes(file: &Arc<File>, count: usize, enter: Enter) -> Vec<thread::JoinHandle<()>> {
    let start = |_| {
        let file = Arc::clone(file);
        thread::spawn(move || assert!(!process(&file, u32::MAX, false, enter)))
    };
    (0..count).map(start).collect()
}

fn at_rest(file: &File) {
    let word = file.word.newest();
    assert!(word & 1 == 1 || file.marred.load(Relaxed), "left unclean by those who went well");
    assert_eq!(file.members.load(Ordering::Acquire), 0);
}

fn together(count: usize, has_gate: bool) -> impl Fn() + Send + Sync + 'static {
    move || {
        let file = File::new(has_gate);
        processes(&file, count, enter).into_iter().for_each(|process| process.join().unwrap());
        at_rest(&file);
    }
}

fn with_a_death(others: usize, gate_goes_first: bool, enter: Enter) -> impl Fn(u32) -> bool + Send + Sync + 'static {
    move |steps| {
        let file = File::new(true);
        let others = processes(&file, others, enter);
        let dying = Arc::clone(&file);
        let died = thread::spawn(move || process(&dying, steps, gate_goes_first, enter)).join().unwrap();
        others.into_iter().for_each(|process| process.join().unwrap());
        at_rest(&file);
        // Whoever comes next is first, and leaves it clean.
        assert!(!process(&file, u32::MAX, false, enter));
        assert_eq!(file.word.newest() & 1, 1);
        died
    }
}

#[test]
fn nobody_is_in_a_session_that_has_ended() {
    holds("sessions of two processes", together(2, true));
    holds("sessions of three processes", together(3, true));
}

#[test]
fn a_process_that_dies_leaves_no_session_that_nobody_has_begun() {
    holds_whenever_it_dies("one that dies and another, the gate freed last", with_a_death(1, false, enter));
    holds_whenever_it_dies("one that dies and another, the gate freed first", with_a_death(1, true, enter));
    holds_whenever_it_dies("one that dies and two others, the gate freed first", with_a_death(2, true, enter));
}

#[test]
fn sessions_without_one_of_their_steps_are_caught() {
    breaks("sessions without a gate", "session", together(2, false));
    let early = with_a_death(1, true, enter_before_it_has_begun);
    breaks_when_it_dies("a member before the session has begun", "joined a session that nobody has begun", early);
}
