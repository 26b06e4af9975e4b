//! Which pages of a pair go: a clock over its pages with two bits each.
//!
//! A hit raises a page's count, up to 3; the hand lowers it as it passes, and takes present pages whose count is 0. The count of an
//! *absent* page counts its misses, and when the limit is near, a page is kept only from its third miss within a turn of the hand on
//! (and one in a hundred at once, so that nothing stays out for ever). So a pass over everything in a new order each time does not wash
//! out what is there, and a set that gets hot comes in within a few passes. `cargo bench --bench eviction` measures it beside LRU,
//! FIFO, SIEVE and Belady's optimum.

use crate::dropping::{Dropped, Dropper};
use crate::format::{State, cost};
use crate::index::now;
use crate::pair::Pair;
use crate::range::Run;
use crate::sync::{AtomicU32, Ordering};
use std::io;
use std::time::Duration;

/// Misses of a page until it is kept although the limit is near.
const EARNED: u32 = 3;
/// One page in so many is kept without having earned it.
const LUCKY: u32 = 100;
/// Turns of the hand that bring every count to 0 and take its page.
pub(crate) const TURNS: u32 = 4;
/// A sweep in vain is not repeated for so many times as long as it took.
const VAIN: u64 = 20;
/// Pages that are dropped with one lock and punched together, at most.
const TOGETHER: u64 = 512;

impl Pair {
    /// Whether a page that was just missed is worth keeping although the limit is near.
    pub(crate) fn earns_its_place(&self, page: u64) -> bool {
        static TURN: AtomicU32 = AtomicU32::new(0);
        self.index().warm(page) >= EARNED || TURN.fetch_add(1, Ordering::Relaxed) % LUCKY == LUCKY - 1
    }

    /// Moves the hand until so many bytes are free, at most `turns` times around. Frozen, pinned and fetched pages stay. Where all
    /// turns were in vain, nobody of this process tries again for a while, so that reads of a full file do not spend their time on it.
    pub(crate) fn sweep(&self, bytes: u64, turns: u32) -> io::Result<Dropped> {
        if turns < TURNS {
            return self.sweep_now(bytes, turns);
        }
        let start = now();
        if start < self.vain_until().load(Ordering::Relaxed) {
            return Ok(Dropped::default());
        }
        let gone = self.sweep_now(bytes, turns)?;
        if gone.bytes < bytes {
            let took = now().saturating_sub(start);
            self.vain_until().store(start.saturating_add(took.saturating_mul(VAIN)), Ordering::Relaxed);
        }
        Ok(gone)
    }

    fn sweep_now(&self, bytes: u64, turns: u32) -> io::Result<Dropped> {
        let mut gone = Dropped::default();
        let Some(dropper) = self.dropper(Duration::ZERO)? else { return Ok(gone) };
        let count = self.pages().count();
        let mut turns_left = turns;
        let mut page = if self.index().hand() < count { self.index().hand() } else { 0 };
        let start = page;
        while gone.bytes < bytes && count > 0 {
            let Some(stretch) = self.index().next_allocated(page) else {
                // Nothing more up to the end: on from the start, once a turn.
                if turns_left == 0 {
                    break;
                }
                turns_left -= 1;
                page = 0;
                continue;
            };
            page = self.sweep_stretch(&dropper, stretch, bytes, &mut gone)?;
            if turns_left == 0 && page >= start {
                break;
            }
        }
        self.index().set_hand(if page < count { page } else { 0 });
        Ok(gone)
    }

    /// Passes over a stretch; returns where the hand stands then.
    fn sweep_stretch(&self, dropper: &Dropper<'_>, stretch: Run, bytes: u64, gone: &mut Dropped) -> io::Result<u64> {
        let mut victims: Option<Run> = None;
        let mut promised = 0;
        for page in stretch.first..=stretch.last {
            let uses = self.index().uses(page);
            let there = self.index().load(page)?.state() != State::Absent;
            if uses == 0 && there {
                promised += cost(&self.pages().bytes(page));
                victims = Some(Run { first: victims.map_or(page, |victims| victims.first), last: page });
            } else if uses > 0 {
                self.index().set_uses(page, uses - 1);
            }
            let ends = victims.is_some_and(|victims| victims.last != page || victims.count() >= TOGETHER);
            let enough = gone.bytes + promised >= bytes;
            if ends || enough {
                *gone += drop_victims(dropper, victims.take())?;
                promised = 0;
                if gone.bytes >= bytes {
                    return Ok(page + 1);
                }
            }
        }
        *gone += drop_victims(dropper, victims)?;
        Ok(stretch.last + 1)
    }
}

fn drop_victims(dropper: &Dropper<'_>, victims: Option<Run>) -> io::Result<Dropped> {
    let Some(victims) = victims else { return Ok(Dropped::default()) };
    let mut gone = Dropped::default();
    let mut from = victims.first;
    while from <= victims.last {
        let (dropped, until) = dropper.drop_head(Run { first: from, last: victims.last })?;
        gone += dropped;
        from = until + 1;
    }
    Ok(gone)
}
