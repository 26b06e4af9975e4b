//! The bytes of a directory: processes that reserve, spend and give back, die between any two steps, and have their slots emptied.
//! What the disk holds is counted beside the ledger, in the same instant as the step that it belongs to.

use crate::death::{Lock, dies_after, step};
use crate::ledger::{Ledger, Slot, add_within, subtract};
use crate::sync::{AtomicU64, Ordering};
use crate::{breaks, breaks_when_it_dies, holds, holds_whenever_it_dies};
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as Ghost, Ordering::Relaxed};

/// Two pages fit, and somebody's page is there.
const LIMIT: u64 = 2;

struct Directory {
    used: AtomicU64,
    recount: AtomicU64,
    slots: [Words; 2],
    disk: Ghost,
}

/// A slot, and the lock that its process has.
struct Words {
    reserved: AtomicU64,
    private: AtomicU64,
    taken: AtomicU64,
    lock: Lock,
}

impl Directory {
    fn begin() -> Arc<Directory> {
        let word = || AtomicU64::new(0);
        let slot = || Words { reserved: word(), private: word(), taken: word(), lock: Lock::new() };
        Arc::new(Directory { used: AtomicU64::new(1), recount: word(), slots: [slot(), slot()], disk: Ghost::new(1) })
    }

    fn slot(&self, slot: usize) -> Slot<'_> {
        let Words { reserved, private, taken, .. } = &self.slots[slot];
        Slot { reserved, private, taken }
    }

    fn recount(&self) {
        self.recount.store(1, Ordering::Release);
    }

    /// Looks at one instant.
    fn look(&self) {
        let used = self.used.newest();
        assert!(used <= LIMIT, "over the limit");
        assert!(used >= self.disk.load(Relaxed), "the disk holds more than is counted");
    }

    fn writes(&self) {
        self.disk.fetch_add(1, Relaxed);
        self.look();
    }

    fn punches(&self) {
        self.look();
        self.disk.fetch_sub(1, Relaxed);
    }

    /// Everybody has gone, and every slot was emptied.
    fn at_rest(&self) {
        self.look();
        let (used, disk) = (self.used.newest(), self.disk.load(Relaxed));
        assert!(used == disk || self.recount.newest() == 1, "{used} bytes are counted for ever, {disk} are there");
        assert!(!self.slot(0).holds() && !self.slot(1).holds());
    }
}

// ---- the parts, as `budget.rs`, `fetch.rs` and `dropping.rs` play them ----

#[derive(Clone, Copy)]
struct Life {
    reserve: fn(Ledger<'_>) -> bool,
    spend: fn(Ledger<'_>),
    drop: fn(&Directory, Ledger<'_>),
    private: bool,
}

const LIFE: Life = Life { reserve, spend, drop: drop_page, private: false };

fn reserve(ledger: Ledger<'_>) -> bool {
    ledger.reserve(1, LIMIT)
}

fn spend(ledger: Ledger<'_>) {
    ledger.spend(1);
}

fn drop_page(directory: &Directory, ledger: Ledger<'_>) {
    directory.punches();
    ledger.give_back(1);
}

impl Life {
    /// Fetches a page and drops it, reserves and thinks better of it. `mine` are the pages that are gone with the process.
    fn live(self, directory: &Directory, number: usize, mine: &Ghost) {
        let slot = directory.slot(number);
        slot.take();
        let ledger = Ledger { used: &directory.used, reserved: Some(slot.reserved), private: self.private.then_some(slot.private) };
        if (self.reserve)(ledger) {
            (self.spend)(ledger);
            directory.writes();
            mine.store(u64::from(self.private), Relaxed);
            step(); // it reads the page
            mine.store(0, Relaxed);
            (self.drop)(directory, ledger);
        }
        if (self.reserve)(ledger) {
            ledger.cancel(1);
        }
        slot.leave();
    }

    /// The kernel's part: the slot's lock is held while the process lives. Returns whether it died.
    fn dies_after(self, steps: u32, directory: &Directory, number: usize) -> bool {
        let mine = Ghost::new(0);
        let Some(_held) = directory.slots[number].lock.try_hold() else { return false };
        let died = dies_after(steps, || self.live(directory, number, &mine));
        directory.disk.fetch_sub(mine.load(Relaxed), Relaxed);
        died
    }
}

type Reclaim = fn(&Directory);

fn empty(directory: &Directory) {
    directory.slot(0).empty(&directory.used, || directory.recount());
}

fn reclaim(directory: &Directory) {
    if directory.slot(0).holds() {
        if let Some(_held) = directory.slots[0].lock.try_hold() {
            empty(directory);
        }
    }
    directory.look();
}

// ---- the same, each without a step ----

fn reserve_by_load_then_add(ledger: Ledger<'_>) -> bool {
    let fits = ledger.used.load(Ordering::SeqCst) < LIMIT;
    if fits {
        ledger.used.fetch_add(1, Ordering::SeqCst);
        ledger.reserved.unwrap().fetch_add(1, Ordering::SeqCst);
    }
    fits
}

fn reserve_in_the_slot_first(ledger: Ledger<'_>) -> bool {
    ledger.reserved.unwrap().fetch_add(1, Ordering::SeqCst);
    let fits = add_within(ledger.used, 1, LIMIT);
    if !fits {
        subtract(ledger.reserved.unwrap(), 1);
    }
    fits
}

fn spend_and_leave_it_in_the_slot(_ledger: Ledger<'_>) {}

fn give_back_before_the_punch(directory: &Directory, ledger: Ledger<'_>) {
    ledger.give_back(1);
    directory.punches();
}

fn reclaim_without_the_lock(directory: &Directory) {
    if directory.slot(0).holds() {
        empty(directory);
    }
    directory.look();
}

fn empty_after_giving_back(directory: &Directory) {
    let Slot { reserved, taken, .. } = directory.slot(0);
    taken.store(0, Ordering::Release);
    directory.recount();
    subtract(&directory.used, reserved.load(Ordering::Acquire));
    reserved.store(0, Ordering::Release);
}

// ---- together ----

fn spawn(directory: &Arc<Directory>, part: impl FnOnce(&Directory) + 'static) -> thread::JoinHandle<()> {
    let directory = Arc::clone(directory);
    thread::spawn(move || part(&directory))
}

/// Two processes that live.
fn two_lives(life: Life) -> impl Fn() + Send + Sync + 'static {
    move || {
        let directory = Directory::begin();
        let lives = |number| move |directory: &Directory| assert!(!life.dies_after(u32::MAX, directory, number));
        let threads = [spawn(&directory, lives(0)), spawn(&directory, lives(1))];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        directory.at_rest();
    }
}

/// A process that dies, one that empties its slot meanwhile, and one afterwards.
fn a_death(life: Life, reclaims: Reclaim) -> impl Fn(u32) -> bool + Send + Sync + 'static {
    move |steps| {
        let directory = Directory::begin();
        let other = spawn(&directory, reclaims);
        let dying = Arc::clone(&directory);
        let died = thread::spawn(move || life.dies_after(steps, &dying, 0)).join().unwrap();
        other.join().unwrap();
        reclaim(&directory);
        directory.at_rest();
        died
    }
}

/// A slot that a dead process left, emptied by one who dies at it, and by another.
fn a_death_at_emptying(empty: fn(&Directory)) -> impl Fn(u32) -> bool + Send + Sync + 'static {
    move |steps| {
        let directory = Directory::begin();
        let ledger = Ledger { used: &directory.used, reserved: Some(directory.slot(0).reserved), private: None };
        directory.slot(0).take();
        assert!(ledger.reserve(1, LIMIT));
        let other = spawn(&directory, reclaim);
        let dying = Arc::clone(&directory);
        let dies = move || dying.slots[0].lock.try_hold().is_some_and(|_held| dies_after(steps, || empty(&dying)));
        let died = thread::spawn(dies).join().unwrap();
        other.join().unwrap();
        reclaim(&directory);
        directory.at_rest();
        died
    }
}

#[test]
fn the_count_is_between_the_disk_and_the_limit() {
    holds("two processes reserve, spend, drop and cancel", two_lives(LIFE));
    holds("the same with private pairs", two_lives(Life { private: true, ..LIFE }));
}

#[test]
fn what_a_dead_process_had_is_given_back_once() {
    holds_whenever_it_dies("a process, and one that empties its slot", a_death(LIFE, reclaim));
    holds_whenever_it_dies("the same with a private pair", a_death(Life { private: true, ..LIFE }, reclaim));
    holds_whenever_it_dies("one that empties a slot, and another", a_death_at_emptying(empty));
}

#[test]
fn a_life_without_one_of_its_steps_is_caught() {
    breaks("a limit held by a load, then an add", "over the limit", two_lives(Life { reserve: reserve_by_load_then_add, ..LIFE }));
    breaks(
        "bytes given back before the punch",
        "the disk holds more",
        two_lives(Life { drop: give_back_before_the_punch, ..LIFE }),
    );
    let in_the_slot_first = a_death(Life { reserve: reserve_in_the_slot_first, ..LIFE }, reclaim);
    breaks_when_it_dies("bytes in the slot before they are counted", "the disk holds more", in_the_slot_first);
    let left_in_the_slot = a_death(Life { spend: spend_and_leave_it_in_the_slot, ..LIFE }, reclaim);
    breaks_when_it_dies("bytes spent and left in the slot", "the disk holds more", left_in_the_slot);
}

#[test]
fn emptying_a_slot_without_one_of_its_steps_is_caught() {
    let of_the_living = a_death(LIFE, reclaim_without_the_lock);
    breaks_when_it_dies("the slot of a process that lives is emptied", "the disk holds more", of_the_living);
    breaks_when_it_dies("a slot emptied twice", "the disk holds more", a_death_at_emptying(empty_after_giving_back));
}
