//! The numbers of forked processes, and the values that stand under them. A fork is a copy of the words, taken while other threads of
//! the parent are between two steps; the word that the kernel wipes is 0 in the copy.

use crate::lineage::{Made, known, number, number_by_pid, value};
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use crate::{breaks, holds};
use loom::cell::UnsafeCell;
use loom::thread;
use std::ptr;
use std::sync::Arc;

const PARENT: u32 = 11;
const CHILD: u32 = 12;

/// What the threads of a process share: its number, and a value that each process has for itself.
struct Process {
    pid: u32,
    wiped: AtomicU32,
    by_pid: AtomicU64,
    last: AtomicU32,
    current: AtomicPtr<Made<UnsafeCell<u32>>>,
}

type Number = fn(&Process) -> u32;
type Value = fn(&Process, u32) -> *const UnsafeCell<u32>;

impl Process {
    fn first(pid: u32) -> Process {
        Process {
            pid,
            wiped: AtomicU32::new(0),
            by_pid: AtomicU64::new(0),
            last: AtomicU32::new(0),
            current: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// What was there before is read no later than what followed, so the copy is one of memory at an instant, or of a later one.
    fn fork(&self) -> Process {
        let current = self.current.load(Ordering::Acquire);
        let by_pid = self.by_pid.newest();
        let last = self.last.fetch_add(0, Ordering::AcqRel);
        Process {
            pid: CHILD,
            wiped: AtomicU32::new(0),
            by_pid: AtomicU64::new(by_pid),
            last: AtomicU32::new(last),
            current: AtomicPtr::new(current),
        }
    }
}

fn make(generation: u32) -> *mut Made<UnsafeCell<u32>> {
    Box::into_raw(Box::new(Made { generation, on_heap: true, value: UnsafeCell::new(generation) }))
}

fn unmake(made: *mut Made<UnsafeCell<u32>>) {
    // SAFETY: from `make`, and nobody has seen it.
    drop(unsafe { Box::from_raw(made) });
}

// ---- as `fork.rs` does it, with and without a word that is wiped ----

fn wiped(process: &Process) -> u32 {
    known(&process.wiped).unwrap_or_else(|| number(&process.wiped, &process.last))
}

fn by_pid(process: &Process) -> u32 {
    number_by_pid(&process.by_pid, &process.last, process.pid)
}

fn published(process: &Process, generation: u32) -> *const UnsafeCell<u32> {
    // SAFETY: `current` is null or from `make`, and what was published is never freed here.
    unsafe { value(&process.current, generation, || make(generation), unmake) }
}

// ---- the same, each without a step ----

fn load_then_store(process: &Process) -> u32 {
    known(&process.wiped).unwrap_or_else(|| {
        let generation = process.last.fetch_add(1, Ordering::AcqRel) + 1;
        process.wiped.store(generation, Ordering::Release);
        generation
    })
}

fn drawn_after_it_is_published(process: &Process) -> u32 {
    loop {
        let known = process.by_pid.load(Ordering::Acquire);
        if known >> 32 == u64::from(process.pid) {
            return known as u32;
        }
        let next = process.last.load(Ordering::Acquire) + 1;
        let word = u64::from(process.pid) << 32 | u64::from(next);
        if process.by_pid.compare_exchange(known, word, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            process.last.store(next, Ordering::Release);
            return next;
        }
    }
}

fn not_counting_on(process: &Process) -> u32 {
    known(&process.wiped).unwrap_or_else(|| number(&process.wiped, &AtomicU32::new(0)))
}

fn published_by_a_store(process: &Process, generation: u32) -> *const UnsafeCell<u32> {
    let known = process.current.load(Ordering::Acquire);
    // SAFETY: null or from `make`.
    if let Some(made) = unsafe { known.as_ref() }.filter(|made| made.generation == generation) {
        return &made.value;
    }
    let fresh = make(generation);
    process.current.store(fresh, Ordering::Release);
    // SAFETY: from `make`, and never freed.
    unsafe { &(*fresh).value }
}

fn published_unordered(process: &Process, generation: u32) -> *const UnsafeCell<u32> {
    let known = process.current.load(Ordering::Relaxed);
    // SAFETY: null or from `make`.
    if let Some(made) = unsafe { known.as_ref() }.filter(|made| made.generation == generation) {
        return &made.value;
    }
    let fresh = make(generation);
    match process.current.compare_exchange(known, fresh, Ordering::Relaxed, Ordering::Relaxed) {
        // SAFETY: from `make`, and never freed.
        Ok(_) => unsafe { &(*fresh).value },
        // SAFETY: likewise.
        Err(theirs) => unsafe { &(*theirs).value },
    }
}

// ---- together ----

/// A value's address after a look into it, which the checker holds against who wrote it.
fn used(process: &Process, generation: u32, value: Value) -> usize {
    let value = value(process, generation);
    // SAFETY: from `make`, and never freed while the model runs.
    let made_by = unsafe { (*value).with(|made_by| *made_by) };
    assert_eq!(made_by, generation, "another process's value");
    value as usize
}

/// Two threads of a fresh child, whose parent made a value.
fn two_threads(number: Number, value: Value) -> impl Fn() + Send + Sync + 'static {
    move || {
        let parent = Process::first(PARENT);
        let inherited = used(&parent, number(&parent), value);
        let child = Arc::new(parent.fork());
        let start = || {
            let child = Arc::clone(&child);
            thread::spawn(move || (number(&child), used(&child, number(&child), value)))
        };
        let threads = [start(), start()];
        let [one, two] = threads.map(|thread| thread.join().unwrap());
        assert_eq!(one.0, two.0, "two numbers");
        assert_eq!(one.1, two.1, "two values");
        assert_ne!(one.1, inherited, "a value that was inherited");
        free(&[inherited, one.1]);
    }
}

/// A thread of a process uses it and forks, while another may be amidst numbering it and making its value.
fn forked_meanwhile(number: Number) -> impl Fn() + Send + Sync + 'static {
    move || {
        let parent = Arc::new(Process::first(PARENT));
        let other = Arc::clone(&parent);
        let working = thread::spawn(move || used(&other, number(&other), published));
        let forking = thread::spawn(move || {
            used(&parent, number(&parent), published);
            let child = parent.fork();
            used(&child, number(&child), published)
        });
        let (parents, childs) = (working.join().unwrap(), forking.join().unwrap());
        assert_ne!(parents, childs, "a value that was inherited");
        free(&[parents, childs]);
    }
}

fn free(values: &[usize]) {
    for &value in values {
        let made = value - std::mem::offset_of!(Made<UnsafeCell<u32>>, value);
        unmake(made as *mut Made<UnsafeCell<u32>>);
    }
}

#[test]
fn the_threads_of_a_child_agree_on_a_number_and_a_value() {
    holds("a fresh child, by a word that is wiped: two threads", two_threads(wiped, published));
    holds("a fresh child, by its process id: two threads", two_threads(by_pid, published));
}

#[test]
fn a_child_never_has_what_its_parent_made() {
    holds("forked while its parent is being numbered, by a word that is wiped", forked_meanwhile(wiped));
    holds("forked while its parent is being numbered, by its process id", forked_meanwhile(by_pid));
}

#[test]
fn a_number_or_a_value_without_one_of_its_steps_is_caught() {
    breaks("numbered by a load, then a store", "two", two_threads(load_then_store, published));
    breaks("numbers that begin anew in a child", "a value that was inherited", two_threads(not_counting_on, published));
    breaks("published by a store", "two values", two_threads(wiped, published_by_a_store));
    breaks("published without order", "Causality violation", two_threads(wiped, published_unordered));
    breaks("a number published before it is drawn", "a value that was inherited", forked_meanwhile(drawn_after_it_is_published));
}
