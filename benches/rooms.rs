//! What the rooms cost, one by one: the looks of a hit, checksums, page locks, the budget, the fork word, and a fetch of one page from a
//! source that takes no time. `cargo bench --bench rooms`; the median of rounds that take turns.
#![allow(dead_code, unused_imports, reason = "the rooms of the product are here as a whole")]
#![allow(unsafe_code, reason = "sys/ is among them")]
#![allow(clippy::unwrap_used, reason = "a benchmark")]
#![allow(missing_docs, reason = "a benchmark")]

#[path = "../src/control.rs"]
mod control;
#[path = "../src/error.rs"]
mod error;
#[path = "../src/format.rs"]
mod format;
#[path = "../src/hook.rs"]
mod hook;
#[path = "../src/ledger.rs"]
mod ledger;
#[path = "../src/lock.rs"]
mod lock;
#[path = "../src/log.rs"]
mod log;
#[path = "../src/range.rs"]
mod range;
#[path = "../src/session.rs"]
mod session;
#[path = "../src/stats.rs"]
mod stats;
#[path = "../src/sync.rs"]
mod sync;
#[path = "../src/sys/mod.rs"]
mod sys;
#[path = "../src/word.rs"]
mod word;
#[path = "../src/budget.rs"]
mod budget;

use crate::format::{Word, crc32c};
use crate::lock::{Claim, PageLocks};
use crate::range::Run;
use crate::sync::{AtomicU64, Ordering};
use crate::word::PageWord;
use nearfile::{Cache, CacheOptions, Connection, Options, Source, SourceError};
use std::hint::black_box;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROUNDS: usize = 21;

struct Room<'a> {
    name: &'static str,
    turns: u32,
    work: Box<dyn FnMut() + 'a>,
    times: Vec<f64>,
}

impl<'a> Room<'a> {
    fn new(name: &'static str, turns: u32, work: impl FnMut() + 'a) -> Room<'a> {
        Room { name, turns, work: Box::new(work), times: Vec::new() }
    }

    fn round(&mut self) {
        let start = Instant::now();
        for _ in 0..self.turns {
            (self.work)();
        }
        self.times.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(self.turns));
    }
}

fn words() -> Vec<AtomicU64> {
    (0..4096).map(|page| AtomicU64::new(Word(0).taken(1).filled(page, 1).verified(1).0)).collect()
}

/// The looks of a hit of one page: its word, and its word again after the copy.
fn looks(words: &[AtomicU64]) -> Room<'_> {
    let mut page = 0;
    Room::new("word, and again after a copy of nothing", 100_000, move || {
        page = (page + 1) % words.len();
        let word = PageWord(&words[page]);
        let seen = word.load();
        let same = word::copy(&[seen], |_| Some(word.load()), || Ok::<(), ()>(()));
        assert!(black_box(seen).is_present() && same == Ok(true));
    })
}

fn transitions(words: &[AtomicU64]) -> Room<'_> {
    let mut page = 0;
    Room::new("word: taken, filled, verified, absent", 50_000, move || {
        page = (page + 1) % words.len();
        let word = PageWord(&words[page]);
        word.put(Word(0));
        let taken = word.take(1).unwrap();
        assert!(word.publish(taken, 7, 1));
        let verified = word.stamp(word.load(), 1).unwrap();
        assert!(word.give_up(verified));
        word.put(Word(0).taken(1).filled(7, 1).verified(1));
    })
}

fn checksum(bytes: &[u8]) -> Room<'_> {
    let name = match bytes.len() {
        0x1000 => "crc32c of 4 KiB, hot",
        0x10000 => "crc32c of 64 KiB, hot",
        _ => "crc32c of 1 MiB, hot",
    };
    Room::new(name, u32::try_from((64 << 20) / bytes.len()).unwrap().min(5000), move || {
        black_box(crc32c(black_box(bytes)));
    })
}

/// Locks a page of an index of its own and lets go of it.
fn locking(index: &std::fs::File) -> Room<'_> {
    let locks = PageLocks::new();
    let mut page = 0;
    Room::new("page lock and unlock", 5000, move || {
        page = (page + 1) % 4096;
        match locks.claim(index.as_fd(), Run { first: page, last: page }).unwrap() {
            Claim::Held(lock) => drop(lock),
            Claim::Busy { .. } => panic!("nobody else is here"),
        }
    })
}

fn budget_of(dir: &std::path::Path) -> Arc<budget::Budget> {
    let dir = Arc::new(std::os::fd::OwnedFd::from(std::fs::File::open(dir).unwrap()));
    let control = Arc::new(control::Control::open(dir.as_fd()).unwrap());
    let census = || budget::Census { bytes: 0, again: false };
    budget::Budget::open(control, dir, 1 << 40, 0, Duration::from_secs(1), census).unwrap()
}

fn reserving(account: &budget::Account) -> Room<'_> {
    Room::new("budget: reserve, spend, give back", 50_000, move || {
        let mut reserved = account.reserve(64 << 10).unwrap().unwrap();
        reserved.spend(64 << 10);
        drop(reserved);
        account.give_back(64 << 10);
    })
}

fn generations<'a>() -> Room<'a> {
    Room::new("generation()", 1_000_000, || {
        black_box(sys::fork::generation());
    })
}

// ---- through the API ----

struct Ready;

impl Source for Ready {
    fn connect(&self) -> Result<Box<dyn Connection>, SourceError> {
        Ok(Box::new(Ready))
    }
}

impl Connection for Ready {
    fn read_at(&mut self, _: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        Ok(buf.len()) // the library's buffer has something in it
    }
}

fn open(cache: &Cache, page_size: u64) -> nearfile::File {
    let mut options = Options::new();
    options.key = Some(format!("pages of {page_size}").into_bytes());
    options.size = Some(8 << 30);
    options.page_size = page_size;
    cache.file(Box::new(Ready), &options).unwrap()
}

/// The pages of one round; they go before the next, so that each is absent again.
fn fetching<'a>(name: &'static str, file: &'a nearfile::File, page_size: u64, pages: u32) -> Room<'a> {
    let (mut at, mut buf) = (0, vec![0; 4096]);
    Room::new(name, pages, move || {
        if at >= 8 << 30 {
            at = 0;
        }
        file.read_at(&mut buf, at).unwrap();
        at += page_size;
    })
}

fn hit<'a>(file: &'a nearfile::File) -> Room<'a> {
    let mut buf = vec![0; 4096];
    Room::new("a hit of 4 KiB, the same one again", 50_000, move || {
        file.read_at(&mut buf, 0).unwrap();
    })
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let index = tempfile::tempfile_in(dir.path()).unwrap();
    index.set_len(1 << 20).unwrap();
    let words = words();
    let bytes = vec![3; 1 << 20];
    let budget_dir = tempfile::tempdir().unwrap();
    let account = budget::Account::new(budget_of(budget_dir.path()), false);
    let cache = Cache::open(Some(&dir.path().join("cache")), &CacheOptions::default()).unwrap();
    let (small, large) = (open(&cache, 4 << 10), open(&cache, 64 << 10));
    let warm = open(&cache, 1 << 20);
    let mut rooms = vec![
        looks(&words),
        transitions(&words),
        generations(),
        reserving(&account),
        locking(&index),
        checksum(&bytes[..4 << 10]),
        checksum(&bytes[..64 << 10]),
        checksum(&bytes),
        hit(&warm),
        fetching("a miss of one page of 4 KiB", &small, 4 << 10, 500),
        fetching("a miss of one page of 64 KiB", &large, 64 << 10, 200),
    ];
    for _ in 0..ROUNDS {
        for room in &mut rooms {
            room.round();
        }
        small.discard(0..8 << 30).unwrap();
        large.discard(0..8 << 30).unwrap();
    }
    println!("{:<44} {:>12} {:>12}", "", "median", "least");
    for room in &mut rooms {
        room.times.sort_unstable_by(f64::total_cmp);
        println!("{:<44} {:>9.1} ns {:>9.1} ns", room.name, room.times[ROUNDS / 2], room.times[0]);
    }
}
