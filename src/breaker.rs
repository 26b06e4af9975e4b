//! When a local disk fails again and again, trying it costs more than the source: after some faults in a row a breaker lets nobody try
//! for a while, then one at a time, until one succeeds.

use crate::index::now;
use crate::log;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use std::fmt::Display;
use std::io;
use std::time::Duration;

/// Faults in a row that open it.
const FAULTS: u32 = 4;
/// The first pause; each further fault doubles it, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const DOUBLINGS: u32 = 7;

/// Words alone, so that a child may be forked while another thread uses it. A child goes on from what its parent knew.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    faults: AtomicU32,
    /// When the next one may try, nanoseconds since 1970.
    next: AtomicU64,
}

impl Breaker {
    /// Whether to try: always while it is closed, else once a pause.
    pub(crate) fn allows(&self) -> bool {
        let faults = self.faults.load(Ordering::Relaxed);
        faults < FAULTS || self.takes_turn(faults)
    }

    #[cold]
    fn takes_turn(&self, faults: u32) -> bool {
        let (now, next) = (now(), self.next.load(Ordering::Relaxed));
        let after = now.saturating_add(pause(faults));
        // A clock that was set back does not keep it open.
        (now >= next || next > after) && self.next.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether the last try succeeded.
    #[inline]
    pub(crate) fn is_well(&self) -> bool {
        self.faults.load(Ordering::Relaxed) == 0
    }

    /// Whether it is open; takes no turn.
    pub(crate) fn is_open(&self) -> bool {
        self.faults.load(Ordering::Relaxed) >= FAULTS
    }

    /// A try failed. Says so while it is closed, and once as it opens.
    pub(crate) fn failed(&self, path: impl Display, what: impl Display, error: &io::Error) {
        let faults = self.faults.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |faults| Some(faults.saturating_add(1)));
        let faults = faults.unwrap_or(0).saturating_add(1);
        if faults < FAULTS {
            log::warn(|| format!("{path}: {what} ({error}): read from the source, not kept"));
            return;
        }
        self.next.store(now().saturating_add(pause(faults)), Ordering::Relaxed);
        if faults == FAULTS {
            log::warn(|| {
                format!("{path}: {what} ({error}), {faults} times in a row: for a while it is not tried, and read from the source")
            });
        }
    }

    /// A try succeeded.
    pub(crate) fn worked(&self, path: impl Display) {
        if self.faults.load(Ordering::Relaxed) != 0 && self.faults.swap(0, Ordering::Relaxed) >= FAULTS {
            log::warn(|| format!("{path}: works again"));
        }
    }
}

fn pause(faults: u32) -> u64 {
    let doublings = faults.saturating_sub(FAULTS).min(DOUBLINGS);
    u64::try_from(FIRST_PAUSE.as_nanos()).unwrap_or(u64::MAX) << doublings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &Breaker) {
        breaker.failed("x", "y", &io::ErrorKind::Other.into());
    }

    #[test]
    fn opens_after_some_faults_and_lets_one_at_a_time_try() {
        let breaker = Breaker::default();
        for _ in 1..FAULTS {
            fail(&breaker);
            assert!(breaker.allows() && breaker.allows());
        }
        fail(&breaker);
        assert!(breaker.is_open() && !breaker.allows());
        breaker.next.store(now(), Ordering::Relaxed);
        assert!(breaker.allows() && !breaker.allows());
        breaker.worked("x");
        assert!(breaker.allows() && breaker.allows() && !breaker.is_open());
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        assert_eq!((pause(FAULTS), pause(FAULTS + 1), pause(u32::MAX)), (100_000_000, 200_000_000, 12_800_000_000));
        let breaker = Breaker::default();
        breaker.faults.store(u32::MAX, Ordering::Relaxed);
        fail(&breaker);
        assert!(breaker.is_open());
        breaker.next.store(u64::MAX, Ordering::Relaxed); // the clock was set back since
        assert!(breaker.allows());
    }
}
