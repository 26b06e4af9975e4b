//! Who drives fetches: the one place that reads the source for a pair, where nothing is shielded, on the thread that reads and on workers
//! beside it.

use crate::error::{Result, shield};
use crate::fetch::{Miss, Step};
use crate::fill::{Fill, Keep, Piece};
use crate::options::Limits;
use crate::pair::{Pair, Trust, copy_overlap};
use crate::range::{Intervals, Run};
use crate::source::Pool;
use crate::stats::FileCounters;
use crate::sync::{AtomicU64, Condvar, Guard, Mutex, Ordering};
use crate::sys::fork::PerProcess;
use crate::workers::{self, Job, Urgency};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A pair, its source, and how the file is read. All handles of a file share it.
#[derive(Debug)]
pub(crate) struct Fetcher {
    pub(crate) pair: Arc<Pair>,
    pub(crate) source: Arc<Pool>,
    pub(crate) limits: Limits,
    pub(crate) trust: Trust,
    pub(crate) counters: Arc<FileCounters>,
    /// Threads that may fetch beside the one that reads; 0: none.
    pub(crate) workers: u32,
    running: PerProcess<Arc<Running>>,
}

/// How many workers are at it.
#[derive(Debug, Default)]
struct Running {
    state: Mutex<RunningState>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct RunningState {
    workers: u32,
    closed: bool,
}

impl Fetcher {
    pub(crate) fn new(
        pair: Arc<Pair>,
        source: Arc<Pool>,
        limits: Limits,
        trust: Trust,
        counters: Arc<FileCounters>,
        workers: u32,
    ) -> Arc<Fetcher> {
        Arc::new(Fetcher { pair, source, limits, trust, counters, workers, running: PerProcess::new() })
    }

    /// How many fetches may be under way at once beside the caller's; 0 where all goes on the thread that reads.
    pub(crate) fn beside(&self) -> u32 {
        if self.source.is_inside() { 0 } else { self.workers.min(self.source.connections_beside()) }
    }

    /// Reads what is left of `out`, the bytes from `offset` on. Only the source's read is not shielded.
    pub(crate) fn read(&self, out: &mut [u8], offset: u64, left: Intervals) -> Result<()> {
        let counters = self.counters.here();
        let mut miss = shield(|| Ok(Miss::new(&self.pair, self.limits, self.trust, counters, offset, out, left)))?;
        let mut next = None;
        loop {
            let step = match next.take() {
                Some(step) => step,
                None => shield(|| miss.step())?,
            };
            let Step::Ask { range, run } = step else { return Ok(()) };
            let mut beat = || self.beat(run);
            let read = self.source.read(range.start, miss.buffer(), self.pair.pages().size, counters, &mut beat);
            next = shield(|| miss.accept(read))?;
        }
    }

    /// Fetches what is absent of a run, and waits for nobody. Also whether the source did not fail.
    fn fill(&self, run: Run, keep: Keep) -> (Vec<Piece>, bool) {
        let counters = self.counters.here();
        let Ok(mut fill) = shield(|| Ok(Fill::new(&self.pair, self.limits, counters, run, keep))) else {
            return (Vec::new(), false);
        };
        while let Ok(Some((range, run))) = shield(|| Ok(fill.next())) {
            let mut beat = || self.beat(run);
            let read = self.source.read(range.start, fill.buffer(), self.pair.pages().size, counters, &mut beat);
            let accepted = shield(|| {
                fill.accept(read);
                Ok(())
            });
            if accepted.is_err() {
                break;
            }
        }
        let well = !fill.failed();
        (fill.into_pieces(), well)
    }

    fn beat(&self, run: Option<Run>) {
        if let Some(run) = run {
            self.pair.index().beat(run);
        }
    }

    /// The runs that a fetch of these pages takes: what is absent, up to a request each.
    pub(crate) fn plan(&self, run: Run, most: usize) -> Vec<Run> {
        let a_request = self.limits.max_fetch / self.pair.pages().page_size;
        let mut runs = Vec::new();
        let mut first = run.first;
        while first <= run.last && runs.len() < most {
            match self.pair.absent_head(Run { first, last: run.last }.head(a_request)) {
                Ok(Some(absent)) => {
                    first = absent.last + 1;
                    runs.push(absent);
                }
                Ok(None) => first += 1,
                Err(_) => break,
            }
        }
        runs
    }

    /// Whether several requests at once are worth it, or may be.
    pub(crate) fn pays_together(&self) -> bool {
        self.source.is_slow() != Some(false) && self.beside() > 0
    }

    /// Fetches runs at once, the caller's thread and workers together, and returns what came, in order. Where the source turns out to be
    /// fast, only some of it.
    pub(crate) fn fetch_together(self: &Arc<Self>, runs: &[Run], keep: Keep) -> Vec<Piece> {
        let beside = self.beside();
        let mut pieces = Vec::new();
        let mut runs = runs;
        if self.source.is_slow().is_none() {
            let [first, rest @ ..] = runs else { return pieces };
            pieces = self.fill(*first, keep).0;
            runs = rest;
        }
        if beside == 0 || self.source.is_slow() != Some(true) {
            return pieces;
        }
        let mut together = Together { waiting: VecDeque::new() };
        for &run in runs {
            together.waiting.push_back(self.submit(run, keep, Urgency::Demand));
        }
        // From the end, so that the workers and this thread meet in the middle.
        let mut rest = together.waiting.len();
        while rest > 0 {
            rest -= 1;
            together.waiting[rest].run_here(self);
        }
        let mut patience = self.limits.wait;
        while let Some(ticket) = together.waiting.pop_front() {
            let came = ticket.wait(patience);
            patience = if came.is_some() { self.limits.wait } else { Duration::ZERO };
            pieces.append(&mut came.unwrap_or_default());
        }
        pieces.sort_by_key(|piece| piece.start);
        pieces
    }

    /// Has a run fetched by a worker.
    pub(crate) fn submit(self: &Arc<Self>, run: Run, keep: Keep, urgency: Urgency) -> Arc<Ticket> {
        let ticket = Arc::new(Ticket {
            fetcher: Arc::downgrade(self),
            running: Arc::clone(self.running.get()),
            run,
            keep,
            state: Mutex::default(),
            done: Condvar::default(),
        });
        // Where there is no worker it stays queued, until someone runs it or it is not wanted any more.
        workers::submit(Arc::clone(&ticket) as Arc<dyn Job>, urgency, self.beside());
        ticket
    }

    /// Has workers fetch a run, as far as it can be stored, and waits for nothing. False where none may.
    pub(crate) fn fetch_in_background(self: &Arc<Self>, run: Run) -> bool {
        // A page that comes in several pieces is for who asks for it.
        let fits = self.pair.pages().page_size <= self.limits.max_fetch;
        let beside = if fits { self.beside() } else { 0 };
        let rest = AtomicU64::new(run.first);
        let errand: Arc<dyn Job> =
            Arc::new(Errand { fetcher: Arc::downgrade(self), running: Arc::clone(self.running.get()), last: run.last, rest });
        (0..beside).filter(|_| workers::submit(Arc::clone(&errand), Urgency::Ahead, beside)).count() > 0
    }

    /// Ends all that workers do for this file, and waits until they are done: the last call that the source gets is a close.
    pub(crate) fn leave(&self) {
        let Some(running) = self.running.peek() else { return };
        let mut state = running.state.lock();
        state.closed = true;
        while state.workers > 0 {
            state = running.done.wait(state);
        }
    }
}

/// A run that a worker fetches, or that who needs it fetches before a worker comes to it.
#[derive(Debug)]
pub(crate) struct Ticket {
    fetcher: Weak<Fetcher>,
    running: Arc<Running>,
    run: Run,
    keep: Keep,
    state: Mutex<TicketState>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct TicketState {
    begun: bool,
    ended: bool,
    /// Waited for as long as one waits, in vain: the pages' own beats tell the next how its fetcher goes on.
    given_up: bool,
    pieces: Vec<Piece>,
}

impl Ticket {
    pub(crate) fn run(&self) -> Run {
        self.run
    }

    /// Fetches it on this thread, if nobody has begun.
    fn run_here(&self, fetcher: &Fetcher) {
        if self.begin() {
            let ending = Ending(self);
            let (pieces, _) = fetcher.fill(self.run, self.keep);
            self.state.lock().pieces = pieces;
            drop(ending);
        }
    }

    /// Whether this caller is the one to fetch it.
    fn begin(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().begun, true)
    }

    /// What came of it, which the next caller does not get again; nothing where nobody has begun, `None` when the time is over.
    fn wait(&self, time: Duration) -> Option<Vec<Piece>> {
        let mut state = self.state.lock();
        if state.begun {
            state = self.until_ended(state, time);
        }
        (state.ended || !state.begun).then(|| std::mem::take(&mut state.pieces))
    }

    fn until_ended<'a>(&'a self, mut state: Guard<'a, TicketState>, time: Duration) -> Guard<'a, TicketState> {
        let deadline = Instant::now() + time;
        while !state.ended && !state.given_up {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.given_up = true;
            } else {
                state = self.done.wait_for(state, left);
            }
        }
        state
    }

    /// Copies what came for the bytes from `at` on, once it is there; returns how many. Fetches it here if nobody has begun.
    pub(crate) fn copy(&self, fetcher: &Fetcher, at: u64, out: &mut [u8]) -> usize {
        self.run_here(fetcher);
        let state = self.until_ended(self.state.lock(), fetcher.limits.wait);
        let Some(piece) = state.pieces.iter().find(|piece| (piece.start..piece.end()).contains(&at)) else { return 0 };
        let copied = copy_overlap(piece.start, &piece.bytes, at, out);
        (copied.end - copied.start) as usize
    }

    /// Not wanted any more: no worker begins it.
    pub(crate) fn withdraw(self: &Arc<Self>) {
        if self.begin() {
            drop(Ending(self));
            workers::withdraw(&(Arc::clone(self) as Arc<dyn Job>));
        }
    }
}

/// However a fetch ends, who waits for it is told.
struct Ending<'a>(&'a Ticket);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.state.lock().ended = true;
        self.0.done.notify_all();
    }
}

impl Job for Ticket {
    fn run(&self) {
        self.running.work(&self.fetcher, |fetcher| self.run_here(fetcher));
    }
}

/// A long run that several workers fetch, a request each at a time.
struct Errand {
    fetcher: Weak<Fetcher>,
    running: Arc<Running>,
    last: u64,
    /// The first page that nobody has taken on yet.
    rest: AtomicU64,
}

impl Job for Errand {
    fn run(&self) {
        self.running.work(&self.fetcher, |fetcher| {
            let a_request = (fetcher.limits.max_fetch / fetcher.pair.pages().page_size).max(1);
            while !self.running.state.lock().closed {
                let first = self.rest.fetch_add(a_request, Ordering::Relaxed);
                if first > self.last {
                    break;
                }
                if !fetcher.fill(Run { first, last: self.last }.head(a_request), Keep::Nothing).1 {
                    self.rest.fetch_max(self.last + 1, Ordering::Relaxed); // for the others, too
                }
            }
        });
    }
}

impl Running {
    /// A worker's turn, unless the file is closed. The last handle of the file waits for its end and lets the source go, never a worker.
    fn work(&self, fetcher: &Weak<Fetcher>, turn: impl FnOnce(&Fetcher)) {
        struct Leaving<'a>(&'a Running);
        impl Drop for Leaving<'_> {
            fn drop(&mut self) {
                self.0.state.lock().workers -= 1;
                self.0.done.notify_all();
            }
        }
        {
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            state.workers += 1;
        }
        let _leaving = Leaving(self);
        if let Some(fetcher) = fetcher.upgrade() {
            turn(&fetcher);
        }
    }
}

/// What one read has asked workers for.
struct Together {
    waiting: VecDeque<Arc<Ticket>>,
}

impl Drop for Together {
    /// Left early, by a C++ exception: what nobody has begun is not begun.
    fn drop(&mut self) {
        self.waiting.iter().for_each(Ticket::withdraw);
    }
}

/// Gives a read what it wants of pieces, which are in order.
pub(crate) fn deliver(pieces: &[Piece], out_at: u64, out: &mut [u8], left: &mut Intervals) {
    let (end, first) = (out_at + out.len() as u64, pieces.partition_point(|piece| piece.end() <= out_at));
    for piece in pieces[first..].iter().take_while(|piece| piece.start < end) {
        let given: Range<u64> = copy_overlap(piece.start, &piece.bytes, out_at, out);
        left.remove(given);
    }
}
