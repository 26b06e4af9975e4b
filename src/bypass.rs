//! Reads that go around a pair, straight to the source: pages found stuck are remembered for a while, and those of this process who
//! pass through at the same time share one read.

use crate::sync::{Condvar, Mutex};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub(crate) struct Bypass {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stuck: Vec<(u64, Instant)>,
    under_way: Vec<Arc<Shared>>,
}

/// One read of the source that several wait for.
#[derive(Debug)]
pub(crate) struct Shared {
    range: Range<u64>,
    /// Set once; `None`: it failed, and each who waited tries for itself.
    bytes: OnceLock<Option<Vec<u8>>>,
}

impl Shared {
    /// The bytes of a range inside this read's.
    pub(crate) fn part(&self, range: &Range<u64>) -> Option<&[u8]> {
        let bytes = self.bytes.get()?.as_deref()?;
        let from = usize::try_from(range.start.checked_sub(self.range.start)?).ok()?;
        let len = usize::try_from(range.end - range.start).ok()?;
        bytes.get(from..from.checked_add(len)?)
    }
}

/// What a passer-through has to do.
#[derive(Debug)]
pub(crate) enum Passage<'a> {
    /// Read the source, and tell the others.
    Lead(Leader<'a>),
    /// Nothing: another has read it.
    Done(Arc<Shared>),
}

/// The one who reads. Dropped without [`Leader::finish`] (an error, a C++ exception), it tells the others to try themselves.
#[derive(Debug)]
pub(crate) struct Leader<'a> {
    bypass: &'a Bypass,
    shared: Arc<Shared>,
}

impl Bypass {
    pub(crate) fn is_stuck(&self, page: u64) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.stuck.retain(|&(_, until)| until > now);
        state.stuck.iter().any(|&(stuck, _)| stuck == page)
    }

    /// Nobody of this process waits for the page again for a while.
    pub(crate) fn remember_stuck(&self, page: u64, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.state.lock();
        state.stuck.retain(|&(stuck, _)| stuck != page);
        state.stuck.push((page, until));
    }

    /// Shares a read of `range` that covers `wanted`. Waits for another's no longer than `wait`.
    pub(crate) fn pass(&self, range: Range<u64>, wanted: &Range<u64>, wait: Duration) -> Passage<'_> {
        let deadline = Instant::now() + wait;
        let mut state = self.state.lock();
        let covers = |read: &&Arc<Shared>| read.range.start <= wanted.start && wanted.end <= read.range.end;
        if let Some(read) = state.under_way.iter().find(covers).cloned() {
            while read.bytes.get().is_none() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                state = self.ended.wait_for(state, left);
            }
            if read.part(wanted).is_some() {
                return Passage::Done(read);
            }
        }
        let shared = Arc::new(Shared { range, bytes: OnceLock::new() });
        state.under_way.push(Arc::clone(&shared));
        Passage::Lead(Leader { bypass: self, shared })
    }
}

impl Leader<'_> {
    pub(crate) fn range(&self) -> Range<u64> {
        self.shared.range.clone()
    }

    pub(crate) fn finish(self, bytes: Vec<u8>) -> Arc<Shared> {
        let _ = self.shared.bytes.set(Some(bytes));
        Arc::clone(&self.shared)
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        let _ = self.shared.bytes.set(None); // no effect after `finish`
        let mut state = self.bypass.state.lock();
        state.under_way.retain(|read| !Arc::ptr_eq(read, &self.shared));
        drop(state);
        self.bypass.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passers_share_one_read() {
        let bypass = Bypass::default();
        let Passage::Lead(leader) = bypass.pass(0..10, &(0..10), Duration::ZERO) else { panic!("first leads") };
        std::thread::scope(|scope| {
            let follower = scope.spawn(|| match bypass.pass(2..4, &(2..4), Duration::from_secs(20)) {
                Passage::Done(read) => read.part(&(2..4)).map(<[u8]>::to_vec),
                Passage::Lead(_) => None,
            });
            while Arc::strong_count(&leader.shared) < 3 {
                std::thread::yield_now();
            }
            leader.finish((0..10).collect());
            assert_eq!(follower.join().ok().flatten(), Some(vec![2, 3]));
        });
    }

    #[test]
    fn a_failed_leader_is_followed_by_another() {
        let bypass = Bypass::default();
        drop(bypass.pass(0..10, &(0..10), Duration::ZERO));
        assert!(matches!(bypass.pass(0..10, &(0..10), Duration::from_secs(20)), Passage::Lead(_)));
    }

    #[test]
    fn stuck_pages_are_forgotten() {
        let bypass = Bypass::default();
        bypass.remember_stuck(3, Duration::from_secs(60));
        bypass.remember_stuck(4, Duration::ZERO);
        assert!(bypass.is_stuck(3) && !bypass.is_stuck(4) && !bypass.is_stuck(5));
    }
}
