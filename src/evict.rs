//! What goes when a directory is full: outdated versions first, then files that nobody has open, the longest unused first, then the
//! least useful pages of open files. One evictor at a time over all processes; it never waits for a page and never loops.

use crate::budget::{Budget, MakeRoom};
use crate::clock::TURNS;
use crate::directory::{Directory, Listed};
use crate::index::Index;
use crate::log;
use crate::pair::{Dropped, Pair};
use crate::range::Run;
use crate::stats::{COUNTS, Count};
use crate::sys::file;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// How long a read that needs room waits for another evictor before it goes on without keeping.
const EVICTOR_WAIT: Duration = Duration::from_millis(50);
/// How long an evictor waits for a pair that is being opened or closed.
const PAIR_WAIT: Duration = Duration::from_millis(20);
/// A closed file that holds less than this part of the limit goes as a whole, which costs no sync.
const SMALL: u64 = 16;

impl MakeRoom for Directory {
    fn make_room(&self, bytes: u64) {
        if let Some(shared) = self.shared() {
            let budget = &shared.budget;
            let Ok(Some(_alone)) = budget.lock_evictor(EVICTOR_WAIT) else { return };
            if budget.lacking(bytes) > 0 {
                self.free(budget, budget.lacking(bytes.saturating_add(budget.portion())));
            }
        }
    }
}

/// What goes before what. Lower goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Outdated,
    Closed,
    Open,
}

struct Candidate {
    rank: Rank,
    used_at: u64,
    held: u64,
    listed: Listed,
}

impl Directory {
    /// Gives up pages until the directory holds no more than `keep` bytes, as far as that can be.
    pub(crate) fn trim(&self, keep: u64, wait: Duration) -> io::Result<()> {
        let Some(shared) = self.shared() else { return Ok(()) };
        let Some(_alone) = shared.budget.lock_evictor(wait)? else {
            return Err(io::Error::other("another process does not come to an end with evicting"));
        };
        shared.budget.reclaim();
        let used = shared.budget.used();
        if used > keep {
            self.free(&shared.budget, used - keep);
        }
        Ok(())
    }

    /// Drops what is kept of a key, every version: closed pairs with their files, pages of open ones at once and their files when the
    /// last process closes them.
    pub(crate) fn remove(&self, key: &[u8]) -> io::Result<()> {
        for listed in self.list_key(key) {
            let again =
                Listed { name: listed.name.clone(), header: listed.header.clone(), index: file::reopen(listed.index.as_fd())? };
            if self.remove_closed(listed)?.is_some() {
                continue;
            }
            if let Some(pair) = self.open_listed(again, PAIR_WAIT) {
                pair.index().doom();
                if pair.pages().count() > 0 {
                    pair.discard(Run { first: 0, last: pair.pages().count() - 1 })?;
                }
            }
        }
        Ok(())
    }

    /// Frees bytes, by rank.
    fn free(&self, budget: &Budget, bytes: u64) {
        let mut gone = Dropped::default();
        let mut open: Vec<Arc<Pair>> = Vec::new();
        for candidate in self.survey() {
            if gone.bytes >= bytes {
                break;
            }
            let want = bytes - gone.bytes;
            let whole = candidate.held <= want.max(budget.limit() / SMALL);
            let result = match candidate.rank {
                Rank::Outdated | Rank::Closed if whole => self.remove_closed(candidate.listed).map(Option::unwrap_or_default),
                Rank::Outdated | Rank::Closed => self.sweep(candidate.listed, want, TURNS),
                Rank::Open => {
                    open.extend(self.open_listed(candidate.listed, PAIR_WAIT));
                    Ok(Dropped::default())
                }
            };
            gone += result.unwrap_or_else(|error| self.say(&error));
        }
        // One turn of every hand before a second of any, so that what is less useful goes first wherever it is.
        for _ in 0..TURNS {
            for pair in &open {
                if gone.bytes < bytes {
                    gone += pair.sweep(bytes - gone.bytes, 1).unwrap_or_else(|error| self.say(&error));
                }
            }
        }
        let mut news = [0; COUNTS];
        news[Count::PagesEvicted as usize] = gone.pages;
        if let Some(shared) = self.shared() {
            shared.control.count(&news);
        }
    }

    fn sweep(&self, listed: Listed, bytes: u64, turns: u32) -> io::Result<Dropped> {
        match self.open_listed(listed, PAIR_WAIT) {
            Some(pair) => pair.sweep(bytes, turns),
            None => Ok(Dropped::default()),
        }
    }

    fn say(&self, error: &io::Error) -> Dropped {
        log::warn(|| format!("evicting: {error}"));
        Dropped::default()
    }

    /// All pairs, in the order in which they go.
    fn survey(&self) -> Vec<Candidate> {
        let pairs = self.list();
        let mut newest: BTreeMap<&[u8], u64> = BTreeMap::new();
        for pair in &pairs {
            let made = newest.entry(&pair.header.key).or_default();
            *made = pair.header.made.max(*made);
        }
        let outdated: Vec<bool> =
            pairs.iter().map(|pair| newest.get(&*pair.header.key).is_some_and(|&made| pair.header.made < made)).collect();
        let mut candidates: Vec<Candidate> = pairs
            .into_iter()
            .zip(outdated)
            .filter_map(|(listed, outdated)| {
                let index = file::reopen(listed.index.as_fd()).and_then(|index| Index::map(index, &listed.header, false)).ok()?;
                let rank = match (listed.is_open(), outdated) {
                    (true, _) => Rank::Open,
                    (false, true) => Rank::Outdated,
                    (false, false) => Rank::Closed,
                };
                // Of the open ones, outdated versions come first, too.
                let used_at = if outdated { 0 } else { index.used_at() };
                Some(Candidate { rank, used_at, held: index.held(), listed })
            })
            .collect();
        candidates.sort_by_key(|candidate| (candidate.rank, candidate.used_at));
        candidates
    }
}
