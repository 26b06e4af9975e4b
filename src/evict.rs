//! What goes when a directory is full: outdated versions first, then files that nobody has open, the longest unused first, then the
//! least useful pages of open files. One evictor at a time over all processes; it never waits for a page and never loops.

use crate::budget::{Budget, MakeRoom};
use crate::clock::TURNS;
use crate::directory::Directory;
use crate::dropping::Dropped;
use crate::index::read_use;
use crate::log;
use crate::pair::Pair;
use crate::range::Run;
use crate::stats::{COUNTS, Count};
use crate::sync::Mutex;
use crate::sys::fork::PerProcess;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a read that needs room waits for another evictor before it goes on without keeping.
const EVICTOR_WAIT: Duration = Duration::from_millis(50);
/// How long an evictor waits for a pair that is being opened or closed.
const PAIR_WAIT: Duration = Duration::from_millis(20);
/// A closed file that holds less than this part of the limit goes as a whole, which costs no sync.
const SMALL: u64 = 16;
/// Open files of which pages are taken in one go.
const MOST_OPEN: usize = 64;

/// Who gives up pages of a directory.
#[derive(Debug)]
pub(crate) struct Evictor {
    directory: Arc<Directory>,
    plan: PerProcess<Mutex<Plan>>,
}

impl MakeRoom for Evictor {
    fn make_room(&self, bytes: u64) {
        if let Some(shared) = self.directory.shared() {
            let budget = &shared.budget;
            let Ok(Some(_alone)) = budget.lock_evictor(EVICTOR_WAIT) else { return };
            if budget.lacking(bytes) > 0 {
                self.free(budget, budget.lacking(bytes.saturating_add(budget.portion())));
            }
        }
    }

    fn give_up(&self, bytes: u64) -> u64 {
        let Some(shared) = self.directory.shared() else { return 0 };
        let Ok(Some(_alone)) = shared.budget.lock_evictor(EVICTOR_WAIT) else { return 0 };
        self.free(&shared.budget, bytes.max(shared.budget.portion())).bytes
    }
}

/// What goes before what. Lower goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Outdated,
    Closed,
    Open,
}

/// A pair that may go, by name: a directory has more of them than a process has descriptors.
#[derive(Debug)]
struct Candidate {
    rank: Rank,
    used_at: u64,
    held: u64,
    name: CString,
}

/// What a look over the whole directory found. It serves for a while: with many files, looking costs more than evicting.
#[derive(Debug, Default)]
struct Plan {
    /// Until then it serves. Each candidate is looked at again before it goes.
    serves_until: Option<Instant>,
    candidates: VecDeque<Candidate>,
}

/// A plan serves so many times as long as it took to make: looking then costs no more than this part of the time.
const PLAN_SERVES: u32 = 20;

impl Evictor {
    pub(crate) fn new(directory: Arc<Directory>) -> Evictor {
        Evictor { directory, plan: PerProcess::new() }
    }

    /// Gives up pages until the directory holds no more than `keep` bytes, as far as that can be.
    pub(crate) fn trim(&self, keep: u64, wait: Duration) -> io::Result<()> {
        let Some(shared) = self.directory.shared() else { return Ok(()) };
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
        for listed in self.directory.list_key(key) {
            let name = listed.name.clone();
            if self.directory.remove_closed(listed)?.is_some() {
                continue;
            }
            if let Some(pair) = self.directory.listed(&name).and_then(|listed| self.directory.open_listed(listed, PAIR_WAIT)) {
                pair.index().doom(); // after it was opened here, which spares it
                if pair.pages().count() > 0 {
                    pair.discard(Run { first: 0, last: pair.pages().count() - 1 })?;
                }
            }
        }
        Ok(())
    }

    /// Frees bytes, by rank.
    fn free(&self, budget: &Budget, bytes: u64) -> Dropped {
        let mut plan = self.plan.get().lock();
        let old = plan.serves_until.is_none_or(|until| Instant::now() > until);
        if old {
            *plan = self.survey();
        }
        let mut gone = self.follow(&mut plan, budget, bytes);
        if gone.bytes < bytes && !old {
            *plan = self.survey();
            gone += self.follow(&mut plan, budget, bytes - gone.bytes);
        }
        let mut news = [0; COUNTS];
        news[Count::PagesEvicted as usize] = gone.pages;
        if let Some(shared) = self.directory.shared() {
            shared.control.count(&news);
        }
        gone
    }

    /// Gives up what a plan says, closed pairs in their order and then pages of open ones.
    fn follow(&self, plan: &mut Plan, budget: &Budget, bytes: u64) -> Dropped {
        let mut gone = Dropped::default();
        while gone.bytes < bytes && plan.candidates.front().is_some_and(|first| first.rank != Rank::Open) {
            let Some(mut candidate) = plan.candidates.pop_front() else { break };
            let want = bytes - gone.bytes;
            let given_up = self.give_up_closed(&candidate, budget, want).unwrap_or_else(|error| self.say(&error));
            gone += given_up;
            // One of which only a part was wanted is the next to go, still.
            candidate.held = candidate.held.saturating_sub(given_up.bytes);
            if given_up.bytes > 0 && candidate.held > 0 {
                plan.candidates.push_front(candidate);
            }
        }
        if gone.bytes >= bytes {
            return gone;
        }
        let listed = plan.candidates.iter().filter_map(|candidate| self.directory.listed(&candidate.name));
        let open: Vec<Arc<Pair>> =
            listed.filter_map(|listed| self.directory.open_listed(listed, PAIR_WAIT)).take(MOST_OPEN).collect();
        // One turn of every hand before a second of any, so that what is less useful goes first wherever it is.
        for _ in 0..TURNS {
            for pair in &open {
                if gone.bytes < bytes {
                    gone += pair.sweep(bytes - gone.bytes, 1).unwrap_or_else(|error| self.say(&error));
                }
            }
        }
        gone
    }

    /// Gives up a pair that nobody has open: all of it, or as much as is wanted of a large one.
    fn give_up_closed(&self, candidate: &Candidate, budget: &Budget, want: u64) -> io::Result<Dropped> {
        let Some(listed) = self.directory.listed(&candidate.name) else { return Ok(Dropped::default()) };
        if candidate.held <= want.max(budget.limit() / SMALL) {
            return self.directory.remove_closed(listed).map(Option::unwrap_or_default);
        }
        let Some(pair) = self.directory.open_listed(listed, PAIR_WAIT) else { return Ok(Dropped::default()) };
        if pair.mirror().can_punch() {
            return pair.sweep(want, TURNS);
        }
        drop(pair);
        log::warn(|| "this file system cannot give back parts of a file: whole files go".into());
        let listed = self.directory.listed(&candidate.name);
        listed.map_or(Ok(Dropped::default()), |listed| self.directory.remove_closed(listed).map(Option::unwrap_or_default))
    }

    fn say(&self, error: &io::Error) -> Dropped {
        log::warn(|| format!("evicting: {error}"));
        Dropped::default()
    }

    /// All pairs, in the order in which they go.
    fn survey(&self) -> Plan {
        let start = Instant::now();
        let mut newest: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let mut found: Vec<(Vec<u8>, u64, Candidate)> = Vec::new();
        for listed in self.directory.list() {
            let Ok((held, used_at)) = read_use(listed.index.as_fd()) else { continue };
            let rank = if listed.is_open() { Rank::Open } else { Rank::Closed };
            let latest = newest.entry(listed.header.key.clone()).or_default();
            *latest = (*latest).max(listed.header.made);
            found.push((listed.header.key, listed.header.made, Candidate { rank, used_at, held, name: listed.name }));
        }
        let candidate = |(key, made, mut candidate): (Vec<u8>, u64, Candidate)| {
            if newest.get(&key).is_some_and(|&latest| made < latest) {
                // Of the open ones, outdated versions come first, too.
                candidate.used_at = 0;
                candidate.rank = if candidate.rank == Rank::Closed { Rank::Outdated } else { Rank::Open };
            }
            candidate
        };
        let mut candidates: Vec<Candidate> = found.into_iter().map(candidate).collect();
        candidates.sort_by_key(|candidate| (candidate.rank, candidate.used_at));
        let serves_until = Instant::now() + start.elapsed() * PLAN_SERVES;
        Plan { serves_until: Some(serves_until), candidates: candidates.into() }
    }
}
