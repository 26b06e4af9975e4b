//! A file as a program sees it: reads at an offset or at a position, what is cached of it, its numbers.

use crate::ahead::Ahead;
use crate::cache::Cache;
use crate::error::{Error, Result, shield};
use crate::fetcher::Fetcher;
use crate::keep::{exact_keepsake, preserve};
use crate::lock;
use crate::making::Wanted;
use crate::opened::{Near, Opened};
use crate::options::{CacheOptions, Limits, Options, check_size};
use crate::pair::Pair;
use crate::pin::Pin;
use crate::range::Pages;
use crate::small::Small;
use crate::source::{Pool, Source};
use crate::stats::{FileCounters, Stats};
use crate::sync::{AtomicU64, Ordering};
use std::io::{self, SeekFrom};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// An open near copy. All methods may be called from several threads at once and in forked children.
#[derive(Debug)]
pub struct File {
    shared: Arc<Opened>,
    /// Outside of every lock: a child may have been forked while another thread moved it.
    position: AtomicU64,
    /// Set: a miss is an error. The description keeps the pair's pages; there is none without a pair.
    frozen: OnceLock<Option<OwnedFd>>,
    ahead: Ahead,
    small: Small,
}

/// One of a batch of reads.
#[derive(Debug)]
pub struct RangeRead<'a> {
    /// Where to read, bytes from the start.
    pub offset: u64,
    /// Where to put it.
    pub buf: &'a mut [u8],
    /// What came of it, as of [`File::read_at`]; one that is an error already is not read.
    pub result: Result<usize>,
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

impl Cache {
    /// Opens the near copy of a remote file. Nothing is read from the source, unless its size is asked for.
    pub fn file(&self, source: Box<dyn Source>, options: &Options) -> Result<File> {
        File::open_in(Some(self), Some(source), options)
    }
}

impl File {
    /// Opens a pair at [`Options::paths`], without a cache directory.
    pub fn open(source: Box<dyn Source>, options: &Options) -> Result<File> {
        File::open_in(None, Some(source), options)
    }

    /// Opens a pair at [`Options::paths`] that was made before, [`Options::frozen`], without a source.
    pub fn open_kept(options: &Options) -> Result<File> {
        File::open_in(None, None, options)
    }

    pub(crate) fn open_in(cache: Option<&Cache>, source: Option<Box<dyn Source>>, options: &Options) -> Result<File> {
        options.check()?;
        let cache = cache.map(|cache| Arc::clone(&cache.shared));
        let limits = match &cache {
            Some(cache) => cache.limits,
            None if options.paths.is_some() => CacheOptions::default().check()?,
            None => return Err(Error::Argument("no cache: open one, or give data_path and index_path".into())),
        };
        let limits = Limits { file_limit: options.size_limit, ..limits };
        let page_size = if options.page_size == 0 { limits.page_size } else { options.page_size };
        if source.is_none() && !(options.frozen && options.paths.is_some()) {
            return Err(Error::Argument("no source: only a frozen pair at data_path and index_path does without".into()));
        }
        let counters = Arc::new(FileCounters::new());
        let source = source.map(|source| Arc::new(Pool::new(source)));
        let size = match (options.size, &source) {
            (Some(size), _) => size,
            (None, Some(source)) => source.size(counters.here())?,
            (None, None) => return Err(Error::Argument("the size is unknown, and there is no source to ask".into())),
        };
        check_size(size, page_size)?;
        let wanted = Wanted { key: options.key.as_deref(), version: &options.version, pages: Pages { size, page_size } };
        let shared = Opened::open(cache, source, options, wanted, limits, counters)?;
        let file = File::over(Arc::new(shared));
        if options.frozen {
            file.freeze()?;
        }
        Ok(file)
    }

    fn over(shared: Arc<Opened>) -> File {
        File { shared, position: AtomicU64::new(0), frozen: OnceLock::new(), ahead: Ahead::new(), small: Small::new() }
    }

    /// Who fetches; `None` without a pair or a source.
    pub(crate) fn fetcher(&self) -> Option<&Arc<Fetcher>> {
        self.shared.fetcher.as_ref()
    }

    /// Bytes that one request asks for at most.
    pub(crate) fn max_fetch(&self) -> u64 {
        self.shared.limits.max_fetch
    }

    /// The same file, at position 0, with a position of its own.
    pub fn dup(&self) -> File {
        let file = File::over(Arc::clone(&self.shared));
        // What has no source stays frozen. A lock that cannot be had again is not needed: this handle still is.
        if self.shared.source.is_none() && file.freeze().is_err() {
            let _ = file.frozen.set(None);
        }
        file
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
        match &self.shared.near {
            Near::Paged(pair) => Some(pair.place().data.as_path()),
            Near::Exact(exact) => exact.path(),
            Near::Nowhere => None,
        }
    }

    /// Where the index is, likewise.
    pub fn index_path(&self) -> Option<&Path> {
        self.shared.near.pair().map(|pair| pair.place().index.as_path())
    }

    /// Reads at an offset, as `pread`: all that was asked for, less only at the end of the file, 0 past it.
    #[inline(always)]
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let left = self.size().saturating_sub(offset);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        self.shared.read(&mut buf[..len], offset, self.is_frozen(), &self.ahead)?;
        Ok(len)
    }

    /// Reads at the position and moves it, as `read`. Threads that share the handle get parts that follow each other.
    pub fn read(&self, buf: &mut [u8]) -> Result<usize> {
        let size = self.size();
        if let Some(len) = self.read_small(buf) {
            return Ok(len);
        }
        let advance = |at: u64| Some(at + (buf.len() as u64).min(size.saturating_sub(at)));
        let (Ok(at) | Err(at)) = self.position.fetch_update(Ordering::AcqRel, Ordering::Acquire, advance);
        let moved = Moved { position: &self.position, from: at, to: at + (buf.len() as u64).min(size.saturating_sub(at)) };
        let read = self.read_at(buf, at)?;
        std::mem::forget(moved);
        Ok(read)
    }

    /// Small reads that follow each other, of what is present.
    fn read_small(&self, buf: &mut [u8]) -> Option<usize> {
        let pair = self.shared.near.pair().filter(|_| !self.shared.trust.never)?;
        let counters = self.shared.counters.here();
        let pages = self.shared.pages;
        let word = |at: u64| pair.index().load(pages.page_of(at)).ok().filter(|word| word.is_present()).map(|word| word.0);
        // Within a page, so that one word speaks for all of it.
        let fill = |at: u64, buffer: &mut [u8]| {
            let len = buffer.len().min((pages.bytes(pages.page_of(at)).end - at) as usize);
            let copied = shield(|| Ok(pair.copy_out(at, &mut buffer[..len], self.shared.trust, counters))).unwrap_or(0);
            if let (Some(fetcher), false) = (&self.shared.fetcher, self.is_frozen()) {
                self.ahead.hit(fetcher, at + copied as u64);
            }
            copied
        };
        let served = self.small.read(&self.position, self.size(), buf, word, fill);
        served.then(|| {
            counters.hit(buf.len() as u64);
            buf.len()
        })
    }

    /// Reads several ranges, each as [`File::read_at`] does. What they miss is fetched together, many requests at once.
    pub fn read_ranges(&self, ranges: &mut [RangeRead<'_>]) {
        let mut rest = ranges;
        while !rest.is_empty() {
            let mut bytes = 0;
            let many = rest.iter().take_while(|range| {
                let fits = bytes < TOGETHER;
                let cut = self.part(range.offset, range.buf.len());
                bytes +=
                    if cut.is_empty() { 0 } else { self.shared.pages.bytes_of(self.shared.pages.touched(&cut)).end - cut.start };
                fits
            });
            let (group, after) = rest.split_at_mut(many.count());
            rest = after;
            self.read_group(group);
        }
    }

    fn read_group(&self, group: &mut [RangeRead<'_>]) {
        // A larger one goes by itself, which takes no second room for all of it.
        let is_shared = |cut: &Range<u64>| cut.end - cut.start <= TOGETHER;
        let wanted: Vec<Range<u64>> = group
            .iter()
            .map(|range| self.part(range.offset, range.buf.len()))
            .filter(|cut| !cut.is_empty())
            .filter(is_shared)
            .collect();
        let pieces = if self.is_frozen() { Vec::new() } else { self.shared.gather(&wanted).unwrap_or_default() };
        for range in group.iter_mut().filter(|range| range.result.is_ok()) {
            let cut = self.part(range.offset, range.buf.len());
            let len = (cut.end - cut.start) as usize;
            range.result = match len {
                0 => Ok(0),
                _ => self.shared.read_given(&mut range.buf[..len], cut.start, self.is_frozen(), &pieces, &self.ahead).map(|()| len),
            };
        }
    }

    /// What of a range lies in the file.
    fn part(&self, offset: u64, len: usize) -> Range<u64> {
        let start = offset.min(self.size());
        start..start.saturating_add(len as u64).min(self.size())
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
        match &self.shared.near {
            Near::Paged(pair) if offset < size => shield(|| Ok(pair.extent(offset))),
            Near::Exact(exact) if offset < size => shield(|| Ok(exact.extent(offset))),
            _ => Ok((size, false)),
        }
    }

    /// Drops the pages that lie wholly inside a range (a range up to the end holds the short last page whole), except pages that
    /// are being fetched just now, pinned or frozen. Their next read fetches them again. In exact mode: the bytes.
    pub fn discard(&self, range: Range<u64>) -> Result<()> {
        let failed = |error| Error::io("discard", error);
        let range = range.start..range.end.min(self.size());
        if range.is_empty() {
            return Ok(());
        }
        match &self.shared.near {
            Near::Paged(pair) => match self.shared.pages.inside(&range) {
                Some(run) => shield(|| pair.discard(run).map(drop).map_err(failed)),
                None => Ok(()),
            },
            Near::Exact(exact) => shield(|| exact.discard(range).map_err(failed)),
            Near::Nowhere => Ok(()),
        }
    }

    /// From now on a miss of this handle is [`Error::Frozen`], the source is not touched, and nothing of what is there is given up by
    /// anyone while the handle is open.
    pub fn freeze(&self) -> Result<()> {
        if self.is_frozen() {
            return Ok(());
        }
        let description = shield(|| match &self.shared.near {
            Near::Paged(pair) => match lock::freeze(pair.index().file(), self.shared.limits.wait) {
                Ok(Some(description)) => Ok(Some(description)),
                Ok(None) => Err(Error::io("freeze: another process does not stop dropping pages", io::ErrorKind::TimedOut.into())),
                Err(error) => Err(Error::io("freeze", error)),
            },
            Near::Exact(exact) => {
                exact.freeze();
                Ok(None)
            }
            Near::Nowhere => Ok(None),
        })?;
        let _ = self.frozen.set(description);
        self.ahead.end();
        Ok(())
    }

    /// Whether [`File::freeze`] was called, or the file was opened so.
    pub fn is_frozen(&self) -> bool {
        self.frozen.get().is_some()
    }

    /// Freezes the handle and writes what is there to `path`, holes as holes, with its index at `path.index`, to be opened again by
    /// [`Options::paths`]. Never over a file that is there. In exact mode pages of 4 KiB that are there as a whole are kept.
    pub fn preserve(&self, path: &Path) -> Result<()> {
        self.freeze()?;
        shield(|| match &self.shared.near {
            Near::Paged(pair) => preserve(&pair.keepsake().map_err(|error| Error::io("preserve", error))?, path),
            Near::Exact(exact) => match exact.mirror() {
                Some(mirror) => {
                    preserve(&exact_keepsake(exact, mirror, self.size()).map_err(|error| Error::io("preserve", error))?, path)
                }
                None => Err(Error::Unsupported("nothing is kept of this file, so there is nothing to preserve".into())),
            },
            Near::Nowhere => Err(Error::Unsupported("nothing is kept of this file, so there is nothing to preserve".into())),
        })
    }

    /// Holds a range in memory without a copy, as far as the file goes: reads what is absent, then maps it and keeps it from being
    /// given up. Where that cannot be (no near copy, tmpfs, exact mode, a page that others fetch again and again) the pin is a copy.
    pub fn pin(&self, offset: u64, len: usize) -> Result<Pin> {
        let left = usize::try_from(self.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = len.min(left);
        let range = offset..offset + len as u64;
        let (end, cached) = self.extent(offset)?;
        let mut bytes = Vec::new();
        if let (Near::Paged(pair), false) = (&self.shared.near, len == 0) {
            if !(cached && end >= range.end) {
                bytes = self.read_copy(&range)?;
            }
            for _ in 0..PIN_TRIES {
                self.compare_pages(pair, &range)?;
                if let Some(pin) = shield(|| Ok(pair.pin(&range, self.shared.trust)))? {
                    return Ok(pin);
                }
            }
        }
        if bytes.is_empty() {
            bytes = self.read_copy(&range)?;
        }
        Ok(Pin::copied(bytes))
    }

    fn read_copy(&self, range: &Range<u64>) -> Result<Vec<u8>> {
        let len = (range.end - range.start) as usize;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| Error::NoMemory(format!("a pin of {len} bytes")))?;
        bytes.resize(len, 0);
        self.read_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// Reads a byte of each page, which compares those that were not compared in this session.
    fn compare_pages(&self, pair: &Pair, range: &Range<u64>) -> Result<()> {
        let run = pair.pages().touched(range);
        (run.first..=run.last).try_for_each(|page| self.read_at(&mut [0], pair.pages().bytes(page).start).map(drop))
    }

    /// This process's numbers of the file, and what is present now.
    pub fn stats(&self) -> Stats {
        let (cached_pages, cached_bytes) = match &self.shared.near {
            Near::Paged(pair) => pair.index().census(),
            Near::Exact(exact) => exact.census(),
            Near::Nowhere => (0, 0),
        };
        Stats {
            cached_pages,
            cached_bytes,
            size_limit: self.shared.limits.file_limit,
            ..Stats::of(self.shared.counters.here().totals())
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.ahead.end();
    }
}

/// Of a batch, so many bytes of pages are fetched together at once.
const TOGETHER: u64 = 64 << 20;

/// Rounds of comparing and locking before a pin becomes a copy.
const PIN_TRIES: u32 = 3;
