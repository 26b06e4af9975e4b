//! What happened, in numbers: of a file in this process, and of a cache over all of them. Counting takes no lock and no syscall; the
//! counters that a hit touches are spread over cache lines by thread.

use crate::sync::{AtomicU32, AtomicU64, Ordering, STRIPES, stripe_of_thread};
use crate::sys::fork::PerProcess;

/// Numbers of a file (of this process) or of a cache (of all processes since the directory was made).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Reads of which every page was present.
    pub hits: u64,
    /// Reads of which at least one page was not.
    pub misses: u64,
    /// Reads that waited for another's fetch.
    pub waits: u64,
    /// Bytes asked for, within the file.
    pub bytes_asked: u64,
    /// Bytes given.
    pub bytes_served: u64,
    /// Calls of the source's `read_at` or `read`.
    pub source_reads: u64,
    /// Bytes that those gave.
    pub source_bytes: u64,
    /// Reads, and opens of a connection, that failed.
    pub source_errors: u64,
    /// Pages stored.
    pub pages_fetched: u64,
    /// Pages whose checksum was compared with the mirror and matched.
    pub pages_verified: u64,
    /// Pages whose checksum did not match, and that were fetched again.
    pub checksum_failures: u64,
    /// Reads that went to the source, wholly or in part, without being kept: a local fault or a stuck holder.
    pub passed_through: u64,
    /// Pages given up for others.
    pub pages_evicted: u64,
    /// Pages present now.
    pub cached_pages: u64,
    /// Bytes of those.
    pub cached_bytes: u64,
    /// The limit in force, bytes; 0: none.
    pub size_limit: u64,
}

/// What is counted, in the order of `control`'s counters on disk. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    Hits = 0,
    Misses = 1,
    Waits = 2,
    BytesAsked = 3,
    BytesServed = 4,
    SourceReads = 5,
    SourceBytes = 6,
    SourceErrors = 7,
    PagesFetched = 8,
    PagesVerified = 9,
    ChecksumFailures = 10,
    PassedThrough = 11,
    PagesEvicted = 12,
}

pub(crate) const COUNTS: usize = 13;

#[repr(align(128))]
#[derive(Debug, Default)]
struct Stripe([AtomicU64; COUNTS + 1]);

/// Counted beside the others: the bytes of hits, which are asked for and served at once.
const HIT_BYTES: usize = COUNTS;

/// Counters of one file in one process. All zeros at first.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    stripes: [Stripe; STRIPES],
    told: [AtomicU64; COUNTS],
    enrolled: AtomicU32,
}

impl Counters {
    pub(crate) fn add(&self, count: Count, more: u64) {
        self.stripes[stripe_of_thread()].0[count as usize].fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn one(&self, count: Count) {
        self.add(count, 1);
    }

    #[inline(always)]
    pub(crate) fn hit(&self, bytes: u64) {
        let mine = &self.stripes[stripe_of_thread()].0;
        mine[Count::Hits as usize].fetch_add(1, Ordering::Relaxed);
        mine[HIT_BYTES].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn totals(&self) -> [u64; COUNTS] {
        let mut totals = [0_u64; COUNTS];
        for stripe in &self.stripes {
            for (total, count) in totals.iter_mut().zip(&stripe.0) {
                *total = total.wrapping_add(count.load(Ordering::Relaxed));
            }
            let hits = stripe.0[HIT_BYTES].load(Ordering::Relaxed);
            for count in [Count::BytesAsked, Count::BytesServed] {
                totals[count as usize] = totals[count as usize].wrapping_add(hits);
            }
        }
        totals
    }

    /// True once: who asks sees to it that this process knows of them when it tells what it counted.
    pub(crate) fn enroll(&self) -> bool {
        self.enrolled.swap(1, Ordering::Relaxed) == 0
    }

    /// What was counted since the last call, over all callers: their sum is right in whatever order they come.
    pub(crate) fn untold(&self) -> [u64; COUNTS] {
        let mut news = self.totals();
        for (new, told) in news.iter_mut().zip(&self.told) {
            *new = new.wrapping_sub(told.swap(*new, Ordering::Relaxed));
        }
        news
    }
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

    #[inline(always)]
    pub(crate) fn here(&self) -> &Counters {
        self.counters.get()
    }
}

impl Stats {
    pub(crate) fn of(counts: [u64; COUNTS]) -> Stats {
        let at = |count: Count| counts[count as usize];
        Stats {
            hits: at(Count::Hits),
            misses: at(Count::Misses),
            waits: at(Count::Waits),
            bytes_asked: at(Count::BytesAsked),
            bytes_served: at(Count::BytesServed),
            source_reads: at(Count::SourceReads),
            source_bytes: at(Count::SourceBytes),
            source_errors: at(Count::SourceErrors),
            pages_fetched: at(Count::PagesFetched),
            pages_verified: at(Count::PagesVerified),
            checksum_failures: at(Count::ChecksumFailures),
            passed_through: at(Count::PassedThrough),
            pages_evicted: at(Count::PagesEvicted),
            ..Stats::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_adds_up() {
        let counters = Counters::default();
        let mut sum = 0;
        for n in 0..10 {
            counters.add(Count::BytesAsked, n);
            sum += counters.untold()[Count::BytesAsked as usize];
        }
        assert_eq!(sum, 45);
        assert_eq!(counters.totals()[Count::BytesAsked as usize], 45);
        assert_eq!(counters.untold(), [0; COUNTS]);
    }
}
