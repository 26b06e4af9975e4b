//! Promise 2: a read succeeds whenever the source does, whatever fails below. Short sessions of one kind each, in which every system
//! call of each name, the first as the last, fails in every way that it can, once or from then on: every read is right, and in the next
//! session, with nothing failing any more, all is well.
//!
//! `NEARFILE_FAULTS_EVERY` is how many of these points there are to one that is tried (default 11; 1: all).

use super::{Far, content};
use crate::sys::fault::{Fault, Faults, faults_of};
use crate::{Cache, CacheOptions, Error, File, Options, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
const SIZE: u64 = 9 * PAGE + 77;
/// Nobody else is there to be waited for.
const WAIT: Duration = Duration::from_millis(20);
/// Nothing takes so long but what hangs.
const TOO_LONG: Duration = Duration::from_secs(10);

/// A session before the one in which calls fail, and that one.
struct Session {
    name: &'static str,
    before: fn(&Path),
    run: fn(&Path),
}

fn cache(dir: &Path, limit: u64) -> Cache {
    let (page_size, max_fetch_bytes) = (PAGE, 4 * PAGE);
    let min_free = limit.min(1);
    let options = CacheOptions { page_size, max_fetch_bytes, size_limit: limit, min_free, wait: WAIT, ..CacheOptions::default() };
    Cache::open(Some(&dir.join("cache")), &options).unwrap()
}

fn keyed(version: u64) -> Options {
    let version = version.to_string().into_bytes();
    Options { key: Some(b"key".to_vec()), version, size: Some(SIZE), ..Options::new() }
}

fn paths(dir: &Path) -> Options {
    Options { paths: Some((dir.join("own.data"), dir.join("own.index"))), ..keyed(1) }
}

fn far(version: u64) -> Box<Far> {
    Box::new(Far { content: content(0, version, SIZE), failing: 0 })
}

/// Opens a file as `choose` says; what has a key or is private opens whatever fails.
fn open(cache: &Cache, options: &Options, version: u64) -> File {
    cache.file(far(version), options).unwrap()
}

fn check(file: &File, version: u64, offset: u64, len: usize) {
    let mut buf = vec![0xee; len];
    let n = file.read_at(&mut buf, offset).unwrap_or_else(|error| panic!("a read of {len} at {offset}: {error}"));
    let expected = &content(0, version, SIZE)[offset as usize..];
    assert_eq!(n, len.min(expected.len()));
    assert!(buf[..n] == expected[..n], "wrong bytes in {len} at {offset}");
}

/// What the file holds, in an order that has hits, misses, several pages at once and the short last one.
fn read_all(file: &File, version: u64) {
    check(file, version, 2 * PAGE + 5, 10);
    check(file, version, PAGE - 1, 3 * PAGE as usize);
    check(file, version, 7 * PAGE, PAGE as usize);
    check(file, version, 0, SIZE as usize);
    check(file, version, SIZE - 50, 100);
    check(file, version, 0, SIZE as usize);
}

/// What is no read may fail, with a word of the system's.
fn may_fail<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Error::Io { .. } | Error::Exists(_) | Error::Unsupported(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

fn nothing(_: &Path) {}

fn filled(dir: &Path) {
    read_all(&open(&cache(dir, 0), &keyed(1), 1), 1);
}

fn filled_at_paths(dir: &Path) {
    read_all(&File::open(far(1), &paths(dir)).unwrap(), 1);
}

fn cold(dir: &Path) {
    let file = open(&cache(dir, 0), &keyed(1), 1);
    read_all(&file, 1);
    _ = may_fail(file.discard(PAGE..5 * PAGE));
    read_all(&file, 1);
    let mut from = 0;
    while from < SIZE {
        from = file.extent(from).unwrap().0;
    }
    _ = file.stats();
}

fn warm(dir: &Path) {
    let options = Options { verify_always: true, ..keyed(1) };
    let cache = cache(dir, 0);
    let mapped = Options { map: true, ..keyed(1) };
    let files = [keyed(1), options, mapped].map(|options| open(&cache, &options, 1));
    for file in &files {
        read_all(file, 1);
    }
    assert!(cache.list().len() <= 1);
    _ = cache.stats();
}

/// A second version drives the first one out; and pages of its own.
fn evicting(dir: &Path) {
    let cache = cache(dir, 6 * PAGE);
    let file = open(&cache, &keyed(2), 2);
    for _ in 0..3 {
        read_all(&file, 2);
    }
    _ = may_fail(cache.trim(PAGE));
    read_all(&file, 2);
    drop(file);
    _ = may_fail(cache.remove(b"key"));
    read_all(&open(&cache, &keyed(1), 1), 1);
}

/// Pages larger than one fetch; pages that share blocks.
fn odd_pages(dir: &Path) {
    let cache = cache(dir, 0);
    for page_size in [5 * PAGE, 1000] {
        let options = Options { page_size, ..keyed(page_size) };
        let file = open(&cache, &options, 1);
        read_all(&file, 1);
        _ = may_fail(file.discard(0..SIZE));
        read_all(&file, 1);
    }
}

fn private(dir: &Path) {
    let cache = cache(dir, 20 * PAGE);
    for exact in [false, true] {
        let options = Options { key: None, exact, ..keyed(1) };
        let file = open(&cache, &options, 1);
        read_all(&file, 1);
        _ = may_fail(file.discard(0..3 * PAGE));
        read_all(&file, 1);
        check(&file.dup(), 1, 17, 5000);
    }
}

fn at_paths(dir: &Path) {
    if let Some(file) = may_fail(File::open(far(1), &paths(dir))) {
        read_all(&file, 1);
        _ = may_fail(file.discard(0..3 * PAGE));
        read_all(&file, 1);
    }
}

/// Kept aside and opened again without a source, where a read may find less than was kept, but nothing wrong.
fn keeping(dir: &Path) {
    let cache = cache(dir, 0);
    let file = open(&cache, &keyed(1), 1);
    let pin = file.pin(PAGE, 3 * PAGE as usize).unwrap();
    read_all(&file, 1);
    assert!(pin.bytes() == &content(0, 1, SIZE)[PAGE as usize..4 * PAGE as usize]);
    let mut calls = 0;
    file.prefetch(0..SIZE, &mut |_, _| {
        calls += 1;
        true
    })
    .unwrap();
    let path = dir.join("kept");
    let kept = may_fail(file.preserve(&path));
    assert_eq!(path.exists(), crate::keep::index_path(&path).exists(), "one file of a copy without the other");
    let options = Options { frozen: true, paths: Some((path.clone(), crate::keep::index_path(&path))), ..keyed(1) };
    if let Some(copy) = kept.and_then(|()| may_fail(File::open_kept(&options))) {
        check_frozen(&copy);
    }
    if file.is_frozen() {
        check_frozen(&file);
    } else {
        read_all(&file, 1);
    }
}

fn check_frozen(file: &File) {
    for page in 0..=SIZE / PAGE {
        let mut buf = vec![0; PAGE as usize];
        match file.read_at(&mut buf, page * PAGE) {
            Ok(n) => assert!(buf[..n] == content(0, 1, SIZE)[(page * PAGE) as usize..][..n], "wrong bytes of a frozen file"),
            Err(error) => assert!(matches!(error, Error::Frozen(_)), "{error}"),
        }
    }
}

/// What is found is damaged, and is made anew.
fn damaged(dir: &Path) {
    let cache = dir.join("cache");
    for entry in std::fs::read_dir(&cache).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "index") || path.ends_with("control") {
            std::fs::File::options().write(true).open(path).unwrap().set_len(100).unwrap();
        }
    }
    cold(dir);
}

const SESSIONS: [Session; 9] = [
    Session { name: "cold", before: nothing, run: cold },
    Session { name: "warm", before: filled, run: warm },
    Session { name: "evicting", before: filled, run: evicting },
    Session { name: "odd pages", before: nothing, run: odd_pages },
    Session { name: "private, exact", before: nothing, run: private },
    Session { name: "at paths, cold", before: nothing, run: at_paths },
    Session { name: "at paths, warm", before: filled_at_paths, run: at_paths },
    Session { name: "keeping", before: filled, run: keeping },
    Session { name: "damaged", before: filled, run: damaged },
];

/// After whatever happened: each kind of file opens, and holds what is right or is fetched.
fn all_is_well(dir: &Path) {
    let cache = cache(dir, 0);
    for version in [1, 2] {
        let file = open(&cache, &keyed(version), version);
        read_all(&file, version);
        assert_eq!(file.stats().checksum_failures, 0, "a page was stored wrong");
    }
    drop(cache);
    let file = File::open(far(1), &paths(dir)).unwrap();
    read_all(&file, 1);
    assert_eq!(file.stats().checksum_failures, 0, "a page was stored wrong at a path");
}

fn in_fresh_directory(memory: bool, session: &Session, plan: impl FnOnce() -> Faults) -> BTreeMap<&'static str, u32> {
    let shared_memory = Path::new("/dev/shm");
    let dir = if memory && shared_memory.is_dir() { tempfile::tempdir_in(shared_memory) } else { tempfile::tempdir() }.unwrap();
    (session.before)(dir.path());
    let plan = plan();
    let start = Instant::now();
    (session.run)(dir.path());
    let (calls, took) = (plan.calls(), start.elapsed());
    drop(plan);
    assert!(took < TOO_LONG, "the session took {took:?}");
    all_is_well(dir.path());
    calls
}

/// One way for one call to fail.
#[derive(Debug, Clone, Copy)]
struct Point {
    call: &'static str,
    nth: u32,
    fault: Fault,
    lasting: bool,
}

struct Said<'a>(&'a Session, Point);

impl Drop for Said<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("in the session {:?}, at {:?}", self.0.name, self.1);
        }
    }
}

fn points(calls: &BTreeMap<&'static str, u32>) -> Vec<Point> {
    let mut points = Vec::new();
    for (&call, &count) in calls {
        for nth in 0..count {
            for &fault in faults_of(call) {
                points.push(Point { call, nth, fault, lasting: false });
                // A signal that always comes, and a lock that is always held, stop a process that waits for them.
                if !matches!(fault, Fault::Errno(libc::EINTR | libc::EAGAIN)) {
                    points.push(Point { call, nth, fault, lasting: true });
                }
            }
        }
    }
    points
}

/// Every point of every session that falls to this part; the other parts run beside it.
fn try_points(memory: bool, part: usize) {
    let every = std::env::var("NEARFILE_FAULTS_EVERY").map_or(11, |every| every.parse::<usize>().unwrap());
    let mut tried: BTreeMap<&'static str, u32> = BTreeMap::new();
    let mut longest = Duration::ZERO;
    for session in SESSIONS.iter().skip(part).step_by(3) {
        let calls = in_fresh_directory(memory, session, Faults::none);
        let points = points(&calls);
        assert!(points.len() > 100, "{}: {calls:?}", session.name);
        // Where syncs take their time, fewer.
        for point in points.iter().skip(part % every).step_by(if memory { every } else { every * 4 }) {
            let said = Said(session, *point);
            let start = Instant::now();
            in_fresh_directory(memory, session, || Faults::at(point.call, point.nth, point.fault, point.lasting));
            longest = longest.max(start.elapsed());
            *tried.entry(point.call).or_default() += 1;
            drop(said);
        }
    }
    let all: u32 = tried.values().sum();
    println!("{all} fault points, 0 failed reads, 0 wrong bytes, at most {longest:?}: {tried:?}");
}

macro_rules! parts {
    ($($name:ident: $memory:literal $part:literal),*) => {
        $(#[test]
        fn $name() {
            try_points($memory, $part);
        })*
    };
}

parts!(on_disk_0: false 0, on_disk_1: false 1, on_disk_2: false 2, in_memory_0: true 0, in_memory_1: true 1, in_memory_2: true 2);
