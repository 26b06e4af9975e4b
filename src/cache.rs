//! A cache: a directory of pairs, with this process's choices for it.

use crate::control::named;
use crate::directory::{Directory, Listed};
use crate::error::{Error, Result};
use crate::evict::Evictor;
use crate::format::Header;
use crate::index::{Index, read_use};
use crate::options::{CacheOptions, Limits, WhenFull, check_key};
use crate::stats::{FileCounters, Stats};
use crate::sync::Mutex;
use crate::sys::fork::PerProcess;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

/// A directory of near copies. Cheap to clone; files opened through it stay usable when it is dropped. Usable from any thread, and
/// in children forked after it was opened.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) directory: Arc<Directory>,
    evictor: Arc<Evictor>,
    pub(crate) limits: Limits,
    /// The counters of the files that this process has open, to be told to `control`.
    telling: PerProcess<Mutex<Vec<Weak<FileCounters>>>>,
}

impl Cache {
    /// Opens, or makes, a cache directory. `None`: `$XDG_CACHE_HOME/nearfile`, else `$HOME/.cache/nearfile`.
    ///
    /// A directory that cannot be used is no error: the log says so, and files are read from their sources. A path that names a file
    /// is one.
    pub fn open(dir: Option<&Path>, options: &CacheOptions) -> Result<Cache> {
        let limits = options.check()?;
        let path = dir.map_or_else(Directory::default_path, |dir| Ok(dir.to_owned()))?;
        let directory = Arc::new(Directory::open(&path, options, limits.wait)?);
        let evictor = Arc::new(Evictor::new(Arc::clone(&directory)));
        if let Some(shared) = directory.shared() {
            let weak: Weak<Evictor> = Arc::downgrade(&evictor);
            shared.budget.set_evictor(weak);
            if shared.budget.lacking(0) > 0 && limits.when_full == WhenFull::Evict {
                shared.budget.make_room(0); // a limit that was just lowered
            }
        }
        Ok(Cache { shared: Arc::new(Shared { directory, evictor, limits, telling: PerProcess::new() }) })
    }

    /// `$XDG_CACHE_HOME/nearfile`, else `$HOME/.cache/nearfile`.
    pub fn default_path() -> Result<PathBuf> {
        Directory::default_path()
    }

    /// Numbers over all processes that ever used the directory; of the present pages, counted in every index, and never more than what
    /// the limit is held against.
    pub fn stats(&self) -> Stats {
        self.shared.tell_all();
        let Some(shared) = self.shared.directory.shared() else { return Stats::default() };
        let indexes = self.shared.directory.list().filter_map(|pair| Index::map(pair.index, &pair.header, false).ok());
        let (cached_pages, bytes) = indexes.map(|index| index.census()).fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1));
        // Pages come and go while they are counted, so that some may be counted twice.
        let cached_bytes = bytes.min(shared.budget.used());
        let size_limit = shared.budget.limit();
        Stats { cached_pages, cached_bytes, size_limit, ..Stats::of(shared.control.counts()) }
    }

    /// The same without a look into every index, for who asks often: `cached_bytes` is then what the limit is held against, and
    /// `cached_pages` is 0.
    pub fn counters(&self) -> Stats {
        self.shared.tell_all();
        let Some(shared) = self.shared.directory.shared() else { return Stats::default() };
        let (cached_bytes, size_limit) = (shared.budget.used(), shared.budget.limit());
        Stats { cached_bytes, size_limit, ..Stats::of(shared.control.counts()) }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.shared.directory.path()
    }

    /// Whether processes share it. Where they cannot (another user's directory, NFS, a foreign `control`) the log says why when it is
    /// opened, and nothing in it is counted or given up.
    pub fn is_shared(&self) -> bool {
        self.shared.directory.shared().is_some()
    }

    /// Gives up the least useful until the directory holds no more than `keep_bytes`; pinned, frozen and just fetched pages stay.
    pub fn trim(&self, keep_bytes: u64) -> Result<()> {
        let trimmed = self.shared.evictor.trim(keep_bytes, self.shared.limits.wait);
        trimmed.map_err(|error| Error::io("trim", error))
    }

    /// Drops what is kept of a key, every version. Of a file that is open the pages go at once, and the files when the last process
    /// closes it.
    pub fn remove(&self, key: &[u8]) -> Result<()> {
        check_key(key)?;
        self.shared.evictor.remove(key).map_err(|error| Error::io("remove", error))
    }

    /// The near copies in the directory, in no order. Counts the pages of each.
    pub fn list(&self) -> Vec<Entry> {
        let directory = &self.shared.directory;
        let entry = |listed: Listed| {
            let open = listed.is_open();
            let (data_path, index_path) =
                (directory.place_of(&named(&listed.header.mirror, "data")), directory.place_of(&listed.name));
            let (held_bytes, used) = read_use(listed.index.as_fd()).ok()?;
            let (cached_pages, cached_bytes) = Index::map(listed.index, &listed.header, false).ok()?.census();
            let Header { key, version, size, page_size, made, .. } = listed.header;
            let entry = Entry {
                key,
                version,
                size,
                page_size,
                data_path,
                index_path,
                cached_pages,
                cached_bytes,
                held_bytes,
                made: since_1970(made),
                used: since_1970(used),
                open,
                outdated: false,
            };
            Some((made, entry))
        };
        let mut entries: Vec<(u64, Entry)> = directory.list().filter_map(entry).collect();
        let mut newest: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for (made, entry) in &entries {
            let latest = newest.entry(entry.key.clone()).or_default();
            *latest = (*latest).max(*made);
        }
        for (made, entry) in &mut entries {
            entry.outdated = newest.get(&entry.key).is_some_and(|latest| *made < *latest);
        }
        entries.into_iter().map(|(_, entry)| entry).collect()
    }
}

/// One near copy in a cache directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// What names the remote file.
    pub key: Vec<u8>,
    /// What names its content.
    pub version: Vec<u8>,
    /// Bytes.
    pub size: u64,
    /// Bytes a page.
    pub page_size: u64,
    /// Where the mirror is.
    pub data_path: PathBuf,
    /// Where the index is.
    pub index_path: PathBuf,
    /// Pages present.
    pub cached_pages: u64,
    /// Bytes of those.
    pub cached_bytes: u64,
    /// Bytes that its pages take of the limit: the file-system blocks that they touch.
    pub held_bytes: u64,
    /// When it was made: orders the versions of a key.
    pub made: SystemTime,
    /// When a session of it last began or ended.
    pub used: SystemTime,
    /// Whether some process has it open.
    pub open: bool,
    /// Whether a newer near copy of the key is there.
    pub outdated: bool,
}

fn since_1970(nanoseconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds)
}

impl Shared {
    /// Remembers the counters of a file. A forked child does so when it first tells something of one that it inherited.
    pub(crate) fn enroll(&self, counters: &Arc<FileCounters>) {
        if !counters.here().enroll() {
            return;
        }
        let mut telling = self.telling.get().lock();
        telling.retain(|counters| counters.strong_count() > 0);
        telling.push(Arc::downgrade(counters));
    }

    /// Adds what a file has counted since it was last told.
    pub(crate) fn tell(&self, counters: &Arc<FileCounters>) {
        self.enroll(counters);
        if let Some(shared) = self.directory.shared() {
            shared.control.count(&counters.here().untold());
        }
    }

    fn tell_all(&self) {
        let files: Vec<_> = self.telling.get().lock().iter().filter_map(Weak::upgrade).collect();
        for counters in files {
            self.tell(&counters);
        }
    }
}
