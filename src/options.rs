//! What a program may choose, the defaults, and what is refused.

use crate::error::{Error, Result};
use crate::format::{MAX_KEY, MAX_PAGE, MAX_PAGES, MAX_VERSION};
use std::path::PathBuf;
use std::time::Duration;

/// A page, unless told otherwise: 1 MiB, a request's worth for an object store.
pub const DEFAULT_PAGE_SIZE: u64 = 1 << 20;
/// The most that one source read asks for, unless told otherwise: 8 MiB.
pub const DEFAULT_MAX_FETCH: u64 = 8 << 20;
/// Threads that fetch beside the one that reads, at most, unless told otherwise: they wait for the source most of the time.
pub const DEFAULT_WORKERS: u32 = 16;
/// The longest wait for another's fetch, counted from its last progress, unless told otherwise.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// Choices for a cache directory, as this process uses it. Fields of zero mean the default.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CacheOptions {
    /// Bytes a page, 1 to 1 GiB; 0: [`DEFAULT_PAGE_SIZE`].
    pub page_size: u64,
    /// Bytes that one source read asks for at most, 1 to 1 GiB; 0: [`DEFAULT_MAX_FETCH`].
    pub max_fetch_bytes: u64,
    /// How long a read waits for another's fetch before it goes to the source itself; zero: [`DEFAULT_WAIT`].
    pub wait: Duration,
    /// The directory's limit, bytes, over all processes and files; 0 keeps the one that it has, which at first is none.
    pub size_limit: u64,
    /// Bytes of the file system that are left free; 0: none.
    pub min_free: u64,
    /// What this process does when a page does not fit any more.
    pub when_full: WhenFull,
    /// Threads of this process that fetch beside the one that reads, at most; 0: [`DEFAULT_WORKERS`]. They are started when there is
    /// something to do for them, and go when there has been nothing for two seconds.
    pub workers: u32,
}

/// What is done when a page does not fit into a limit any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Pages of less use are given up for it.
    #[default]
    Evict,
    /// What is there stays; nothing more is kept.
    Stop,
    /// All pages of the file that is read are dropped, and it starts again.
    Flush,
}

/// More threads than this are a mistake.
const MAX_WORKERS: u32 = 1024;

/// A cache's choices, made whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) page_size: u64,
    pub(crate) max_fetch: u64,
    pub(crate) wait: Duration,
    /// The most that one file may hold, bytes; 0: no such limit.
    pub(crate) file_limit: u64,
    pub(crate) when_full: WhenFull,
    pub(crate) workers: u32,
}

impl CacheOptions {
    pub(crate) fn check(&self) -> Result<Limits> {
        let default = |value, default| if value == 0 { default } else { value };
        Ok(Limits {
            page_size: check_page_size(default(self.page_size, DEFAULT_PAGE_SIZE))?,
            max_fetch: match default(self.max_fetch_bytes, DEFAULT_MAX_FETCH) {
                bytes if bytes <= MAX_PAGE => bytes,
                bytes => return Err(Error::Argument(format!("max_fetch_bytes {bytes} is more than {MAX_PAGE} (1 GiB)"))),
            },
            wait: if self.wait.is_zero() { DEFAULT_WAIT } else { self.wait },
            file_limit: 0,
            when_full: self.when_full,
            workers: match self.workers {
                0 => DEFAULT_WORKERS,
                count if count <= MAX_WORKERS => count,
                count => return Err(Error::Argument(format!("workers {count} is more than {MAX_WORKERS}"))),
            },
        })
    }
}

/// Which file, and how it is read.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// What names the remote file, 1 to 4,096 bytes; `None`: private, gone at close.
    pub key: Option<Vec<u8>>,
    /// What names its content (an ETag, a generation), up to 1,024 bytes: another version is another near copy.
    pub version: Vec<u8>,
    /// Bytes; `None`: asked of the source.
    pub size: Option<u64>,
    /// Bytes a page; 0: the cache's. A near copy that exists keeps its own.
    pub page_size: u64,
    /// Compare the checksum at every hit, not once a session.
    pub verify_always: bool,
    /// Do not compare after a clean close.
    pub trust_clean: bool,
    /// Copy hits from a map of the mirror: no system call, but a disk error under it, or a truncation by the same user, kills the
    /// process. Ignored in memory (tmpfs) and in exact mode.
    pub map: bool,
    /// The most bytes kept of this file, by this handle; 0: no limit of its own.
    pub size_limit: u64,
    /// Only the bytes asked for are read and kept, to the byte; private only.
    pub exact: bool,
    /// Read nothing ahead, and start no threads: the source is called on the thread that reads.
    pub readahead_off: bool,
    /// A miss is an error, and nothing of what is there is given up while the file is open.
    pub frozen: bool,
    /// Data and index at paths of the program's choice instead of a cache directory.
    pub paths: Option<(PathBuf, PathBuf)>,
}

impl Options {
    /// The defaults: private, size asked of the source.
    pub fn new() -> Options {
        Options::default()
    }

    pub(crate) fn check(&self) -> Result<()> {
        if let Some(key) = &self.key {
            check_key(key)?;
        }
        if self.version.len() > MAX_VERSION {
            return Err(Error::Argument(format!("the version has {} bytes, and {MAX_VERSION} are allowed", self.version.len())));
        }
        if self.exact && (self.key.is_some() || self.paths.is_some()) {
            return Err(Error::Argument("exact mode is private: open it without a key, data_path and index_path".into()));
        }
        if self.exact && self.frozen {
            return Err(Error::Argument("a private file that is frozen at open would have nothing to read".into()));
        }
        if self.page_size != 0 {
            check_page_size(self.page_size)?;
        }
        Ok(())
    }
}

pub(crate) fn check_key(key: &[u8]) -> Result<()> {
    if (1..=MAX_KEY).contains(&key.len()) {
        return Ok(());
    }
    let len = key.len();
    Err(Error::Argument(format!("the key has {len} bytes, and 1 to {MAX_KEY} are allowed (no key at all: a private file)")))
}

fn check_page_size(bytes: u64) -> Result<u64> {
    if (1..=MAX_PAGE).contains(&bytes) {
        return Ok(bytes);
    }
    Err(Error::Argument(format!("page_size {bytes} is not in 1 to {MAX_PAGE} (1 GiB)")))
}

/// Refuses what cannot have an index.
pub(crate) fn check_size(size: u64, page_size: u64) -> Result<()> {
    if i64::try_from(size).is_err() {
        return Err(Error::Argument(format!("a size of {size} bytes is more than 2^63 - 1, the largest file")));
    }
    let pages = size.div_ceil(page_size);
    if pages > MAX_PAGES {
        let least = size.div_ceil(MAX_PAGES).next_power_of_two();
        return Err(Error::Argument(format!(
            "{pages} pages of {page_size} bytes are too many: take a page_size of {least} or more"
        )));
    }
    Ok(())
}
