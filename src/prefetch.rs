//! Filling a near copy without reading it: waited for, with progress, or left to workers.

use crate::error::{Error, Result, shield};
use crate::fetch::as_much_room;
use crate::file::File;
use crate::fill::Keep;
use std::ops::Range;

impl File {
    /// Reads what is absent of a range, without giving it to anyone, several requests at once where the source is slow. `progress` is told
    /// the bytes done and to do, and ends it with `false`. Stops early where a limit keeps things out: then it fetches no more than it
    /// can keep.
    pub fn prefetch(&self, range: Range<u64>, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<()> {
        let range = self.clip(range);
        let mut scratch = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (end, cached) = self.extent(at)?;
            let end = end.min(range.end);
            let (reached, goes_on) = if cached { (end, true) } else { self.fill_head(at..end, &mut scratch)? };
            if !progress(reached - range.start, range.end - range.start) {
                return Err(Error::Cancelled);
            }
            if !goes_on {
                return Ok(());
            }
            at = reached;
        }
        Ok(())
    }

    /// The same by workers, as far as there is room for it within the limits, and without waiting: what is not done when the file is
    /// closed is left. An error where no worker may call the source.
    pub fn prefetch_in_background(&self, range: Range<u64>) -> Result<()> {
        let range = self.clip(range);
        if range.is_empty() {
            return Ok(());
        }
        let started = match self.fetcher() {
            Some(fetcher) if !self.is_frozen() => shield(|| Ok(fetcher.fetch_in_background(fetcher.pair.pages().touched(&range))))?,
            _ => false,
        };
        if started {
            return Ok(());
        }
        Err(Error::Unsupported(
            "nobody to prefetch without waiting: the source needs an open or max_connections of 2 or more, and the file neither NEARFILE_READAHEAD_OFF, NEARFILE_EXACT nor to be frozen, and pages no larger than max_fetch_bytes".into(),
        ))
    }

    /// Fetches what a range begins with. Returns how far it is there then, and whether to go on.
    fn fill_head(&self, range: Range<u64>, scratch: &mut Vec<u8>) -> Result<(u64, bool)> {
        if let Some(fetcher) = self.fetcher().filter(|fetcher| fetcher.pays_together() && !self.is_frozen()) {
            let most = fetcher.beside() as usize + 1;
            let runs = shield(|| Ok(fetcher.plan(fetcher.pair.pages().touched(&range), most)))?;
            if runs.len() > 1 {
                fetcher.fetch_together(&runs, Keep::Nothing);
                let reached = self.kept_to(&range)?;
                if reached > range.start {
                    return Ok((reached, true));
                }
            }
        }
        let part = self.request(&range);
        let room = as_much_room(scratch, part.end - part.start);
        if room == 0 {
            return Err(Error::NoMemory("a prefetch".into()));
        }
        let part = part.start..part.start + room;
        self.read_at(scratch, part.start)?;
        let reached = self.kept_to(&part)?;
        Ok((reached, reached == part.end))
    }

    /// Whole pages from the start of a range, as many as one request takes.
    fn request(&self, range: &Range<u64>) -> Range<u64> {
        let furthest = range.start + self.max_fetch();
        let whole = furthest / self.page_size() * self.page_size();
        range.start..if whole > range.start { whole } else { furthest }.min(range.end)
    }

    fn kept_to(&self, range: &Range<u64>) -> Result<u64> {
        let (end, cached) = self.extent(range.start)?;
        Ok(if cached { end.min(range.end) } else { range.start })
    }

    fn clip(&self, range: Range<u64>) -> Range<u64> {
        range.start.min(self.size())..range.end.min(self.size())
    }
}
