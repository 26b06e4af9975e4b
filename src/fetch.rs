//! One miss, from runs of absent pages to their publication. A [`Miss`] never calls the source itself: it says what to read
//! ([`Step::Ask`]), its driver reads, and [`Miss::accept`] goes on. So no `catch_unwind` of ours is ever below a callback.
//!
//! No one waits for a page lock while holding one: a miss claims one run, has it read, publishes, lets go, and only when nothing
//! is left to claim waits for the pages of others.

use crate::bypass::{Leader, Passage};
use crate::error::{Error, Result};
use crate::format::{Crc32c, Word};
use crate::hook;
use crate::lock::PageLock;
use crate::log;
use crate::options::Limits;
use crate::pair::{Pair, Trust, copy_overlap};
use crate::range::{Intervals, Run};
use crate::source::Nest;
use crate::stats::{Count, Counters};
use crate::store::{Attempt, Store};
use std::ops::Range;
use std::ptr;
use std::time::{Duration, Instant};

/// What the driver does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: every byte is delivered.
    Done,
    /// Read this range of the source into [`Miss::buffer`]; while it comes, beat for the run's waiters.
    Ask { range: Range<u64>, run: Option<Run> },
}

/// A read that did not find all of its pages.
pub(crate) struct Miss<'a> {
    pair: &'a Pair,
    limits: Limits,
    trust: Trust,
    counters: &'a Counters,
    store: Store<'a>,
    from: u64,
    out: &'a mut [u8],
    /// The bytes that the caller has not got yet.
    left: Intervals,
    buffer: Vec<u8>,
    work: Work<'a>,
    waiting: Option<Waiting>,
    /// Present pages that would not be copied; bounded, then they pass through.
    refusals: u32,
    waited: bool,
    /// This thread is in a callback on behalf of another miss of the pair: what that one holds does not come free by waiting.
    nested: bool,
}

thread_local! {
    /// The pairs that this thread is missing pages of.
    static MISSING: Nest = const { Nest::new() };
}

/// What the source is being read for.
enum Work<'a> {
    Nothing,
    /// A run that fits the buffer.
    Run(PageLock<'a>),
    /// A page larger than the buffer, in pieces.
    Pieces(Box<Pieces<'a>>),
    /// Around the pair, for all of this process who need it now.
    Around(Leader<'a>),
    /// Around the pair, straight into the caller's buffer: no memory for another.
    Direct(Range<u64>),
}

struct Pieces<'a> {
    lock: PageLock<'a>,
    taken: Word,
    crc: Crc32c,
    /// Where the piece being read begins.
    at: u64,
}

#[derive(Clone, Copy)]
struct Waiting {
    page: u64,
    first: Instant,
    seen: u32,
    since: Instant,
    pause: Duration,
}

/// Looks at one page under change before it passes through.
const REFUSALS: u32 = 4;
/// A wait ends after so many times `wait` even if the page's beat moves: other pages have the same one.
const LONGEST_WAIT: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

impl<'a> Miss<'a> {
    /// A miss of `out`, of which some is not there yet.
    pub(crate) fn new(
        pair: &'a Pair,
        limits: Limits,
        trust: Trust,
        counters: &'a Counters,
        from: u64,
        out: &'a mut [u8],
        left: Intervals,
    ) -> Miss<'a> {
        let buffer = pair.local().buffers.lock().pop().unwrap_or_default();
        let nested = MISSING.with(|missing| {
            let nested = missing.has(ptr::from_ref(pair).addr());
            missing.enter(ptr::from_ref(pair).addr());
            nested
        });
        Miss {
            pair,
            limits,
            trust,
            counters,
            store: Store::new(pair, limits, counters),
            from,
            out,
            left,
            buffer,
            work: Work::Nothing,
            waiting: None,
            refusals: 0,
            waited: false,
            nested,
        }
    }

    /// Goes on until the source is needed or all is delivered.
    pub(crate) fn step(&mut self) -> Result<Step> {
        loop {
            let mut blocked = None;
            let mut from = 0;
            while let Some(span) = self.left.next_from(from) {
                if self.take_present(&span) {
                    continue;
                }
                match self.claim(&span)? {
                    Claimed::Ask(step) => return Ok(step),
                    Claimed::Again => {}
                    Claimed::Busy { page, until } => {
                        blocked.get_or_insert((page, span.clone()));
                        from = self.pair.pages().bytes(until).end;
                    }
                }
            }
            match blocked {
                None => return Ok(Step::Done),
                Some((page, span)) => {
                    if !self.wait(page) {
                        if let Some(step) = self.go_around_stuck(page, &span) {
                            return Ok(step);
                        }
                    }
                }
            }
        }
    }

    /// Where the driver puts what it reads.
    pub(crate) fn buffer(&mut self) -> &mut [u8] {
        match &self.work {
            Work::Direct(range) => &mut self.out[(range.start - self.from) as usize..(range.end - self.from) as usize],
            _ => &mut self.buffer,
        }
    }

    /// Takes over what the driver read, or its failure.
    pub(crate) fn accept(&mut self, read: Result<()>) -> Result<Option<Step>> {
        let work = std::mem::replace(&mut self.work, Work::Nothing);
        if let Err(error) = read {
            self.abandon(work);
            return Err(error);
        }
        match work {
            Work::Nothing => Err(Error::Internal("a read that nobody asked for".into())),
            Work::Direct(range) => {
                self.left.remove(range);
                Ok(None)
            }
            Work::Around(leader) => {
                let range = leader.range();
                self.deliver(range.start);
                let _ = leader.finish(std::mem::take(&mut self.buffer));
                Ok(None)
            }
            Work::Run(lock) => {
                let range = self.pair.pages().bytes_of(lock.run());
                self.deliver(range.start);
                self.store.keep(&lock, &self.buffer);
                let run = lock.run();
                drop(lock);
                self.pair.index().beat(run);
                Ok(None)
            }
            Work::Pieces(pieces) => self.accept_piece(*pieces),
        }
    }

    /// Copies what is present at the head of a span. True where that was something.
    fn take_present(&mut self, span: &Range<u64>) -> bool {
        let out = &mut self.out[(span.start - self.from) as usize..(span.end - self.from) as usize];
        let copied = self.pair.copy_out(span.start, out, self.trust, self.counters);
        self.left.remove(span.start..span.start + copied as u64);
        copied > 0
    }

    /// Claims absent pages at the head of a span, or says why not.
    fn claim(&mut self, span: &Range<u64>) -> Result<Claimed> {
        let pages = self.pair.pages();
        let wanted = pages.touched(span).head(self.limits.max_fetch / pages.page_size);
        if self.store.is_faulty() {
            return Ok(self.go_around(self.part(wanted, span), span));
        }
        match self.store.claim(wanted) {
            Ok(Attempt::Held(lock)) => Ok(Claimed::Ask(self.begin(lock, span))),
            Ok(Attempt::Busy { until, pinned: false }) => Ok(Claimed::Busy { page: wanted.first, until }),
            // Pinned, and not as its checksum says: nobody can fetch it before the pin is released.
            Ok(Attempt::Busy { pinned: true, .. }) => Ok(self.go_around(self.part(Run::one(wanted.first), span), span)),
            Ok(Attempt::Present) => {
                self.refusals += 1;
                if self.refusals <= REFUSALS {
                    return Ok(Claimed::Again);
                }
                self.refusals = 0;
                Ok(self.go_around(self.part(Run::one(wanted.first), span), span))
            }
            Err(error) => {
                self.store.fault("the index cannot be used", &error);
                Ok(self.go_around(self.part(wanted, span), span))
            }
        }
    }

    /// Sets up the read of claimed pages.
    fn begin(&mut self, mut lock: PageLock<'a>, span: &Range<u64>) -> Step {
        let range = self.pair.pages().bytes_of(lock.run());
        if range.end - range.start <= self.limits.max_fetch {
            if !self.make_buffer(range.end - range.start) {
                return self.read_direct(self.part(lock.run(), span));
            }
            let run = Some(lock.run());
            self.work = Work::Run(lock);
            return Step::Ask { range, run };
        }
        let page = lock.run().first;
        lock.shrink(page);
        match self.store.take_alone(page) {
            Ok(Some(taken)) if self.make_buffer(self.limits.max_fetch) => {
                let at = self.pair.pages().bytes(page).start;
                self.ask_piece(Pieces { lock, taken, crc: Crc32c::new(), at })
            }
            Ok(taken) => {
                if taken.is_some() {
                    self.store.undo(Run::one(page), Run::one(page));
                }
                self.read_direct(self.part(Run::one(page), span))
            }
            Err(error) => {
                self.store.fault("a page cannot be stored", &error);
                self.read_direct(self.part(Run::one(page), span))
            }
        }
    }

    fn ask_piece(&mut self, pieces: Pieces<'a>) -> Step {
        let end = self.pair.pages().bytes(pieces.lock.run().first).end.min(pieces.at + self.limits.max_fetch);
        let (range, run) = (pieces.at..end, Some(pieces.lock.run()));
        self.buffer.truncate((end - pieces.at) as usize);
        self.work = Work::Pieces(Box::new(pieces));
        Step::Ask { range, run }
    }

    fn accept_piece(&mut self, mut pieces: Pieces<'a>) -> Result<Option<Step>> {
        let page = pieces.lock.run().first;
        self.deliver(pieces.at);
        pieces.crc.add(&self.buffer);
        if let Err(error) = self.pair.mirror().write(&self.buffer, pieces.at) {
            self.store.fault("a page cannot be written", &error);
            self.abandon(Work::Pieces(Box::new(pieces)));
            return Ok(None);
        }
        pieces.at += self.buffer.len() as u64;
        if pieces.at < self.pair.pages().bytes(page).end {
            return Ok(Some(self.ask_piece(pieces)));
        }
        self.store.publish(page, pieces.taken, pieces.crc.value());
        drop(pieces.lock);
        self.pair.index().beat(Run::one(page));
        Ok(None)
    }

    /// Gives the caller what it wants of the buffer, which stands for bytes from `at` on.
    fn deliver(&mut self, at: u64) {
        let given = copy_overlap(at, &self.buffer, self.from, self.out);
        self.left.remove(given);
    }

    /// Ends work that failed; whoever waits for its pages tries for itself.
    fn abandon(&mut self, work: Work<'a>) {
        match work {
            Work::Pieces(pieces) => {
                let run = pieces.lock.run();
                self.store.undo(run, run);
                drop(pieces.lock);
                self.pair.index().beat(run);
            }
            Work::Run(lock) => {
                let run = lock.run();
                drop(lock);
                self.pair.index().beat(run);
            }
            Work::Around(_) | Work::Direct(_) | Work::Nothing => {}
        }
    }

    // ---- around the pair ----

    /// The bytes of a span that lie in a run.
    fn part(&self, run: Run, span: &Range<u64>) -> Range<u64> {
        let bytes = self.pair.pages().bytes_of(run);
        bytes.start.max(span.start)..bytes.end.min(span.end)
    }

    fn go_around(&mut self, range: Range<u64>, span: &Range<u64>) -> Claimed {
        let wanted = range.start.max(span.start)..range.end.min(span.end);
        self.around(range, &wanted).map_or(Claimed::Again, Claimed::Ask)
    }

    /// Around a page whose holder does not move: the whole page if the buffer takes it, so that others of this process share it.
    fn go_around_stuck(&mut self, page: u64, span: &Range<u64>) -> Option<Step> {
        let bytes = self.pair.pages().bytes(page);
        let wanted = self.part(Run::one(page), span);
        let range = if bytes.end - bytes.start <= self.limits.max_fetch { bytes } else { wanted.clone() };
        self.around(range, &wanted)
    }

    /// Reads around the pair; `None` where another has done so already.
    fn around(&mut self, range: Range<u64>, wanted: &Range<u64>) -> Option<Step> {
        self.store.count_passed();
        // A part larger than one fetch goes in several; the next look at what is left takes the rest.
        let range = range.start..range.end.min(range.start + self.limits.max_fetch.max(1));
        let wanted = wanted.start..wanted.end.min(range.end);
        if self.nested {
            return Some(self.read_direct(wanted));
        }
        let pair = self.pair;
        match pair.local().bypass.pass(range.clone(), &wanted, self.limits.wait) {
            Passage::Done(read) => {
                if let Some(bytes) = read.part(&wanted) {
                    let given = copy_overlap(wanted.start, bytes, self.from, self.out);
                    self.left.remove(given);
                }
                None
            }
            Passage::Lead(leader) => {
                if !self.make_buffer(range.end - range.start) {
                    return Some(self.read_direct(wanted));
                }
                self.work = Work::Around(leader);
                Some(Step::Ask { range, run: None })
            }
        }
    }

    fn read_direct(&mut self, wanted: Range<u64>) -> Step {
        self.store.count_passed();
        self.work = Work::Direct(wanted.clone());
        Step::Ask { range: wanted, run: None }
    }

    /// Waits for another to finish with a page. False when it has not moved for as long as one waits.
    fn wait(&mut self, page: u64) -> bool {
        if !self.waited {
            self.waited = true;
            self.counters.one(Count::Waits);
        }
        let (index, bypass) = (self.pair.index(), &self.pair.local().bypass);
        let seen = index.beat_seen(page);
        if index.load(page).is_ok_and(Word::is_present) {
            return true;
        }
        if self.nested {
            return false;
        }
        let now = Instant::now();
        let mut waiting = match self.waiting {
            Some(waiting) if waiting.page == page && waiting.seen == seen => waiting,
            Some(waiting) if waiting.page == page => Waiting { seen, since: now, pause: FIRST_PAUSE, ..waiting },
            _ if bypass.is_stuck(page) => return false,
            _ => Waiting { page, first: now, seen, since: now, pause: FIRST_PAUSE },
        };
        let waited = now - waiting.since;
        if hook::NO_DEADLINE {
            std::thread::sleep(LONGEST_PAUSE);
            return true;
        }
        if waited >= self.limits.wait || now - waiting.first >= self.limits.wait * LONGEST_WAIT {
            let (path, time) = (&self.pair.place().data, self.limits.wait);
            log::warn(|| {
                format!("{}: page {page} has been held without progress for {time:?}: read from the source", path.display())
            });
            bypass.remember_stuck(page, time);
            self.waiting = None;
            return false;
        }
        index.sleep(page, seen, waiting.pause.min(self.limits.wait - waited));
        waiting.pause = (waiting.pause * 2).min(LONGEST_PAUSE);
        self.waiting = Some(waiting);
        true
    }

    /// Gives the buffer this length; false where there is no memory for it.
    fn make_buffer(&mut self, len: u64) -> bool {
        let Ok(len) = usize::try_from(len) else { return false };
        self.buffer.truncate(len);
        if self.buffer.try_reserve_exact(len - self.buffer.len()).is_err() {
            return false;
        }
        self.buffer.resize(len, 0);
        true
    }
}

/// Gives a buffer so many bytes or, where memory is short, half as many, and so on. Returns how many.
pub(crate) fn as_much_room(buffer: &mut Vec<u8>, wanted: u64) -> u64 {
    let mut len = usize::try_from(wanted).unwrap_or(usize::MAX);
    buffer.truncate(len);
    while buffer.try_reserve_exact(len - buffer.len()).is_err() {
        len /= 2;
        buffer.truncate(len);
    }
    buffer.resize(len, 0);
    len as u64
}

enum Claimed {
    Ask(Step),
    Again,
    Busy { page: u64, until: u64 },
}

/// Buffers kept for the next miss of the same pair.
const SPARE_BUFFERS: usize = 2;

impl Drop for Miss<'_> {
    fn drop(&mut self) {
        MISSING.with(Nest::leave);
        let work = std::mem::replace(&mut self.work, Work::Nothing);
        self.abandon(work);
        if self.buffer.capacity() > 0 {
            let mut spare = self.pair.local().buffers.lock();
            if spare.len() < SPARE_BUFFERS {
                spare.push(std::mem::take(&mut self.buffer));
            }
        }
    }
}
