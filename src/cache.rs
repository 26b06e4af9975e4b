//! A cache: a directory of pairs, with this process's choices for it.

use crate::directory::Directory;
use crate::error::Result;
use crate::options::{CacheOptions, Limits};
use crate::stats::{Counters, Stats};
use crate::sync::Mutex;
use crate::sys::fork::PerProcess;
use std::path::Path;
use std::sync::{Arc, Weak};

/// A directory of near copies. Cheap to clone; files opened through it stay usable when it is dropped. Usable from any thread, and
/// in children forked after it was opened.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) directory: Directory,
    pub(crate) limits: Limits,
    /// The counters of the files that this process has open, to be told to `control`.
    telling: PerProcess<Mutex<Vec<Weak<FileCounters>>>>,
}

/// The counters of one open file, each process its own.
#[derive(Debug)]
pub(crate) struct FileCounters {
    counters: PerProcess<Counters>,
}

impl FileCounters {
    pub(crate) fn new() -> FileCounters {
        FileCounters { counters: PerProcess::new() }
    }

    pub(crate) fn here(&self) -> &Counters {
        self.counters.get()
    }
}

impl Cache {
    /// Opens, or makes, a cache directory. `None`: `$XDG_CACHE_HOME/nearfile`, else `$HOME/.cache/nearfile`.
    ///
    /// A directory that cannot be used is no error: the log says so, and files are read from their sources. A path that names a file
    /// is one.
    pub fn open(dir: Option<&Path>, options: &CacheOptions) -> Result<Cache> {
        let limits = options.check()?;
        let directory = match dir {
            Some(dir) => Directory::open(dir)?,
            None => Directory::open(&Directory::default_path()?)?,
        };
        Ok(Cache { shared: Arc::new(Shared { directory, limits, telling: PerProcess::new() }) })
    }

    /// Numbers over all processes that ever used the directory; of the present pages, counted now.
    pub fn stats(&self) -> Stats {
        self.shared.tell_all();
        let counts = self.shared.directory.control().map(|control| control.counts()).unwrap_or_default();
        let (cached_pages, cached_bytes) = self.shared.directory.census();
        Stats { cached_pages, cached_bytes, ..Stats::of(counts) }
    }
}

impl Shared {
    pub(crate) fn enroll(&self, counters: &Arc<FileCounters>) {
        let mut telling = self.telling.get().lock();
        telling.retain(|counters| counters.strong_count() > 0);
        telling.push(Arc::downgrade(counters));
    }

    /// Adds what a file has counted since it was last told.
    pub(crate) fn tell(&self, counters: &FileCounters) {
        if let Some(control) = self.directory.control() {
            control.count(&counters.here().untold());
        }
    }

    fn tell_all(&self) {
        let files: Vec<_> = self.telling.get().lock().iter().filter_map(Weak::upgrade).collect();
        for counters in files {
            self.tell(&counters);
        }
    }
}
