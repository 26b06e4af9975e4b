//! An opened file, as all its handles share it: where its near copy is, its source, and the way of a read.

use crate::ahead::Ahead;
use crate::cache::Shared as CacheShared;
use crate::error::{Error, Result, shield};
use crate::exact::{Exact, ExactRead};
use crate::fetch::Step;
use crate::fetcher::{Fetcher, deliver};
use crate::fill::{Keep, Piece};
use crate::making::Wanted;
use crate::options::{Limits, Options};
use crate::pair::{Pair, Trust};
use crate::paths::pair_at;
use crate::range::{Intervals, Pages, Run};
use crate::source::Pool;
use crate::stats::{Count, Counters, FileCounters};
use std::ops::Range;
use std::sync::Arc;

/// What all handles of a file share.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) near: Near,
    /// None: frozen from the start, and never asked.
    pub(crate) source: Option<Arc<Pool>>,
    /// Who fetches; None without a pair or a source.
    pub(crate) fetcher: Option<Arc<Fetcher>>,
    pub(crate) pages: Pages,
    pub(crate) limits: Limits,
    pub(crate) trust: Trust,
    pub(crate) counters: Arc<FileCounters>,
    pub(crate) cache: Option<Arc<CacheShared>>,
}

/// Where the near copy is.
#[derive(Debug)]
pub(crate) enum Near {
    Paged(Arc<Pair>),
    Exact(Box<Exact>),
    /// Nothing can be kept.
    Nowhere,
}

impl Near {
    pub(crate) fn open(cache: Option<&CacheShared>, options: &Options, wanted: Wanted<'_>, limits: Limits) -> Result<Near> {
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

    pub(crate) fn pair(&self) -> Option<&Arc<Pair>> {
        match self {
            Near::Paged(pair) => Some(pair),
            _ => None,
        }
    }
}

impl Opened {
    /// Opens the near copy, if there can be one.
    pub(crate) fn open(
        cache: Option<Arc<CacheShared>>,
        source: Option<Arc<Pool>>,
        options: &Options,
        wanted: Wanted<'_>,
        limits: Limits,
        counters: Arc<FileCounters>,
    ) -> Result<Opened> {
        let near = shield(|| Near::open(cache.as_deref(), options, wanted, limits))?;
        if let Some(cache) = &cache {
            cache.enroll(&counters);
        }
        let pages = near.pair().map_or(wanted.pages, |pair| pair.pages());
        let trust = Trust { never: options.verify_always, clean: options.trust_clean, map: options.map };
        if let (Some(pair), true) = (near.pair(), options.map) {
            shield(|| {
                pair.map_mirror();
                Ok(())
            })?;
        }
        let workers = if options.readahead_off { 0 } else { limits.workers };
        let fetcher = near.pair().zip(source.as_ref()).map(|(pair, source)| {
            Fetcher::new(Arc::clone(pair), Arc::clone(source), limits, trust, Arc::clone(&counters), workers)
        });
        Ok(Opened { near, source, fetcher, pages, limits, trust, counters, cache })
    }

    /// Fills `out`, which lies within the file. Most hits go through [`Pair::hit`] alone.
    #[inline(always)]
    pub(crate) fn read(&self, out: &mut [u8], offset: u64, frozen: bool, ahead: &Ahead) -> Result<()> {
        if let Near::Paged(pair) = &self.near {
            let counters = self.counters.here();
            if pair.hit(offset, out, self.trust) {
                counters.hit(out.len() as u64);
                self.note_hit(ahead, offset + out.len() as u64, frozen);
                return Ok(());
            }
        }
        self.read_on(out, offset, frozen, ahead)
    }

    #[inline(always)]
    fn note_hit(&self, ahead: &Ahead, end: u64, frozen: bool) {
        match &self.fetcher {
            Some(fetcher) if !frozen => ahead.hit(fetcher, end),
            _ => {}
        }
    }

    #[inline(never)]
    fn read_on(&self, out: &mut [u8], offset: u64, frozen: bool, ahead: &Ahead) -> Result<()> {
        let counters = self.counters.here();
        let len = out.len() as u64;
        let mut done = 0;
        if let Near::Paged(pair) = &self.near {
            done = shield(|| Ok(pair.copy_any(offset, out, self.trust, counters)))?; // `hit` was tried
            if done == out.len() {
                counters.hit(len);
                self.note_hit(ahead, offset + len, frozen);
                return Ok(());
            }
        }
        let source = match &self.source {
            Some(source) if !frozen || matches!(self.near, Near::Exact(_)) => source,
            _ => return Err(frozen_miss(offset + done as u64)),
        };
        if let Near::Exact(exact) = &self.near {
            return self.read_exact(exact, source, out, offset, counters, frozen);
        }
        source.check_not_inside()?;
        self.count_miss(len, || match &self.fetcher {
            Some(fetcher) => read_missing(fetcher, out, offset, done, ahead),
            None => {
                counters.one(Count::PassedThrough);
                source.read(offset, out, self.pages.size, counters, &mut || {})
            }
        })
    }

    /// The same for a range of a batch, for which these pieces were fetched.
    pub(crate) fn read_given(&self, out: &mut [u8], offset: u64, frozen: bool, pieces: &[Piece], ahead: &Ahead) -> Result<()> {
        let len = out.len() as u64;
        let mut left = Intervals::of(offset..offset + len);
        deliver(pieces, offset, out, &mut left);
        match &self.fetcher {
            Some(fetcher) if left.census() != (1, len) => self.count_miss(len, || fetcher.read(out, offset, left)),
            _ => self.read(out, offset, frozen, ahead),
        }
    }

    fn count_miss(&self, len: u64, read: impl FnOnce() -> Result<()>) -> Result<()> {
        let counters = self.counters.here();
        counters.one(Count::Misses);
        counters.add(Count::BytesAsked, len);
        let read = read();
        if read.is_ok() {
            counters.add(Count::BytesServed, len);
        }
        self.tell();
        read
    }

    /// Fetches what the ranges of a batch miss, many requests at once; returns what came, in order. Nothing where one after the other is
    /// as good.
    pub(crate) fn gather(&self, ranges: &[Range<u64>]) -> Result<Vec<Piece>> {
        let Some(fetcher) = self.fetcher.as_ref().filter(|fetcher| fetcher.pays_together()) else { return Ok(Vec::new()) };
        let runs = shield(|| {
            let missing = ranges.iter().flat_map(|range| fetcher.plan(self.pages.touched(range), usize::MAX));
            Ok(join(missing.collect(), self.limits.max_fetch / self.pages.page_size))
        })?;
        if runs.len() < 2 { Ok(Vec::new()) } else { Ok(fetcher.fetch_together(&runs, Keep::All)) }
    }

    /// Tells the directory what was counted.
    pub(crate) fn tell(&self) {
        if let Some(cache) = &self.cache {
            cache.tell(&self.counters);
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

/// Runs in order, each page once, neighbours joined as far as a request goes.
fn join(mut runs: Vec<Run>, a_request: u64) -> Vec<Run> {
    runs.sort_by_key(|run| run.first);
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        let first = joined.last().map_or(run.first, |last| run.first.max(last.last + 1));
        match joined.last_mut() {
            _ if run.last < first => {}
            Some(last) if first == last.last + 1 && run.last - last.first < a_request => last.last = run.last,
            _ => joined.push(Run { first, last: run.last }),
        }
    }
    joined
}

/// Requests of one read that are planned at once.
const PLANNED: usize = 64;

/// What was not present when it was looked for: fetched ahead by now, by workers and this thread together, or by this thread.
fn read_missing(fetcher: &Arc<Fetcher>, out: &mut [u8], offset: u64, done: usize, ahead: &Ahead) -> Result<()> {
    let missing = offset + done as u64..offset + out.len() as u64;
    ahead.missed(fetcher, &missing);
    let taken = ahead.take(fetcher, missing.start, &mut out[done..]);
    let mut left = Intervals::of(missing.start + taken as u64..missing.end);
    while let Some(span) = left.next_from(0) {
        let run = fetcher.pair.pages().touched(&span);
        if run.count() == 1 || !fetcher.pays_together() {
            break;
        }
        let runs = shield(|| Ok(fetcher.plan(run, PLANNED)))?;
        if runs.len() < 2 {
            break;
        }
        let pieces = fetcher.fetch_together(&runs, Keep::All);
        deliver(&pieces, offset, out, &mut left);
        if left.next_from(0) == Some(span) {
            break; // it came to nothing: this thread finds out why
        }
    }
    fetcher.read(out, offset, left)
}

pub(crate) fn frozen_miss(offset: u64) -> Error {
    Error::Frozen(format!("byte {offset} is not in the near copy, and the file is frozen"))
}

impl Drop for Opened {
    fn drop(&mut self) {
        // Workers end first; then the pair goes, shielded; then the source, whose callbacks are not.
        let fetcher = self.fetcher.take();
        if let Some(fetcher) = &fetcher {
            fetcher.leave();
        }
        let near = std::mem::replace(&mut self.near, Near::Nowhere);
        let _ = shield(|| {
            self.tell();
            drop((fetcher, near));
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_runs_have_each_page_once() {
        let run = |first, last| Run { first, last };
        let joined = join(vec![run(9, 9), run(0, 1), run(1, 2), run(3, 5), run(4, 4), run(20, 30), run(22, 40)], 8);
        assert_eq!(joined, [run(0, 5), run(9, 9), run(20, 30), run(31, 40)]);
        assert_eq!(join(vec![run(0, 3), run(4, 7), run(8, 8)], 8), [run(0, 7), run(8, 8)]);
    }
}
