//! One miss, from runs of absent pages to their publication. A [`Miss`] never calls the source itself: it says what to read
//! ([`Step::Ask`]), its driver reads, and [`Miss::accept`] goes on. So no `catch_unwind` of ours is ever below a callback.
//!
//! No one waits for a page lock while holding one: a miss claims one run, has it read, publishes, lets go, and only when nothing
//! is left to claim waits for the pages of others.

use crate::budget::Reservation;
use crate::bypass::{Leader, Passage};
use crate::error::{Error, Result};
use crate::format::{Crc32c, State, Word, cost, crc32c};
use crate::hook;
use crate::lock::{Claim, PageLock};
use crate::log;
use crate::options::{Limits, WhenFull};
use crate::pair::{Pair, Trust, copy_overlap};
use crate::range::{Intervals, Run};
use crate::source::Nest;
use crate::stats::{Count, Counters};
use std::io;
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
    from: u64,
    out: &'a mut [u8],
    /// The bytes that the caller has not got yet.
    left: Intervals,
    buffer: Vec<u8>,
    work: Work<'a>,
    waiting: Option<Waiting>,
    /// Present pages that would not be copied; bounded, then they pass through.
    refusals: u32,
    /// The local disk failed this miss once: the rest is not kept.
    faulty: bool,
    /// The disk was full once, and pages were given up for it.
    freed: bool,
    waited: bool,
    passed: bool,
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
/// Pages stored with one write, bytes: what stays in the CPU's cache between checksum and copy.
const GROUP: u64 = 1 << 20;
/// A wait ends after so many times `wait` even if the page's beat moves: other pages have the same one.
const LONGEST_WAIT: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

impl<'a> Miss<'a> {
    /// A miss of `out`, of which the first `done` bytes are there already.
    pub(crate) fn new(
        pair: &'a Pair,
        limits: Limits,
        trust: Trust,
        counters: &'a Counters,
        from: u64,
        out: &'a mut [u8],
        done: usize,
    ) -> Miss<'a> {
        let left = Intervals::of(from + done as u64..from + out.len() as u64);
        let buffer = pair.local().buffers.lock().pop().unwrap_or_default();
        let faulty = pair.mirror().reads.is_open() || !pair.mirror().stores.allows();
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
            from,
            out,
            left,
            buffer,
            work: Work::Nothing,
            waiting: None,
            refusals: 0,
            faulty,
            freed: false,
            waited: false,
            passed: false,
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
                self.store_run(&lock);
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
        if self.faulty {
            return Ok(self.go_around(self.part(wanted, span), span));
        }
        match self.try_claim(wanted) {
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
                self.fault("the index cannot be used", &error);
                Ok(self.go_around(self.part(wanted, span), span))
            }
        }
    }

    /// Locks the absent pages that a run begins with, and looks again under the lock.
    fn try_claim(&self, wanted: Run) -> io::Result<Attempt<'a>> {
        let Some(absent) = self.pair.absent_head(wanted)? else { return Ok(Attempt::Present) };
        let mut lock = match self.pair.claim(absent)? {
            Claim::Busy { until, pinned } => return Ok(Attempt::Busy { until, pinned }),
            Claim::Held(lock) => lock,
        };
        match self.pair.absent_head(lock.run())? {
            None => Ok(Attempt::Present),
            Some(still) => {
                lock.shrink(still.last);
                Ok(Attempt::Held(lock))
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
        match self.take_alone(page) {
            Ok(Some(taken)) if self.make_buffer(self.limits.max_fetch) => {
                let at = self.pair.pages().bytes(page).start;
                self.ask_piece(Pieces { lock, taken, crc: Crc32c::new(), at })
            }
            Ok(taken) => {
                if taken.is_some() {
                    self.undo(Run::one(page), Run::one(page));
                }
                self.read_direct(self.part(Run::one(page), span))
            }
            Err(error) => {
                self.fault("a page cannot be stored", &error);
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
            self.fault("a page cannot be written", &error);
            self.abandon(Work::Pieces(Box::new(pieces)));
            return Ok(None);
        }
        pieces.at += self.buffer.len() as u64;
        if pieces.at < self.pair.pages().bytes(page).end {
            return Ok(Some(self.ask_piece(pieces)));
        }
        self.publish(page, pieces.taken, pieces.crc.value());
        drop(pieces.lock);
        self.pair.index().beat(Run::one(page));
        Ok(None)
    }

    /// Gives the caller what it wants of the buffer, which stands for bytes from `at` on.
    fn deliver(&mut self, at: u64) {
        let given = copy_overlap(at, &self.buffer, self.from, self.out);
        self.left.remove(given);
    }

    /// Stores and publishes the pages of a run that the buffer holds; a local fault keeps the rest out, and fails nobody.
    fn store_run(&mut self, lock: &PageLock<'_>) {
        let (pages, run) = (self.pair.pages(), lock.run());
        let a_group = (GROUP / pages.page_size).max(1);
        let mut first = run.first;
        while first <= run.last {
            let Some(group) = self.admitted(Run { first, last: run.last }.head(a_group)) else {
                self.count_passed();
                first += 1;
                continue;
            };
            match self.store_head(group, run) {
                Ok(Some(last)) => first = last + 1,
                Ok(None) => return self.count_passed(),
                Err(error) if is_full(&error) && self.free_disk(group) => {}
                Err(error) => return self.fault("a page cannot be stored", &error),
            }
        }
    }

    /// Stores a group, or, where not all of it has room, its first page. Returns the last page stored; `None` where there is no room.
    fn store_head(&self, group: Run, run: Run) -> io::Result<Option<u64>> {
        if self.store_group(group, run)? {
            return Ok(Some(group.last));
        }
        Ok((group.count() > 1 && self.store_group(Run::one(group.first), run)?).then_some(group.first))
    }

    /// The disk is full, whatever the limits say: gives up pages for a group, once a miss.
    fn free_disk(&mut self, group: Run) -> bool {
        if std::mem::replace(&mut self.freed, true) {
            return false;
        }
        let bytes = self.pair.cost_of(group);
        match (self.limits.when_full, self.pair.account()) {
            (WhenFull::Stop, _) => false,
            (WhenFull::Flush, _) => self.flush().unwrap_or(false),
            (WhenFull::Evict, Some(account)) => account.budget().give_up(bytes) > 0,
            (WhenFull::Evict, None) => self.pair.sweep(bytes, crate::clock::TURNS).is_ok_and(|gone| gone.pages > 0),
        }
    }

    /// The pages that a run begins with and that are to be kept; `None` where the first is not.
    fn admitted(&self, run: Run) -> Option<Run> {
        if self.limits.when_full != WhenFull::Evict || !self.is_nearly_full() {
            return Some(run);
        }
        let earned = (run.first..=run.last).take_while(|&page| self.pair.earns_its_place(page)).last();
        earned.map(|last| Run { first: run.first, last })
    }

    fn is_nearly_full(&self) -> bool {
        let limit = self.limits.file_limit;
        (limit != 0 && self.pair.index().held().saturating_add(limit / 64) > limit)
            || self.pair.account().is_some_and(|account| account.budget().is_nearly_full())
    }

    /// Stores a group of the pages of `run`, which the buffer holds; false where there is no room for it within the limits.
    fn store_group(&self, group: Run, run: Run) -> io::Result<bool> {
        let (index, pages) = (self.pair.index(), self.pair.pages());
        let start = pages.bytes_of(run).start;
        let range = pages.bytes_of(group);
        let bytes = &self.buffer[(range.start - start) as usize..(range.end - start) as usize];
        index.before_change()?;
        index.make_room(group)?;
        if !index.session_stands() {
            return Err(io::Error::other("its session was ended by another process"));
        }
        let Some(mut room) = self.reserve(group)? else { return Ok(false) };
        let mut taken = Vec::with_capacity(group.count() as usize);
        for (page, bytes) in (group.first..=group.last).zip(bytes.chunks(pages.page_size as usize)) {
            let uses = u32::from(self.is_nearly_full());
            taken.push((page, self.take(page, &mut room), crc32c(bytes)));
            index.set_uses(page, uses);
        }
        // Every fill looks once more, now that its pages are taken: a session that has ended takes no page.
        let stored = if index.session_stands() {
            self.pair.mirror().write(bytes, range.start)
        } else {
            Err(io::Error::other("its session was ended by another process"))
        };
        if let Err(error) = stored {
            self.undo(group, run);
            return Err(error);
        }
        for (page, taken, crc) in taken {
            if let Some(taken) = taken {
                self.publish(page, taken, crc);
            }
        }
        self.pair.mirror().stores.worked(self.pair.place().data.display());
        index.beat(group);
        Ok(true)
    }

    /// Takes a page for which there is room.
    fn take(&self, page: u64, room: &mut Room<'_>) -> Option<Word> {
        room.spend(self.uncounted(page).unwrap_or(0));
        self.pair.index().take(page)
    }

    /// What a page that is about to be taken costs. What a dead fetcher or dropper left of it is counted already.
    fn uncounted(&self, page: u64) -> io::Result<u64> {
        let index = self.pair.index();
        let counted = index.load(page)?.state() != State::Absent || index.is_left(page);
        Ok(if counted { 0 } else { cost(&self.pair.pages().bytes(page)) })
    }

    /// Takes one page that is fetched in pieces; `None` where it is not to be kept.
    fn take_alone(&self, page: u64) -> io::Result<Option<Word>> {
        if self.admitted(Run::one(page)).is_none() {
            return Ok(None);
        }
        self.pair.index().before_change()?;
        self.pair.index().make_room(Run::one(page))?;
        let Some(mut room) = self.reserve(Run::one(page))? else { return Ok(None) };
        Ok(self.take(page, &mut room))
    }

    /// Reserves what the absent pages of a group will hold, making room as the policy says; `None` where there is none.
    fn reserve(&self, group: Run) -> io::Result<Option<Room<'a>>> {
        let (pair, index) = (self.pair, self.pair.index());
        let bytes = (group.first..=group.last).map(|page| self.uncounted(page)).sum::<io::Result<u64>>()?;
        for last_try in [false, true] {
            if !index.hold(bytes, self.limits.file_limit) {
                if last_try || !self.make_room_in_file(bytes)? {
                    return Ok(None);
                }
                continue;
            }
            let mut room = Room { pair, reservation: None, left: bytes };
            let Some(account) = pair.account() else { return Ok(Some(room)) };
            if let Some(reservation) = account.reserve(bytes)? {
                room.reservation = Some(reservation);
                return Ok(Some(room));
            }
            drop(room);
            if last_try || !self.make_room_in_directory(bytes)? {
                return Ok(None);
            }
        }
        Ok(None)
    }

    fn make_room_in_file(&self, bytes: u64) -> io::Result<bool> {
        let limit = self.limits.file_limit;
        if bytes > limit {
            return Ok(false);
        }
        match self.limits.when_full {
            WhenFull::Stop => Ok(false),
            WhenFull::Flush => self.flush(),
            WhenFull::Evict => {
                let gone = self.pair.sweep(bytes.max(limit / 128), crate::clock::TURNS)?;
                self.counters.add(Count::PagesEvicted, gone.pages);
                Ok(gone.pages > 0)
            }
        }
    }

    fn make_room_in_directory(&self, bytes: u64) -> io::Result<bool> {
        let Some(account) = self.pair.account() else { return Ok(false) };
        let budget = account.budget();
        match self.limits.when_full {
            WhenFull::Stop => Ok(budget.reclaim_for(bytes)),
            WhenFull::Flush => Ok(budget.reclaim_for(bytes) || self.flush()?),
            WhenFull::Evict => Ok(budget.make_room(bytes)),
        }
    }

    /// Drops all pages of the file.
    fn flush(&self) -> io::Result<bool> {
        let gone = self.pair.discard(Run { first: 0, last: self.pair.pages().count() - 1 })?;
        self.counters.add(Count::PagesEvicted, gone.pages);
        Ok(gone.pages > 0)
    }

    fn publish(&self, page: u64, taken: Word, crc: u32) {
        if self.pair.index().publish(page, taken, crc) {
            self.counters.one(Count::PagesFetched);
        }
    }

    /// Gives back pages that were taken and not filled. Where another is dropping pages they stay taken, for the next who fetches them.
    fn undo(&self, run: Run, locked: Run) {
        let dropped = self.pair.dropper(Duration::ZERO).and_then(|dropper| match dropper {
            Some(dropper) => dropper.drop_locked(run, locked).map(drop),
            None => Ok(()),
        });
        if let Err(error) = dropped {
            log::warn(|| format!("{}: space of a page that was not stored stays used ({error})", self.pair.place().data.display()));
        }
    }

    /// Ends work that failed; whoever waits for its pages tries for itself.
    fn abandon(&mut self, work: Work<'a>) {
        match work {
            Work::Pieces(pieces) => {
                let run = pieces.lock.run();
                self.undo(run, run);
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
        self.count_passed();
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
        self.count_passed();
        self.work = Work::Direct(wanted.clone());
        Step::Ask { range: wanted, run: None }
    }

    fn count_passed(&mut self) {
        if !self.passed {
            self.passed = true;
            self.counters.one(Count::PassedThrough);
        }
    }

    fn fault(&mut self, what: &str, error: &io::Error) {
        self.faulty = true;
        self.count_passed();
        self.pair.mirror().stores.failed(self.pair.place().data.display(), what, error);
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

/// Bytes that a group may come to hold; what it does not spend goes back.
struct Room<'a> {
    pair: &'a Pair,
    reservation: Option<Reservation<'a>>,
    left: u64,
}

impl Room<'_> {
    fn spend(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
        if let Some(reservation) = &mut self.reservation {
            reservation.spend(bytes);
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.pair.index().let_go(self.left);
    }
}

enum Claimed {
    Ask(Step),
    Again,
    Busy { page: u64, until: u64 },
}

enum Attempt<'a> {
    Held(PageLock<'a>),
    Busy { until: u64, pinned: bool },
    Present,
}

/// No space, or no quota.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
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
