//! A far file whose bytes are known, its near copy below a disk, and what the directory says of itself.

use nearfile::{Cache, CacheOptions, Connection, File, Options, Source, SourceError};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub const SIZE: u64 = 3_000_000;

pub fn byte(offset: u64) -> u8 {
    // Never 0: a hole is never right by chance.
    ((offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8) | 1
}

/// Counts the reads.
struct Far(Arc<AtomicU64>);

impl Source for Far {
    fn connect(&self) -> Result<Box<dyn Connection>, SourceError> {
        Ok(Box::new(Far(Arc::clone(&self.0))))
    }
}

impl Connection for Far {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        for (at, byte_of) in buf.iter_mut().enumerate() {
            *byte_of = byte(offset + at as u64);
        }
        Ok(buf.len())
    }
}

/// How the near copy is used.
#[derive(Clone, Default)]
pub struct Near {
    pub calls: Arc<AtomicU64>,
    pub page_size: u64,
    /// Pages are fetched, and written, one by one: the kernel writes back what was written together.
    pub singly: bool,
    /// The directory's, 0: none.
    pub limit: u64,
    pub trust: bool,
}

impl Near {
    pub fn reads(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub fn cache(&self, mount: &Path) -> Cache {
        let mut options = CacheOptions::default();
        options.size_limit = self.limit;
        options.max_fetch_bytes = if self.singly { self.page_size } else { 0 };
        Cache::open(Some(&mount.join("cache")), &options).unwrap()
    }

    pub fn open_key(&self, cache: &Cache, key: &str) -> File {
        let mut options = Options::new();
        options.key = Some(key.as_bytes().to_vec());
        options.size = Some(SIZE);
        options.page_size = self.page_size;
        options.trust_clean = self.trust;
        cache.file(Box::new(Far(Arc::clone(&self.calls))), &options).unwrap()
    }

    pub fn open(&self, mount: &Path) -> File {
        self.open_key(&self.cache(mount), "key")
    }
}

pub fn check(file: &File, from: u64, end: u64) {
    let mut buf = vec![0; (end - from) as usize];
    assert_eq!(file.read_at(&mut buf, from).unwrap(), buf.len());
    let wrong = buf.iter().enumerate().find(|&(at, &got)| got != byte(from + at as u64));
    assert!(wrong.is_none(), "wrong byte at {wrong:?} after {from}");
}

/// Reads what is cached, and returns how many bytes that is.
pub fn hit_what_is_there(file: &File) -> u64 {
    let (mut from, mut sum) = (0, 0);
    while from < SIZE {
        let (end, cached) = file.extent(from).unwrap();
        if cached {
            check(file, from, end);
            sum += end - from;
        }
        from = end;
    }
    sum
}

/// A number below a limit, the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Bytes of a file that are data, as the file system tells them.
fn data_bytes(path: &Path) -> u64 {
    let file = std::fs::File::open(path).unwrap();
    let seek = |from: i64, whence| unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    let (mut at, mut sum) = (seek(0, libc::SEEK_DATA), 0);
    while at >= 0 {
        let end = seek(at, libc::SEEK_HOLE);
        sum += (end - at) as u64;
        at = seek(end, libc::SEEK_DATA);
    }
    sum
}

/// Checks, while nobody changes the directory, that its count is what the page words answer for, and that the mirrors hold no more.
/// The offsets are those of src/format.rs.
pub fn check_count(mount: &Path) {
    let dir = mount.join("cache");
    let word = |path: &Path, at| {
        let mut bytes = [0; 8];
        std::fs::File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
        u64::from_ne_bytes(bytes)
    };
    let mut answered = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "index")
            || path.metadata().unwrap().len() < 12288
            || word(&path, 0) == 0
        {
            continue;
        }
        let (size, page_size, dropping) = (word(&path, 32), word(&path, 40), word(&path, 208));
        let left = (dropping >> 24)..(dropping >> 24) + (dropping & 0xff_ffff);
        let before = answered;
        for page in 0..size.div_ceil(page_size) {
            let (start, end) = (page * page_size, ((page + 1) * page_size).min(size));
            if word(&path, 12288 + 8 * page) & 3 != 0 || left.contains(&page) {
                answered += end.next_multiple_of(4096) - start / 4096 * 4096;
            }
        }
        let mut name = [0; 16];
        std::fs::File::open(&path).unwrap().read_exact_at(&mut name, 48).unwrap();
        let mirror = dir.join(name.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + ".data");
        if page_size % 4096 == 0 && mirror.exists() {
            let (data, counted) = (data_bytes(&mirror), answered - before);
            assert!(data <= counted, "{mirror:?} holds {data}, and {counted} are counted");
        }
    }
    let used = word(&dir.join("control"), 72);
    assert_eq!(used, answered, "the directory's count, and what its pages answer for");
}
