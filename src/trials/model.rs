//! Promises 1 and 2: the bytes returned are the source's, and a read succeeds whenever the source does. Random operations on several
//! handles, versions, caches and processes at once, against a plain buffer; in every other round system calls fail at random, and then
//! whatever is not a read may fail with them, but must leave all right.
//!
//! `NEARFILE_MODEL_OPS` sets the number of operations (default 30,000). A round that fails prints its seed, and
//! `NEARFILE_MODEL_SEED` runs that round alone.

use super::{Far, Random, SOURCE_CODE, content};
use crate::sys::fault::{Faults, in_child, pausing};
use crate::{Cache, CacheOptions, Error, File, Options, Pin, Result, WhenFull};
use std::io::SeekFrom;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const OPS_A_ROUND: u64 = 1500;
const SIZES: [u64; 7] = [0, 1, 5000, 50_000, 300_001, 1 << 20, 3_000_000];
const PAGES: [u64; 5] = [1, 7, 4096, 10_000, 1 << 20];
/// How long one waits for another, who is never there for long.
const WAIT: Duration = Duration::from_millis(200);
/// Nothing takes so long but what hangs.
const TOO_LONG: Duration = Duration::from_secs(30);

/// One file that the model has open, or knows to be preserved.
struct Open {
    file: File,
    content: &'static [u8],
    /// As its index has it.
    version: Vec<u8>,
    exact: bool,
    position: u64,
    /// What was there when it was frozen, and cannot go.
    kept: Option<Vec<Range<u64>>>,
    sourceless: bool,
}

struct Held {
    pin: Pin,
    bytes: &'static [u8],
}

struct World {
    random: Random,
    dir: tempfile::TempDir,
    cache: Cache,
    files: Vec<Open>,
    pins: Vec<Held>,
    /// None in rounds without faults.
    faults: Option<Faults>,
    preserved: Vec<(PathBuf, Options, &'static [u8])>,
    names: u64,
    bytes_read: u64,
    /// What its pages may hold: the limit, or what was there when a limit was lowered that gives up nothing.
    limit: u64,
    kills: u64,
}

impl World {
    fn new(seed: u64, faulty: bool) -> World {
        let mut random = Random(seed);
        // In memory an index is looked at in another way, and a mirror is never mapped.
        let memory = Path::new("/dev/shm");
        let dir = if random.one_in(2) && memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let (cache, limit) = new_cache(dir.path(), &mut random);
        let mut world = World {
            random,
            dir,
            cache,
            files: Vec::new(),
            pins: Vec::new(),
            faults: None,
            preserved: Vec::new(),
            names: 0,
            bytes_read: 0,
            limit,
            kills: 0,
        };
        world.open_several();
        if faulty {
            let one_in = world.random.pick(&[5, 30, 200]);
            world.faults = Some(Faults::random(seed, one_in));
        }
        world
    }

    /// What may fail where system calls do; then nothing was done. Elsewhere a failure is the test's.
    fn may_fail<T>(&self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Error::Source(error)) if error.code == SOURCE_CODE => None,
            Err(Error::Io { .. } | Error::Exists(_)) if self.faults.is_some() => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn open_several(&mut self) {
        self.files = (0..4).map(|_| self.open()).collect();
    }

    fn open(&mut self) -> Open {
        loop {
            let (options, content) = self.choose();
            let source = Far { content, failing: 17 };
            let opened = self.cache.file(Box::new(source), &options);
            // A private or a keyed file opens whatever happens; at paths of a program's own it is told what stands in the way.
            let file = if options.paths.is_some() { self.may_fail(opened) } else { Some(opened.unwrap()) };
            if let Some(file) = file {
                assert_eq!(file.size(), content.len() as u64);
                let version = if options.exact { Vec::new() } else { options.version };
                return Open { file, content, version, exact: options.exact, position: 0, kept: None, sourceless: false };
            }
        }
    }

    fn choose(&mut self) -> (Options, &'static [u8]) {
        let random = &mut self.random;
        let (shape, version) = (random.below(7), random.below(2));
        let size = SIZES[shape as usize];
        let mut options = Options::new();
        options.version = version.to_string().into_bytes();
        options.size = (!random.one_in(5)).then_some(size);
        // A page a byte is for small files.
        options.page_size = PAGES[if size > 5000 { 2 + random.below(3) } else { random.below(5) } as usize];
        options.verify_always = random.one_in(4);
        options.trust_clean = random.one_in(4);
        options.map = random.one_in(3);
        options.size_limit = random.pick(&[0, 0, 0, 40_000, 400_000]);
        match random.below(10) {
            0 => {}
            1 => options.exact = true,
            2 => {
                let path = |ending| self.dir.path().join(format!("own {shape} {version}.{ending}"));
                options.paths = Some((path("data"), path("index")));
                options.key = Some(format!("key {shape}").into_bytes());
            }
            _ => options.key = Some(format!("key {shape}").into_bytes()),
        }
        (options, content(shape, version, size))
    }

    fn any(&mut self) -> usize {
        self.random.below(self.files.len() as u64) as usize
    }

    fn step(&mut self, buf: &mut [u8]) {
        let at = self.any();
        let size = self.files[at].content.len() as u64;
        let longest = if self.random.one_in(8) { buf.len() as u64 } else { 6000 };
        let longest = if self.files[at].file.page_size() < 8 { longest.min(3000) } else { longest };
        let buf = &mut buf[..self.random.below(longest) as usize];
        let offset = self.random.below(size + size / 8 + 10);
        let range = offset..offset + self.random.below(size + 1);
        match self.random.below(1000) {
            0..480 => self.read_at(at, buf, offset),
            480..560 => self.read(at, buf),
            560..620 => self.several(at, buf),
            620..680 => self.seek(at, offset),
            680..720 => _ = self.may_fail(self.files[at].file.discard(range)),
            720..760 => self.walk(at),
            760..790 => self.prefetch(at, &range),
            790..830 => self.pin(at, offset, buf.len()),
            830..850 => self.dup(at),
            850..860 => self.beside_a_reader(at),
            860..900 => self.files[at] = self.open(),
            900..915 => self.child(buf),
            915..925 => self.freeze(at),
            925..935 => self.preserve(at),
            935..945 => self.open_preserved(at),
            945..960 => {
                let keep = self.random.pick(&[0, 10_000, 1_000_000]);
                _ = self.may_fail(self.cache.trim(keep));
            }
            960..970 => {
                let key = format!("key {}", self.random.below(7)).into_bytes();
                _ = self.may_fail(self.cache.remove(&key));
            }
            970..980 => self.look(),
            _ => self.reopen(),
        }
    }

    // ---- reads: they succeed, or the source failed ----

    fn check(&mut self, at: usize, offset: u64, read: Result<usize>, buf: &[u8]) -> Option<usize> {
        let open = &self.files[at];
        let start = (offset as usize).min(open.content.len());
        let end = (start + buf.len()).min(open.content.len());
        match read {
            Ok(n) => {
                assert_eq!(n, end - start, "at {offset} of {}", open.content.len());
                if buf[..n] != open.content[start..end] {
                    let wrong = (0..n).find(|&i| buf[i] != open.content[start + i]).unwrap();
                    panic!(
                        "byte {} of {} is {:#x}, read as {:#x}",
                        start + wrong,
                        open.content.len(),
                        open.content[start + wrong],
                        buf[wrong]
                    );
                }
                self.bytes_read += n as u64;
                Some(n)
            }
            Err(Error::Source(error)) if error.code == SOURCE_CODE && !open.sourceless => None,
            Err(Error::Frozen(_)) => {
                let kept = open.kept.as_ref().expect("only a frozen file misses");
                let there = kept.iter().any(|kept| kept.start <= offset && end as u64 <= kept.end);
                assert!(!there || self.faults.is_some(), "{start}..{end} was there when the file was frozen");
                None
            }
            Err(error) => panic!("a read of {start}..{end}: {error}"),
        }
    }

    fn read_at(&mut self, at: usize, buf: &mut [u8], offset: u64) {
        let read = self.files[at].file.read_at(buf, offset);
        self.check(at, offset, read, buf);
    }

    fn read(&mut self, at: usize, buf: &mut [u8]) {
        let before = self.files[at].position;
        let read = self.files[at].file.read(buf);
        self.files[at].position += self.check(at, before, read, buf).unwrap_or(0) as u64;
        assert_eq!(self.files[at].file.tell(), self.files[at].position);
    }

    /// A handle takes the place of the one that it is a copy of. Frozen is the handle, but in exact mode, and without a source, the file.
    fn dup(&mut self, at: usize) {
        let open = &mut self.files[at];
        let dup = open.file.dup();
        assert_eq!(dup.tell(), 0);
        open.kept = open.kept.take().filter(|_| open.sourceless || open.exact);
        (open.file, open.position) = (dup, 0);
    }

    /// Ranges that lie near each other, as a batch has them.
    fn several(&mut self, at: usize, buf: &mut [u8]) {
        let mut from = self.random.below(self.files[at].content.len() as u64 + 1);
        for part in buf.chunks_mut(700) {
            self.read_at(at, part, from);
            from = (from + self.random.below(9000)).saturating_sub(3000);
        }
    }

    fn seek(&mut self, at: usize, offset: u64) {
        let by = self.random.below(2000) as i64 - 1000;
        let here = &mut self.files[at];
        let (to, target) = match self.random.below(3) {
            0 => (SeekFrom::Start(offset), Some(offset)),
            1 => (SeekFrom::Current(by), here.position.checked_add_signed(by)),
            _ => (SeekFrom::End(by), (here.content.len() as u64).checked_add_signed(by)),
        };
        match target {
            Some(target) => here.position = here.file.seek(to).inspect(|&at| assert_eq!(at, target)).unwrap(),
            None => assert!(here.file.seek(to).is_err()),
        }
        assert_eq!(here.file.tell(), here.position);
    }

    fn prefetch(&mut self, at: usize, range: &Range<u64>) {
        let mut calls = 0;
        let ends = self.random.one_in(4);
        let fetched = self.files[at].file.prefetch(range.clone(), &mut |done, all| {
            calls += 1;
            assert!(done <= all);
            !(ends && calls == 2)
        });
        match fetched {
            Err(Error::Cancelled) => assert!(ends),
            Err(Error::Frozen(_)) => assert!(self.files[at].kept.is_some()),
            fetched => _ = self.may_fail(fetched),
        }
    }

    /// Bytes without a copy, held while others come and go.
    fn pin(&mut self, at: usize, offset: u64, len: usize) {
        let content = self.files[at].content;
        let start = (offset as usize).min(content.len());
        match self.files[at].file.pin(offset, len) {
            Ok(pin) => {
                let bytes = &content[start..(start + len).min(content.len())];
                assert!(pin.bytes() == bytes, "pinned {start} and {len} more");
                self.pins.push(Held { pin, bytes });
            }
            Err(Error::Frozen(_)) => assert!(self.files[at].kept.is_some()),
            Err(Error::Source(error)) => assert!(error.code == SOURCE_CODE && !self.files[at].sourceless),
            Err(error) => panic!("a pin of {len} from {offset}: {error}"),
        }
        if self.pins.len() > 6 {
            let gone = self.random.below(self.pins.len() as u64) as usize;
            assert!(self.pins.iter().all(|held| held.pin.bytes() == held.bytes), "what is pinned has changed");
            self.pins.swap_remove(gone);
        }
    }

    // ---- what is there ----

    fn there(file: &File) -> Vec<Range<u64>> {
        let (mut from, mut there) = (0, Vec::new());
        while from < file.size() {
            let (end, cached) = file.extent(from).unwrap();
            assert!(end > from && end <= file.size());
            if cached {
                there.push(from..end);
            }
            from = end;
        }
        there
    }

    fn walk(&mut self, at: usize) {
        let there = World::there(&self.files[at].file);
        let bytes: u64 = there.iter().map(|range| range.end - range.start).sum();
        let stats = self.files[at].file.stats();
        assert!(self.faults.is_some() || bytes == stats.cached_bytes, "{bytes} and {}", stats.cached_bytes);
    }

    fn look(&mut self) {
        let stats = self.cache.stats();
        assert!(self.faults.is_some() || stats.cached_bytes <= self.limit, "{stats:?}");
        for entry in self.cache.list() {
            assert!(entry.key.starts_with(b"key ") && entry.cached_bytes <= entry.size, "{entry:?}");
        }
    }

    fn freeze(&mut self, at: usize) {
        if self.may_fail(self.files[at].file.freeze()).is_some() {
            let there = World::there(&self.files[at].file);
            self.files[at].kept.get_or_insert(there);
        }
    }

    /// Both files of a copy, or none.
    fn preserve(&mut self, at: usize) {
        self.names += 1;
        let path = self.dir.path().join(format!("kept {}", self.names));
        let open = &self.files[at];
        let mut options = Options::new();
        options.size = Some(open.content.len() as u64);
        options.frozen = true;
        options.paths = Some((path.clone(), crate::keep::index_path(&path)));
        options.version = open.version.clone();
        let preserved = match self.files[at].file.preserve(&path) {
            Err(Error::Unsupported(_)) => None,
            preserved => self.may_fail(preserved),
        };
        let both = [path.exists(), crate::keep::index_path(&path).exists()];
        assert_eq!(both[0], both[1], "one file of a copy without the other");
        assert!(preserved.is_none() || both[0]);
        if both[0] {
            self.preserved.push((path, options, self.files[at].content));
        }
        if self.files[at].file.is_frozen() {
            let there = World::there(&self.files[at].file);
            self.files[at].kept.get_or_insert(there);
        }
    }

    fn open_preserved(&mut self, at: usize) {
        if self.preserved.is_empty() {
            return;
        }
        let chosen = self.random.below(self.preserved.len() as u64) as usize;
        let (path, options, content) = &self.preserved[chosen];
        if let Some(file) = self.may_fail(File::open_kept(options)) {
            let kept = Some(World::there(&file));
            let version = options.version.clone();
            self.files[at] = Open { file, content, version, exact: false, position: 0, kept, sourceless: true };
            if self.random.one_in(3) {
                // Gone with its last handle.
                std::fs::remove_file(path).unwrap();
                std::fs::remove_file(crate::keep::index_path(path)).unwrap();
                self.preserved.swap_remove(chosen);
            }
        }
    }

    // ---- other threads, other processes, other sessions ----

    /// Another thread reads what this one drops and fetches, with long pauses in between.
    fn beside_a_reader(&mut self, at: usize) {
        let (file, content) = (self.files[at].file.dup(), self.files[at].content);
        if file.page_size() < 4096 {
            return; // thousands of pauses
        }
        let mut random = Random(self.random.next());
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut buf = [0; 300];
                while !done.load(Ordering::Acquire) {
                    let offset = random.below(content.len() as u64 + 1) as usize;
                    let expected = &content[offset..(offset + buf.len()).min(content.len())];
                    match file.read_at(&mut buf, offset as u64) {
                        Ok(n) => assert!(buf[..n] == *expected, "wrong bytes at {offset}, beside a thread that drops them"),
                        Err(error) => assert!(matches!(error, Error::Source(_) | Error::Frozen(_)), "{error}"),
                    }
                }
            });
            pausing(Duration::from_micros(200), || {
                let size = content.len() as u64;
                for _ in 0..3 {
                    let from = self.random.below(size + 1);
                    _ = self.may_fail(self.files[at].file.discard(from..from + 40_000));
                    _ = self.files[at].file.prefetch(from..from + 20_000, &mut |_, _| true);
                }
            });
            done.store(true, Ordering::Release);
        });
    }

    /// A child goes on with all handles, and some of them are killed in the middle of it, before whatever system call.
    fn child(&mut self, buf: &mut [u8]) {
        let killed = self.random.one_in(2).then(|| self.random.below(60));
        let seed = self.random.next();
        let faulty = self.faults.is_some();
        let status = in_child(|| {
            self.random = Random(seed);
            for open in self.files.iter_mut().filter(|open| open.exact && open.kept.is_some()) {
                open.kept = Some(Vec::new()); // a child starts its own
            }
            let plan = match killed {
                Some(nth) => Faults::kill_at(nth),
                None if faulty => Faults::random(seed, 20),
                None => Faults::none(),
            };
            for _ in 0..6 {
                let at = self.any();
                let size = self.files[at].content.len() as u64;
                let offset = self.random.below(size + 1);
                let range = offset..offset + self.random.below(size + 1);
                match self.random.below(4) {
                    0 => _ = self.may_fail(self.files[at].file.discard(range)),
                    1 => drop(self.cache.trim(self.random.below(1_000_000))),
                    _ => self.read_at(at, buf, offset),
                }
            }
            drop(plan);
            true
        });
        self.kills += u64::from(status == 128 + libc::SIGKILL);
        assert!(status == 0 || (killed.is_some() && status == 128 + libc::SIGKILL), "a child ended with {status}");
        for at in 0..self.files.len() {
            let offset = self.random.below(self.files[at].content.len() as u64 + 1);
            self.read_at(at, buf, offset);
        }
    }

    /// Everything is closed, and what is found next is on the disk.
    fn reopen(&mut self) {
        self.files.clear();
        self.pins.clear();
        (self.cache, self.limit) = new_cache(self.dir.path(), &mut self.random);
        self.open_several();
    }

    /// Bytes that did not match a checksum: none, but where a mirror was said to end early.
    fn check_checksums(&self) {
        let cut = |faults: &Faults| faults.injected().get(&("pread", "Nothing".into())).copied().unwrap_or(0);
        let allowed = self.faults.as_ref().map_or(0, cut);
        let failures: u64 = self.files.iter().map(|open| open.file.stats().checksum_failures).sum();
        assert!(failures <= u64::from(allowed), "{failures} pages were stored wrong");
    }
}

fn new_cache(dir: &Path, random: &mut Random) -> (Cache, u64) {
    let options = CacheOptions {
        max_fetch_bytes: random.pick(&[0, 1000, 65_536]),
        size_limit: random.pick(&[60_000, 400_000, 3_000_000, 1 << 40]),
        when_full: random.pick(&[WhenFull::Evict, WhenFull::Evict, WhenFull::Stop, WhenFull::Flush]),
        wait: WAIT,
        ..CacheOptions::default()
    };
    let cache = Cache::open(Some(&dir.join("cache")), &options).unwrap();
    let there = if options.when_full == WhenFull::Evict { 0 } else { cache.stats().cached_bytes };
    (cache, options.size_limit.max(there))
}

/// Says, should the round fail, how to see it again.
struct Round(u64);

impl Drop for Round {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("this round again: NEARFILE_MODEL_SEED={} cargo test --lib trials::model", self.0);
        }
    }
}

fn round(seed: u64, operations: u64) -> World {
    let said = Round(seed);
    let mut world = World::new(seed, seed % 2 == 1);
    let mut buf = vec![0; 200_000];
    for _ in 0..operations {
        let start = Instant::now();
        world.step(&mut buf);
        world.check_checksums();
        assert!(start.elapsed() < TOO_LONG, "an operation took {:?}", start.elapsed());
    }
    // And with nothing failing any more, all can be given up.
    let injected = world.faults.take().map_or(0, |faults| faults.injected().values().sum::<u32>());
    world.reopen();
    for at in 0..world.files.len() {
        world.read_at(at, &mut buf, 0);
    }
    world.files.clear();
    world.cache.trim(0).unwrap();
    assert_eq!(world.cache.stats().cached_bytes, 0);
    assert!(seed % 2 == 0 || injected > 0);
    drop(said);
    world
}

#[test]
fn random_operations_give_the_source_s_bytes() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    if let Some(seed) = number("NEARFILE_MODEL_SEED") {
        round(seed, OPS_A_ROUND);
        return;
    }
    let rounds = number("NEARFILE_MODEL_OPS").unwrap_or(30_000).div_ceil(OPS_A_ROUND);
    let (mut bytes, mut kills) = (0, 0);
    for seed in 0..rounds {
        let world = round(seed, OPS_A_ROUND);
        bytes += world.bytes_read;
        kills += world.kills;
        if seed % 100 == 99 {
            println!("{} operations so far", (seed + 1) * OPS_A_ROUND);
        }
    }
    println!("{} operations, {bytes} bytes checked, {kills} children killed", rounds * OPS_A_ROUND);
}
