//! A page's word: readers, a filler, an evictor. The mirror is two halves of a page, read and written with no order of their own, as
//! the kernel may; a fill writes one after the other, a punch writes zeros.

use crate::death::{Lock, dies_after};
use crate::format::{State, Word};
use crate::sync::{AtomicU64, Ordering, fence};
use crate::word::{self, PageWord};
use crate::{breaks, holds, holds_whenever_it_dies};
use loom::thread;
use std::sync::Arc;

const EPOCH: u16 = 5;
const GOOD: [u64; 2] = [5, 7];
const ROTTEN: [u64; 2] = [5, 6];
const HALF: [u64; 2] = [5, 0];
const HOLE: [u64; 2] = [0, 0];

fn crc(bytes: [u64; 2]) -> u32 {
    (bytes[0] * 31 + bytes[1]) as u32
}

struct Page {
    word: AtomicU64,
    halves: [AtomicU64; 2],
    lock: Lock,
    /// What was in the mirror at first.
    first: [u64; 2],
}

impl Page {
    fn word(&self) -> PageWord<'_> {
        PageWord(&self.word)
    }

    /// Every look at the word: a present page has its checksum.
    fn look(&self) -> Word {
        let word = self.word().load();
        assert!(!word.is_present() || word.crc() == crc(GOOD), "a state without its checksum");
        word
    }

    fn bytes(&self) -> [u64; 2] {
        [self.halves[0].load(Ordering::Relaxed), self.halves[1].load(Ordering::Relaxed)]
    }

    fn write(&self, bytes: [u64; 2]) {
        self.halves[0].store(bytes[0], Ordering::Relaxed);
        self.halves[1].store(bytes[1], Ordering::Relaxed);
    }
}

fn absent() -> (Word, [u64; 2]) {
    (Word(0), HOLE)
}

fn left_by_a_dead_fetcher() -> (Word, [u64; 2]) {
    (Word(0).taken(EPOCH), HALF)
}

fn of_the_last_session() -> (Word, [u64; 2]) {
    (Word(0).taken(EPOCH - 1).filled(crc(GOOD), EPOCH - 1), GOOD)
}

fn rotten() -> (Word, [u64; 2]) {
    (of_the_last_session().0, ROTTEN)
}

fn verified() -> (Word, [u64; 2]) {
    (of_the_last_session().0.verified(EPOCH), GOOD)
}

// ---- the parts, as `pair.rs`, `fetch.rs` and `dropping.rs` play them ----

fn delivered(bytes: [u64; 2]) {
    assert_eq!(bytes, GOOD, "wrong bytes");
}

fn read(page: &Page) {
    for _ in 0..2 {
        let seen = page.look();
        if !seen.is_present() {
            return;
        }
        if seen.state() != State::Verified || seen.epoch() != EPOCH {
            return compare(page, seen);
        }
        let mut bytes = HOLE;
        let copied = word::copy(
            &[seen],
            |_| Some(page.look()),
            || {
                bytes = page.bytes();
                Ok::<(), ()>(())
            },
        );
        if copied == Ok(true) {
            return delivered(bytes);
        }
    }
}

/// A first hit of the session, or any with `NEARFILE_VERIFY_ALWAYS`.
fn compare(page: &Page, seen: Word) {
    let mut bytes = HOLE;
    let copied = word::copy(
        &[seen],
        |_| Some(page.look()),
        || {
            bytes = page.bytes();
            Ok::<(), ()>(())
        },
    );
    if copied != Ok(true) {
        return;
    }
    if crc(bytes) == seen.crc() {
        page.word().stamp(seen, EPOCH);
        delivered(bytes);
    } else {
        assert_eq!(page.first, ROTTEN, "a good page is mistrusted");
        page.word().mistrust(seen, EPOCH);
    }
}

fn verify_always(page: &Page) {
    let seen = page.look();
    if seen.is_present() {
        compare(page, seen);
    }
}

fn fill(page: &Page) {
    let Some(_held) = page.lock.try_hold() else { return };
    fill_locked(page);
}

fn fill_locked(page: &Page) {
    if page.look().is_present() {
        return;
    }
    let taken = page.word().take(EPOCH).unwrap();
    page.write(GOOD);
    assert!(page.word().publish(taken, crc(GOOD), EPOCH));
}

/// A reader may stamp or mistrust the page meanwhile.
fn give_up(page: &Page) -> bool {
    loop {
        let seen = page.look();
        if seen.state() == State::Absent {
            return false;
        }
        if page.word().give_up(seen) {
            return true;
        }
    }
}

fn evict(page: &Page) {
    let Some(_held) = page.lock.try_hold() else { return };
    if give_up(page) {
        page.write(HOLE);
    }
}

// ---- the same, each without a step ----

fn read_without_a_second_look(page: &Page) {
    let seen = page.look();
    if seen.is_present() && seen.state() == State::Verified {
        delivered(page.bytes());
    }
}

fn read_without_a_fence(page: &Page) {
    let seen = page.look();
    if seen.is_present() && seen.state() == State::Verified {
        let bytes = page.bytes();
        if page.look() == seen {
            delivered(bytes);
        }
    }
}

fn evict_after_a_punch(page: &Page) {
    let Some(_held) = page.lock.try_hold() else { return };
    page.write(HOLE);
    give_up(page);
}

fn evict_without_a_fence(page: &Page) {
    let Some(_held) = page.lock.try_hold() else { return };
    let seen = page.look();
    if seen.is_present() && page.word.compare_exchange(seen.0, seen.absent().0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        page.write(HOLE);
    }
}

fn evict_in_the_same_sequence(page: &Page) {
    let Some(_held) = page.lock.try_hold() else { return };
    let seen = page.look();
    if seen.is_present() && page.word.compare_exchange(seen.0, 0, Ordering::SeqCst, Ordering::Acquire).is_ok() {
        fence(Ordering::SeqCst);
        page.write(HOLE);
        let taken = page.word().take(EPOCH).unwrap();
        page.write(GOOD);
        page.word().publish(taken, crc(GOOD), EPOCH);
        let filled = page.look();
        page.word().stamp(filled, EPOCH);
    }
}

fn fill_without_a_lock(page: &Page) {
    fill_locked(page);
}

fn fill_state_first(page: &Page) {
    let Some(_held) = page.lock.try_hold() else { return };
    if let Some(taken) = page.word().take(EPOCH) {
        page.write(GOOD);
        page.word().publish(taken, 0, EPOCH);
        page.word().put(taken.filled(crc(GOOD), EPOCH));
    }
}

fn publish_before_all_is_written(page: &Page) {
    let Some(_held) = page.lock.try_hold() else { return };
    if let Some(taken) = page.word().take(EPOCH) {
        page.halves[0].store(GOOD[0], Ordering::Relaxed);
        page.word().publish(taken, crc(GOOD), EPOCH);
        page.halves[1].store(GOOD[1], Ordering::Relaxed);
    }
}

// ---- together ----

type Part = fn(&Page);

fn begin((word, bytes): (Word, [u64; 2])) -> Arc<Page> {
    Arc::new(Page {
        word: AtomicU64::new(word.0),
        halves: [AtomicU64::new(bytes[0]), AtomicU64::new(bytes[1])],
        lock: Lock::new(),
        first: bytes,
    })
}

fn at_rest(page: &Page) {
    let (word, bytes) = (page.look(), page.bytes());
    match word.state() {
        State::Absent => assert_eq!(bytes, HOLE, "an absent page has bytes"),
        State::Verified => assert_eq!(bytes, GOOD, "a verified page is wrong"),
        State::Filled => assert!(bytes == GOOD || bytes == page.first, "a filled page is torn"),
        State::Taken => {}
    }
}

fn spawn(page: &Arc<Page>, parts: &'static [Part]) -> Vec<thread::JoinHandle<()>> {
    let start = |&part: &Part| {
        let page = Arc::clone(page);
        thread::spawn(move || part(&page))
    };
    parts.iter().map(start).collect()
}

fn together(start: fn() -> (Word, [u64; 2]), parts: &'static [Part]) -> impl Fn() + Send + Sync + 'static {
    move || {
        let page = begin(start());
        let threads = spawn(&page, parts);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        at_rest(&page);
    }
}

#[test]
fn a_reader_gets_the_page_or_nothing() {
    holds("verified: a reader, an evictor, a filler", together(verified, &[read, evict, fill]));
    holds("verified: a reader that always compares, an evictor, a filler", together(verified, &[verify_always, evict, fill]));
    holds("of the last session: two readers, an evictor", together(of_the_last_session, &[read, read, evict]));
    holds("rotten: two readers, a filler", together(rotten, &[read, read, fill]));
    holds("rotten: a reader, an evictor, a filler", together(rotten, &[read, evict, fill]));
    holds("absent: two fillers, a reader", together(absent, &[fill, fill, read]));
    holds("left by a dead fetcher: a reader, an evictor, a filler", together(left_by_a_dead_fetcher, &[read, evict, fill]));
}

#[test]
fn a_fetcher_that_dies_leaves_nothing_that_is_served() {
    for (what, start) in [("verified", verified as fn() -> _), ("absent", absent)] {
        holds_whenever_it_dies(&format!("{what}: a filler that dies, another, a reader"), move |steps| {
            let page = begin(start());
            if what == "verified" {
                evict(&page);
            }
            let threads = spawn(&page, &[fill, read]);
            let other = Arc::clone(&page);
            let dies = move || other.lock.try_hold().is_some_and(|_held| dies_after(steps, || fill_locked(&other)));
            let died = thread::spawn(dies).join().unwrap();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            at_rest(&page);
            died
        });
    }
}

#[test]
fn a_reader_without_one_of_its_steps_is_caught() {
    breaks("a hit without a second look", "wrong bytes", together(verified, &[read_without_a_second_look, evict]));
    breaks("a hit without a fence before the second look", "wrong bytes", together(verified, &[read_without_a_fence, evict]));
}

#[test]
fn an_evictor_without_one_of_its_steps_is_caught() {
    breaks("a punch before the word changes", "wrong bytes", together(verified, &[read, evict_after_a_punch]));
    breaks("a punch without a fence after the word", "wrong bytes", together(verified, &[read, evict_without_a_fence]));
    breaks("an evicted page keeps its sequence", "wrong bytes", together(verified, &[read, evict_in_the_same_sequence]));
}

#[test]
fn a_filler_without_one_of_its_steps_is_caught() {
    breaks("a state published before its checksum", "a state without its checksum", together(absent, &[read, fill_state_first]));
    breaks("a page published half written", "a good page is mistrusted", together(absent, &[read, publish_before_all_is_written]));
    breaks("a fill without the page's lock", "", together(verified, &[evict, fill_without_a_lock, read]));
}
