//! Promise 1: the bytes returned are the source's. Random operations on several handles, versions and caches at once, against the
//! content itself; the source gives short counts and fails now and then, and then nothing wrong may have been stored.
//! `NEARFILE_MODEL_OPS` sets the number of operations (default 30,000).
#![allow(clippy::unwrap_used, reason = "a test")]

use nearfile::{Cache, CacheOptions, Connection, Error, File, Options, Source, SourceError};
use std::io::SeekFrom;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// splitmix64, by Sebastiano Vigna: a stream of numbers from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

fn byte(version: u64, offset: u64) -> u8 {
    let mixed = (offset ^ version << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u8
}

struct Far {
    version: u64,
    size: u64,
    calls: Arc<AtomicU64>,
}

struct Near(u64, u64, Arc<AtomicU64>);

impl Source for Far {
    fn connect(&self) -> Result<Box<dyn Connection>, SourceError> {
        Ok(Box::new(Near(self.version, self.size, Arc::clone(&self.calls))))
    }
}

impl Connection for Near {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        let call = self.2.fetch_add(1, Ordering::Relaxed);
        assert!(offset + buf.len() as u64 <= self.1, "nothing is asked past the end");
        if call % 17 == 16 {
            buf.fill(0xee);
            return Err(SourceError::new(42, "now and then"));
        }
        let len = if call % 3 == 0 { buf.len().div_ceil(2) } else { buf.len() };
        for (at, byte_of) in buf[..len].iter_mut().enumerate() {
            *byte_of = byte(self.0, offset + at as u64);
        }
        Ok(len)
    }
}

struct Open {
    file: File,
    version: u64,
    size: u64,
    position: u64,
}

const PAGES: [u64; 5] = [1, 7, 4096, 10_000, 1 << 20];

fn open(cache: &Cache, random: &mut Random, calls: &Arc<AtomicU64>) -> Open {
    let shape = random.below(6);
    let version = random.below(2);
    let size = [0, 1, 50_000, 300_001, 1 << 20, 3_000_000][shape as usize];
    let mut options = Options::new();
    options.key = (random.below(5) != 0).then(|| format!("key {shape}").into_bytes());
    options.version = version.to_string().into_bytes();
    options.size = Some(size);
    // A page a byte is for small files.
    options.page_size = PAGES[if size > 60_000 { 2 + random.below(3) } else { random.below(5) } as usize];
    options.verify_always = random.below(4) == 0;
    options.trust_clean = random.below(4) == 0;
    let source = Far { version, size, calls: Arc::clone(calls) };
    Open { file: cache.file(Box::new(source), &options).unwrap(), version, size, position: 0 }
}

fn check(open: &Open, offset: u64, read: nearfile::Result<usize>, buf: &[u8]) -> Option<usize> {
    let expected = (buf.len() as u64).min(open.size.saturating_sub(offset)) as usize;
    match read {
        Ok(n) => {
            assert_eq!(n, expected, "at {offset} of {}", open.size);
            for (at, &got) in buf[..n].iter().enumerate() {
                let at = offset + at as u64;
                assert_eq!(got, byte(open.version, at), "byte {at} of version {}", open.version);
            }
            Some(n)
        }
        Err(Error::Source(error)) => {
            assert_eq!(error.code, 42);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn new_cache(dir: &Path, random: &mut Random) -> Cache {
    let mut options = CacheOptions::default();
    options.max_fetch_bytes = [0, 1000, 65_536][random.below(3) as usize];
    Cache::open(Some(dir), &options).unwrap()
}

#[test]
fn random_operations_give_the_source_s_bytes() {
    let operations = std::env::var("NEARFILE_MODEL_OPS").map_or(30_000, |ops| ops.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(0x006e_6561_7266_696c);
    let calls = Arc::new(AtomicU64::new(0));
    let mut cache = new_cache(dir.path(), &mut random);
    let mut files: Vec<Open> = (0..4).map(|_| open(&cache, &mut random, &calls)).collect();
    let mut buf = vec![0; 200_000];
    let mut read_bytes = 0;
    for _ in 0..operations {
        let at = random.below(files.len() as u64) as usize;
        let here = &mut files[at];
        let size = here.size;
        let longest = if random.below(8) == 0 { buf.len() as u64 } else { 6000 };
        let len = random.below(longest.min(if here.file.page_size() < 8 { 3000 } else { longest })) as usize;
        let offset = random.below(size + size / 8 + 10);
        match random.below(100) {
            0..60 => {
                let read = here.file.read_at(&mut buf[..len], offset);
                read_bytes += check(here, offset, read, &buf[..len]).unwrap_or(0);
            }
            60..80 => {
                let before = here.position;
                let read = here.file.read(&mut buf[..len]);
                here.position += check(here, before, read, &buf[..len]).unwrap_or(0) as u64;
                assert_eq!(here.file.tell(), here.position);
            }
            80..86 => {
                let by = random.below(2000) as i64 - 1000;
                let (to, target) = match random.below(3) {
                    0 => (SeekFrom::Start(offset), Some(offset)),
                    1 => (SeekFrom::Current(by), here.position.checked_add_signed(by)),
                    _ => (SeekFrom::End(by), size.checked_add_signed(by)),
                };
                match target {
                    Some(target) => here.position = here.file.seek(to).inspect(|&at| assert_eq!(at, target)).unwrap(),
                    None => assert!(here.file.seek(to).is_err()),
                }
                assert_eq!(here.file.tell(), here.position);
            }
            86..90 => {
                here.file.discard(offset..offset + random.below(size + 1)).unwrap();
            }
            90..94 => {
                let (mut from, mut cached_bytes) = (0, 0);
                while from < size {
                    let (end, cached) = here.file.extent(from).unwrap();
                    assert!(end > from && end <= size);
                    cached_bytes += if cached { end - from } else { 0 };
                    from = end;
                }
                assert_eq!(cached_bytes, here.file.stats().cached_bytes);
            }
            94..96 => {
                let dup = here.file.dup();
                assert_eq!(dup.tell(), 0);
                *here = Open { file: dup, version: here.version, size, position: 0 };
            }
            96..99 => {
                *here = open(&cache, &mut random, &calls);
            }
            _ => {
                // Everything is closed, and a new process would find what is on the disk.
                files.clear();
                cache = new_cache(dir.path(), &mut random);
                files = (0..4).map(|_| open(&cache, &mut random, &calls)).collect();
            }
        }
    }
    let stats = cache.stats();
    assert_eq!(stats.checksum_failures, 0);
    assert!(stats.hits > 0 && stats.misses > 0 && stats.source_errors > 0);
    println!("{operations} operations, {read_bytes} bytes checked, {stats:?}");
}
