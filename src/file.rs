//! A file as a program sees it: reads at an offset or at a position, what is cached of it, its numbers.

use crate::cache::{Cache, FileCounters, Shared as CacheShared};
use crate::error::{Error, Result, shield};
use crate::exact::{Exact, ExactRead};
use crate::fetch::{Miss, Step, as_much_room};
use crate::format::{Header, crc32c};
use crate::keep::{Keepsake, preserve};
use crate::lock;
use crate::making::Wanted;
use crate::mirror::Mirror;
use crate::options::{CacheOptions, Limits, Options, check_size};
use crate::pair::{Pair, Trust, new_header};
use crate::paths::pair_at;
use crate::pin::Pin;
use crate::range::{Pages, Run};
use crate::source::{Pool, Source};
use crate::stats::{Count, Counters, Stats};
use crate::sync::{AtomicU64, Ordering};
use std::io::{self, SeekFrom};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// An open near copy. All methods may be called from several threads at once and in forked children.
#[derive(Debug)]
pub struct File {
    shared: Arc<Shared>,
    /// Outside of every lock: a child may have been forked while another thread moved it.
    position: AtomicU64,
    /// Set: a miss is an error. The description keeps the pair's pages; there is none without a pair.
    frozen: OnceLock<Option<OwnedFd>>,
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
    near: Near,
    /// None: frozen from the start, and never asked.
    source: Option<Pool>,
    pages: Pages,
    limits: Limits,
    trust: Trust,
    counters: Arc<FileCounters>,
    cache: Option<Arc<CacheShared>>,
}

/// Where the near copy is.
#[derive(Debug)]
enum Near {
    Paged(Arc<Pair>),
    Exact(Box<Exact>),
    /// Nothing can be kept.
    Nowhere,
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
        let source = source.map(Pool::new);
        let size = match (options.size, &source) {
            (Some(size), _) => size,
            (None, Some(source)) => source.size(counters.here())?,
            (None, None) => return Err(Error::Argument("the size is unknown, and there is no source to ask".into())),
        };
        check_size(size, page_size)?;
        let wanted = Wanted { key: options.key.as_deref(), version: &options.version, pages: Pages { size, page_size } };
        let near = shield(|| Near::open(cache.as_deref(), options, wanted, limits))?;
        if let Some(cache) = &cache {
            cache.enroll(&counters);
        }
        let pages = near.pair().map_or(wanted.pages, |pair| pair.pages());
        let trust = Trust { never: options.verify_always, clean: options.trust_clean, map: options.map };
        if let (Near::Paged(pair), true) = (&near, options.map) {
            shield(|| {
                pair.map_mirror();
                Ok(())
            })?;
        }
        let shared = Shared { near, source, pages, limits, trust, counters, cache };
        let file = File { shared: Arc::new(shared), position: AtomicU64::new(0), frozen: OnceLock::new() };
        if options.frozen {
            file.freeze()?;
        }
        Ok(file)
    }

    /// The same file, at position 0, with a position of its own.
    pub fn dup(&self) -> File {
        let file = File { shared: Arc::clone(&self.shared), position: AtomicU64::new(0), frozen: OnceLock::new() };
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
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let left = self.size().saturating_sub(offset);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if len == 0 {
            return Ok(0);
        }
        self.shared.read(&mut buf[..len], offset, self.is_frozen())?;
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

    /// Reads what is absent of a range, without giving it to anyone. `progress` is told the bytes done and to do, and ends it with
    /// `false`. Stops early where a limit keeps things out: then it fetches no more than it can keep.
    pub fn prefetch(&self, range: Range<u64>, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<()> {
        let range = range.start.min(self.size())..range.end.min(self.size());
        let total = range.end.saturating_sub(range.start);
        let mut scratch = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (end, cached) = self.extent(at)?;
            let end = end.min(range.end);
            while !cached && at < end {
                // Whole pages, one fetch at a time.
                let window = self.shared.pages.page_of(at + self.shared.limits.max_fetch) * self.shared.pages.page_size;
                let part = at..if window > at { window.min(end) } else { end.min(at + self.shared.limits.max_fetch) };
                let room = as_much_room(&mut scratch, part.end - part.start);
                if room == 0 {
                    return Err(Error::NoMemory("a prefetch".into()));
                }
                let part = part.start..part.start + room;
                self.read_at(&mut scratch, part.start)?;
                let (kept_to, kept) = self.extent(part.start)?;
                at = if kept { kept_to.min(part.end) } else { part.start };
                if !progress(at - range.start, total) {
                    return Err(Error::Cancelled);
                }
                if at < part.end {
                    return Ok(());
                }
            }
            if cached {
                at = end;
                if !progress(at - range.start, total) {
                    return Err(Error::Cancelled);
                }
            }
        }
        Ok(())
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

impl Near {
    fn open(cache: Option<&CacheShared>, options: &Options, wanted: Wanted<'_>, limits: Limits) -> Result<Near> {
        let pair = match (&options.paths, cache) {
            (Some((data, index)), _) => pair_at(data, index, wanted, options.frozen, limits.wait)?,
            (None, Some(cache)) if options.exact => {
                let (directory, size) = (Arc::clone(&cache.directory), wanted.pages.size);
                let make = move || directory.unnamed_mirror(size);
                return Ok(Near::Exact(Box::new(Exact::new(size, Box::new(make)))));
            }
            (None, Some(cache)) => cache.directory.pair(wanted, limits.wait),
            (None, None) => None,
        };
        Ok(pair.map_or(Near::Nowhere, Near::Paged))
    }

    fn pair(&self) -> Option<&Arc<Pair>> {
        match self {
            Near::Paged(pair) => Some(pair),
            _ => None,
        }
    }
}

/// Rounds of comparing and locking before a pin becomes a copy.
const PIN_TRIES: u32 = 3;

impl Shared {
    /// Fills `out`, which lies within the file. A hit goes through [`Pair::copy_out`] alone.
    fn read(&self, out: &mut [u8], offset: u64, frozen: bool) -> Result<()> {
        let counters = self.counters.here();
        let len = out.len() as u64;
        let done = match &self.near {
            Near::Paged(pair) => {
                let done = shield(|| Ok(pair.copy_out(offset, out, self.trust, counters)))?;
                if done == out.len() {
                    counters.hit(len);
                    return Ok(());
                }
                done
            }
            _ => 0,
        };
        let source = match &self.source {
            Some(source) if !frozen || matches!(self.near, Near::Exact(_)) => source,
            _ => return Err(frozen_miss(offset + done as u64)),
        };
        if let Near::Exact(exact) = &self.near {
            return self.read_exact(exact, source, out, offset, counters, frozen);
        }
        counters.one(Count::Misses);
        counters.add(Count::BytesAsked, len);
        source.check_not_inside()?;
        let read = match &self.near {
            Near::Paged(pair) => self.read_missing(pair, source, out, offset, done, counters),
            _ => {
                counters.one(Count::PassedThrough);
                source.read(offset, out, self.pages.size, counters, &mut || {})
            }
        };
        if read.is_ok() {
            counters.add(Count::BytesServed, len);
        }
        if let Some(cache) = &self.cache {
            cache.tell(&self.counters);
        }
        read
    }

    /// Drives a miss. Only the source's read is not shielded.
    fn read_missing(
        &self,
        pair: &Pair,
        source: &Pool,
        out: &mut [u8],
        offset: u64,
        done: usize,
        counters: &Counters,
    ) -> Result<()> {
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
            let read = source.read(range.start, miss.buffer(), self.pages.size, counters, &mut beat);
            next = shield(|| miss.accept(read))?;
        }
    }

    /// Drives a read in exact mode, likewise.
    fn read_exact(
        &self,
        exact: &Exact,
        source: &Pool,
        out: &mut [u8],
        offset: u64,
        counters: &Counters,
        frozen: bool,
    ) -> Result<()> {
        let len = out.len() as u64;
        let mut read = shield(|| Ok(ExactRead::new(exact, self.limits, counters, offset, out, source.is_inside())))?;
        while let Step::Ask { range, .. } = shield(|| read.step())? {
            if frozen {
                return Err(frozen_miss(range.start));
            }
            let got = source.read(range.start, read.buffer(), self.pages.size, counters, &mut || {});
            shield(|| read.accept(got))?;
        }
        if read.missed() {
            counters.one(Count::Misses);
            counters.add(Count::BytesAsked, len);
            counters.add(Count::BytesServed, len);
        } else {
            counters.hit(len);
        }
        Ok(())
    }
}

fn frozen_miss(offset: u64) -> Error {
    Error::Frozen(format!("byte {offset} is not in the near copy, and the file is frozen"))
}

/// What is kept of an exact file: its pages of 4 KiB that are there as a whole.
fn exact_keepsake<'a>(exact: &Exact, mirror: &'a Mirror, size: u64) -> io::Result<Keepsake<'a>> {
    let pages = Pages { size, page_size: 4096 };
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    for range in exact.ranges() {
        let Some(run) = pages.inside(&range) else { continue };
        for page in run.first..=run.last {
            let bytes = pages.bytes(page);
            let page_bytes = &mut buffer[..(bytes.end - bytes.start) as usize];
            mirror.read(page_bytes, bytes.start)?;
            kept.push((page, crc32c(page_bytes)));
        }
    }
    Ok(Keepsake { header: new_header(&[], &[], pages, [0; 16]), mirror: mirror.file()?, pages: kept })
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The pair goes first, shielded; then the source, whose callbacks are not.
        let (near, cache, counters) = (std::mem::replace(&mut self.near, Near::Nowhere), self.cache.take(), &self.counters);
        let _ = shield(|| {
            if let Some(cache) = &cache {
                cache.tell(counters);
            }
            drop(near);
            Ok(())
        });
    }
}

impl Pair {
    /// The present pages, as they are to be kept. The caller has frozen the pair.
    fn keepsake(&self) -> io::Result<Keepsake<'_>> {
        let mut pages = Vec::new();
        self.index().each_allocated(|page, word| {
            if word.is_present() {
                pages.push((page, word.crc()));
            }
        });
        let header = Header { mirror: [0; 16], ..self.index().header().clone() };
        Ok(Keepsake { header, mirror: self.mirror().file()?, pages })
    }

    /// Locks and maps a range of which every page stands; `None` where one does not, or cannot be locked.
    fn pin(self: &Arc<Self>, range: &Range<u64>, trust: Trust) -> Option<Pin> {
        if self.index().is_in_memory() {
            return None; // a hole of a full tmpfs would raise SIGBUS, should a page go after all
        }
        let run = self.pages().touched(range);
        let lock = lock::pin(self.index().file(), run).ok().flatten()?;
        let stands = |page| {
            self.index().load(page).is_ok_and(|word| word.is_present() && self.stands(word, Trust { never: false, ..trust }))
        };
        if !(run.first..=run.last).all(stands) {
            return None;
        }
        let window = self.mirror().window(range.clone()).ok()?;
        Some(Pin::mapped(window, (range.end - range.start) as usize, lock, Arc::clone(self)))
    }

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
