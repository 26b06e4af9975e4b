//! Reading ahead of one handle: once its misses follow each other and the source is slow, workers fetch what comes next, twice as far each
//! time, until a miss somewhere else ends it. Never on a first read, and nothing in a source that answers at once.

use crate::fetcher::{Fetcher, Ticket};
use crate::fill::Keep;
use crate::range::{Pages, Run};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::sys::fork::PerProcess;
use crate::workers::Urgency;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// The furthest that is read ahead, requests of the largest size.
const FURTHEST: u64 = 4;
/// A window is fetched by so many requests, where they are not too small: one connection rarely fills a line.
const REQUESTS: u64 = 4;
/// Smaller requests than this are not made of a window that has room for larger ones, bytes.
const SMALL: u64 = 256 << 10;

#[derive(Debug)]
pub(crate) struct Ahead {
    /// A read that ends past here has more fetched; `u64::MAX`: nothing is read ahead. Looked at by every hit, so it takes no lock.
    mark: AtomicU64,
    state: PerProcess<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The page that follows the last miss, plus 1; 0: there was none.
    expected: u64,
    /// Bytes that are fetched ahead; 0: nothing.
    window: u64,
    /// Where what was asked for ends, bytes.
    frontier: u64,
    tickets: VecDeque<Arc<Ticket>>,
}

impl Ahead {
    pub(crate) const fn new() -> Ahead {
        Ahead { mark: AtomicU64::new(u64::MAX), state: PerProcess::new() }
    }

    /// A read that ends here was a hit.
    #[inline]
    pub(crate) fn hit(&self, fetcher: &Arc<Fetcher>, end: u64) {
        if end > self.mark.load(Ordering::Relaxed) {
            self.go_on(fetcher, end);
        }
    }

    #[cold]
    fn go_on(&self, fetcher: &Arc<Fetcher>, end: u64) {
        let mut state = self.state.get().lock();
        if state.window == 0 || end > state.frontier || fetcher.beside() == 0 {
            // Another process's mark, or a jump: the next miss tells.
            self.mark.store(u64::MAX, Ordering::Relaxed);
            return;
        }
        self.widen(&mut state, fetcher, end, end);
    }

    /// A read of this range misses something.
    pub(crate) fn missed(&self, fetcher: &Arc<Fetcher>, range: &Range<u64>) {
        let run = fetcher.pair.pages().touched(range);
        let mut state = self.state.get().lock();
        let follows = state.expected == run.first + 1;
        let inside = state.window > 0 && range.start < state.frontier && state.expected <= run.first + 1;
        state.expected = run.last + 2;
        if !(follows || inside) {
            self.stop(&mut state);
        } else if fetcher.source.is_slow() == Some(true) && fetcher.beside() > 0 {
            let pages = fetcher.pair.pages();
            state.window = state.window.max(pages.bytes_of(run).end - pages.bytes_of(run).start);
            self.widen(&mut state, fetcher, range.start, range.end);
        }
    }

    /// Fetches on, twice as far as before, from where a read ends. What lies before `done` is not wanted any more.
    fn widen(&self, state: &mut State, fetcher: &Arc<Fetcher>, done: u64, end: u64) {
        let (pages, max_fetch) = (fetcher.pair.pages(), fetcher.limits.max_fetch);
        state.tickets.retain(|ticket| pages.bytes_of(ticket.run()).end > done);
        state.window = (2 * state.window).min((FURTHEST * max_fetch).max(2 * pages.page_size));
        let until = end.saturating_add(state.window).min(pages.size);
        state.frontier = state.frontier.max(pages.bytes(pages.page_of(end.min(pages.size - 1))).end);
        while state.frontier < until {
            let run = request(pages, state.frontier..until, state.window, max_fetch);
            state.frontier = pages.bytes_of(run).end;
            state.tickets.push_back(fetcher.submit(run, Keep::Unstored, Urgency::Ahead));
        }
        let mark = if state.frontier < pages.size { state.frontier - state.window / 2 } else { u64::MAX };
        self.mark.store(mark, Ordering::Relaxed);
    }

    /// Copies what was fetched ahead of the bytes from `at` on and could not be stored, waiting for it; returns how many.
    pub(crate) fn take(&self, fetcher: &Fetcher, at: u64, out: &mut [u8]) -> usize {
        let Some(here) = self.state.peek() else { return 0 };
        let pages = fetcher.pair.pages();
        let ticket = {
            let state = here.lock();
            let covers = |ticket: &&Arc<Ticket>| pages.bytes_of(ticket.run()).contains(&at);
            state.tickets.iter().find(covers).map(Arc::clone)
        };
        ticket.map_or(0, |ticket| ticket.copy(fetcher, at, out))
    }

    /// Ends it: what no worker has begun is not begun.
    pub(crate) fn end(&self) {
        if let Some(state) = self.state.peek() {
            self.stop(&mut state.lock());
        }
    }

    fn stop(&self, state: &mut State) {
        self.mark.store(u64::MAX, Ordering::Relaxed);
        state.tickets.drain(..).for_each(|ticket| ticket.withdraw());
        (state.window, state.frontier) = (0, 0);
    }
}

/// The first request of a range of whole pages: a part of the window, at least what is worth a request, at most what one may ask for.
fn request(pages: Pages, range: Range<u64>, window: u64, max_fetch: u64) -> Run {
    let bytes = (window / REQUESTS).max(SMALL.min(window)).min(max_fetch).max(pages.page_size);
    let run = pages.touched(&(range.start..range.end.min(range.start + bytes)));
    run.head((bytes / pages.page_size).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_parts_of_a_window_within_bounds() {
        let pages = Pages { size: 1 << 30, page_size: 64 << 10 };
        let of = |window: u64| request(pages, 0..window, window, 8 << 20).count() * pages.page_size;
        assert_eq!((of(128 << 10), of(512 << 10), of(4 << 20), of(32 << 20)), (128 << 10, 256 << 10, 1 << 20, 8 << 20));
        let large = Pages { size: 1 << 30, page_size: 4 << 20 };
        assert_eq!(request(large, 0..8 << 20, 8 << 20, 8 << 20), Run::one(0));
        let end = Pages { size: 100_000, page_size: 64 << 10 };
        assert_eq!(request(end, 65_536..100_000, 1 << 20, 8 << 20), Run::one(1));
    }
}
