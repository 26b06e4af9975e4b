//! A file as a program sees it: reads at an offset or at a position, what is cached of it, its numbers.

use crate::cache::{Cache, FileCounters, Shared as CacheShared};
use crate::directory::{Wanted, pair_at};
use crate::error::{Error, Result, shield};
use crate::fetch::{Miss, Step};
use crate::options::{CacheOptions, Limits, Options, check_size};
use crate::pair::{Pair, Trust};
use crate::range::{Pages, Run};
use crate::source::{Pool, Source};
use crate::stats::{Count, Counters, Stats};
use crate::sync::{AtomicU64, Ordering};
use std::io::SeekFrom;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// An open near copy. All methods may be called from several threads at once and in forked children.
#[derive(Debug)]
pub struct File {
    shared: Arc<Shared>,
    /// Outside of every lock: a child may have been forked while another thread moved it.
    position: AtomicU64,
}

/// Undoes a move of the position whose read failed, or was left by a C++ exception, unless another thread has gone on from there.
struct Moved<'a> {
    position: &'a AtomicU64,
    from: u64,
    to: u64,
}

impl Drop for Moved<'_> {
    fn drop(&mut self) {
        let _ = self.position.compare_exchange(self.to, self.from, Ordering::AcqRel, Ordering::Acquire);
    }
}

#[derive(Debug)]
struct Shared {
    pair: Option<Arc<Pair>>,
    source: Pool,
    pages: Pages,
    limits: Limits,
    trust: Trust,
    counters: Arc<FileCounters>,
    cache: Option<Arc<CacheShared>>,
}

impl Cache {
    /// Opens the near copy of a remote file. Nothing is read from the source, unless its size is asked for.
    pub fn file(&self, source: Box<dyn Source>, options: &Options) -> Result<File> {
        File::open_in(Some(self), source, options)
    }
}

impl File {
    /// Opens a pair at [`Options::paths`], without a cache directory.
    pub fn open(source: Box<dyn Source>, options: &Options) -> Result<File> {
        File::open_in(None, source, options)
    }

    fn open_in(cache: Option<&Cache>, source: Box<dyn Source>, options: &Options) -> Result<File> {
        options.check()?;
        let cache = cache.map(|cache| Arc::clone(&cache.shared));
        let limits = match &cache {
            Some(cache) => cache.limits,
            None if options.paths.is_some() => CacheOptions::default().check()?,
            None => return Err(Error::Argument("no cache: open one, or give data_path and index_path".into())),
        };
        let page_size = if options.page_size == 0 { limits.page_size } else { options.page_size };
        let counters = Arc::new(FileCounters::new());
        let source = Pool::new(source);
        let size = match options.size {
            Some(size) => size,
            None => source.size(counters.here())?,
        };
        check_size(size, page_size)?;
        let wanted = Wanted { key: options.key.as_deref(), version: &options.version, pages: Pages { size, page_size } };
        let pair = shield(|| match (&options.paths, &cache) {
            (Some((data, index)), _) => pair_at(data, index, wanted, limits.wait),
            (None, Some(cache)) => Ok(cache.directory.pair(wanted, limits.wait)),
            (None, None) => Ok(None),
        })?;
        if let Some(cache) = &cache {
            cache.enroll(&counters);
        }
        let pages = pair.as_ref().map_or(wanted.pages, |pair| pair.pages());
        let trust = Trust { never: options.verify_always, clean: options.trust_clean };
        let shared = Shared { pair, source, pages, limits, trust, counters, cache };
        Ok(File { shared: Arc::new(shared), position: AtomicU64::new(0) })
    }

    /// The same file, at position 0, with a position of its own.
    pub fn dup(&self) -> File {
        File { shared: Arc::clone(&self.shared), position: AtomicU64::new(0) }
    }

    /// Bytes of the remote file.
    pub fn size(&self) -> u64 {
        self.shared.pages.size
    }

    /// Bytes a page, as the pair that exists has them.
    pub fn page_size(&self) -> u64 {
        self.shared.pages.page_size
    }

    /// Where the mirror is; `/proc/self/fd/…` for a private file; `None` where nothing is kept.
    pub fn data_path(&self) -> Option<&Path> {
        self.shared.pair.as_deref().map(|pair| pair.place().data.as_path())
    }

    /// Where the index is, likewise.
    pub fn index_path(&self) -> Option<&Path> {
        self.shared.pair.as_deref().map(|pair| pair.place().index.as_path())
    }

    /// Reads at an offset, as `pread`: all that was asked for, less only at the end of the file, 0 past it.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let left = self.size().saturating_sub(offset);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        self.shared.read(&mut buf[..len], offset)?;
        Ok(len)
    }

    /// Reads at the position and moves it, as `read`. Threads that share the handle get parts that follow each other.
    pub fn read(&self, buf: &mut [u8]) -> Result<usize> {
        let size = self.size();
        let advance = |at: u64| Some(at + (buf.len() as u64).min(size.saturating_sub(at)));
        let (Ok(at) | Err(at)) = self.position.fetch_update(Ordering::AcqRel, Ordering::Acquire, advance);
        let moved = Moved { position: &self.position, from: at, to: at + (buf.len() as u64).min(size.saturating_sub(at)) };
        let read = self.read_at(buf, at)?;
        std::mem::forget(moved);
        Ok(read)
    }

    /// Moves the position, also past the end, where reads give 0. Returns it.
    pub fn seek(&self, to: SeekFrom) -> Result<u64> {
        let go = |base: u64, by: i64| base.checked_add_signed(by).filter(|&at| i64::try_from(at).is_ok());
        let refused = || Error::Argument(format!("seek to {to:?}: the position would be negative, or more than 2^63 - 1"));
        let target = |at| match to {
            SeekFrom::Start(at) => go(at, 0),
            SeekFrom::Current(by) => go(at, by),
            SeekFrom::End(by) => go(self.size(), by),
        };
        let before = self.position.fetch_update(Ordering::AcqRel, Ordering::Acquire, target).map_err(|_| refused())?;
        target(before).ok_or_else(refused)
    }

    /// The position.
    pub fn tell(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Whether the byte at `offset` is in the near copy, and where that answer ends: on to the end of the file, page by page.
    /// At or past the end: `(size, false)`.
    pub fn extent(&self, offset: u64) -> Result<(u64, bool)> {
        let size = self.size();
        let Some(pair) = self.shared.pair.as_deref().filter(|_| offset < size) else { return Ok((size, false)) };
        shield(|| Ok(pair.extent(offset)))
    }

    /// Drops the pages that lie wholly inside a range (a range up to the end holds the short last page whole), except pages that
    /// are being fetched just now. Their next read fetches them again. Returns how many were dropped.
    pub fn discard(&self, range: Range<u64>) -> Result<u64> {
        let Some(pair) = &self.shared.pair else { return Ok(0) };
        let Some(run) = self.shared.pages.inside(&range) else { return Ok(0) };
        shield(|| pair.discard(run).map_err(|error| Error::io(format!("discard in {}", pair.place().data.display()), error)))
    }

    /// This process's numbers of the file, and what is present now.
    pub fn stats(&self) -> Stats {
        let (cached_pages, cached_bytes) = self.shared.pair.as_deref().map_or((0, 0), |pair| pair.index().census());
        Stats { cached_pages, cached_bytes, ..Stats::of(self.shared.counters.here().totals()) }
    }
}

impl Shared {
    /// Fills `out`, which lies within the file. A hit goes through [`Pair::copy_out`] alone.
    fn read(&self, out: &mut [u8], offset: u64) -> Result<()> {
        let counters = self.counters.here();
        let len = out.len() as u64;
        let Some(pair) = &self.pair else { return self.read_uncached(out, offset, counters) };
        let done = shield(|| Ok(pair.copy_out(offset, out, self.trust, counters)))?;
        if done == out.len() {
            counters.hit(len);
            return Ok(());
        }
        counters.one(Count::Misses);
        counters.add(Count::BytesAsked, len);
        self.source.check_not_inside()?;
        let read = self.read_missing(pair, out, offset, done, counters);
        if read.is_ok() {
            counters.add(Count::BytesServed, len);
        }
        if let Some(cache) = &self.cache {
            cache.tell(&self.counters);
        }
        read
    }

    /// Drives a miss. Only the source's read is not shielded.
    fn read_missing(&self, pair: &Pair, out: &mut [u8], offset: u64, done: usize, counters: &Counters) -> Result<()> {
        let mut miss = shield(|| Ok(Miss::new(pair, self.limits, self.trust, counters, offset, out, done)))?;
        let mut next = None;
        loop {
            let step = match next.take() {
                Some(step) => step,
                None => shield(|| miss.step())?,
            };
            let Step::Ask { range, run } = step else { return Ok(()) };
            let mut beat = || {
                if let Some(run) = run {
                    pair.index().beat(run);
                }
            };
            let read = self.source.read(range.start, miss.buffer(), self.pages.size, counters, &mut beat);
            next = shield(|| miss.accept(read))?;
        }
    }

    fn read_uncached(&self, out: &mut [u8], offset: u64, counters: &Counters) -> Result<()> {
        let len = out.len() as u64;
        counters.one(Count::Misses);
        counters.one(Count::PassedThrough);
        counters.add(Count::BytesAsked, len);
        self.source.read(offset, out, self.pages.size, counters, &mut || {})?;
        counters.add(Count::BytesServed, len);
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The pair goes first, shielded; then the source, whose callbacks are not.
        let (pair, cache, counters) = (self.pair.take(), self.cache.take(), &self.counters);
        let _ = shield(|| {
            if let Some(cache) = &cache {
                cache.tell(counters);
            }
            drop(pair);
            Ok(())
        });
    }
}

impl Pair {
    fn extent(&self, offset: u64) -> (u64, bool) {
        let pages = self.pages();
        let first = pages.page_of(offset);
        let present = |page| self.index().load(page).is_ok_and(|word| word.is_present());
        let cached = present(first);
        let mut page = first + 1;
        while page < pages.count() {
            // A stretch without blocks is absent as a whole.
            let here = match self.index().next_allocated(page) {
                Some(stretch) if stretch.first == page => stretch,
                _ if cached => break,
                Some(stretch) => Run { first: stretch.first, last: stretch.last },
                None => return (pages.size, false),
            };
            match (here.first..=here.last).find(|&page| present(page) != cached) {
                Some(other) => {
                    page = other;
                    break;
                }
                None => page = here.last + 1,
            }
        }
        (pages.bytes_of(Run { first, last: page.min(pages.count()) - 1 }).end, cached)
    }
}
