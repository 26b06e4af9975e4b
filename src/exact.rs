//! Exact mode: only the bytes that are asked for and not there yet are read from the source, to the byte. What is there is an ordered
//! set of ranges in memory, private to the process and shared by its threads; a forked child starts its own, empty, over a mirror of
//! its own.

use crate::budget::Account;
use crate::error::{Error, Result};
use crate::fetch::{Step, as_much_room};
use crate::format::{BLOCK, cost};
use crate::log;
use crate::mirror::Mirror;
use crate::options::{Limits, WhenFull};
use crate::pair::copy_overlap;
use crate::range::Intervals;
use crate::stats::{Count, Counters};
use crate::sync::{AtomicBool, Condvar, Mutex, Ordering};
use crate::sys::file;
use crate::sys::fork::PerProcess;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

type MakeMirror = dyn Fn() -> Option<(Mirror, Option<Account>)> + Send + Sync;

/// A private file in exact mode.
pub(crate) struct Exact {
    size: u64,
    here: PerProcess<Here>,
    make: Box<MakeMirror>,
    frozen: AtomicBool,
}

/// What this process has.
#[derive(Debug, Default)]
struct Here {
    state: Mutex<State>,
    moved: Condvar,
    files: OnceLock<Option<(Mirror, Option<Account>)>>,
    path: OnceLock<PathBuf>,
}

#[derive(Debug, Default)]
struct State {
    have: Intervals,
    /// Being read from the source just now.
    coming: Intervals,
    /// Counts the times that bytes were given up: who copied meanwhile copies again.
    drops: u64,
    /// As the budget counts it.
    held: u64,
}

impl fmt::Debug for Exact {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Exact").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Exact {
    /// `make` makes the unnamed mirror of a process, when it is first needed there.
    pub(crate) fn new(size: u64, make: Box<MakeMirror>) -> Exact {
        Exact { size, here: PerProcess::new(), make, frozen: AtomicBool::new(false) }
    }

    fn files(&self) -> Option<&(Mirror, Option<Account>)> {
        self.here.get().files.get_or_init(|| (self.make)()).as_ref()
    }

    pub(crate) fn mirror(&self) -> Option<&Mirror> {
        self.files().map(|(mirror, _)| mirror)
    }

    /// Where this process's mirror can be opened.
    pub(crate) fn path(&self) -> Option<&Path> {
        let mirror = self.mirror()?;
        let descriptor = mirror.file().ok()?.as_fd().as_raw_fd();
        let path = || PathBuf::from(OsStr::from_bytes(file::descriptor_path(descriptor).as_bytes()));
        Some(self.here.get().path.get_or_init(path))
    }

    /// From now on nothing is given up.
    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::Release);
    }

    pub(crate) fn extent(&self, offset: u64) -> (u64, bool) {
        let state = self.here.get().state.lock();
        match state.have.end_at(offset) {
            Some(end) => (end, true),
            None => (state.have.next_from(offset).map_or(self.size, |next| next.start), false),
        }
    }

    /// Ranges and bytes that are there.
    pub(crate) fn census(&self) -> (u64, u64) {
        self.here.get().state.lock().have.census()
    }

    /// The ranges that are there.
    pub(crate) fn ranges(&self) -> Vec<Range<u64>> {
        self.here.get().state.lock().have.iter().collect()
    }

    pub(crate) fn discard(&self, range: Range<u64>) -> io::Result<()> {
        if self.frozen.load(Ordering::Acquire) {
            return Ok(());
        }
        let Some((mirror, account)) = self.files() else { return Ok(()) };
        let mut state = self.here.get().state.lock();
        let region = range.start / BLOCK * BLOCK..range.end.next_multiple_of(BLOCK);
        let before = blocks_in(&state.have, &region);
        state.have.remove(range.clone());
        state.drops += 1;
        // Under the lock: nobody may put bytes there before the hole is made. It takes the blocks at its ends where nothing is left.
        let first = if touches(&state.have, region.start) { range.start } else { region.start };
        let end = if touches(&state.have, region.end - BLOCK) { range.end } else { region.end };
        mirror.punch(first..end)?;
        let bytes = (before - blocks_in(&state.have, &region)) * BLOCK;
        state.held -= bytes.min(state.held);
        if let Some(account) = account {
            account.give_back(bytes);
        }
        Ok(())
    }

    /// Reserves bytes, making room as the policy says. False: they are not to be kept.
    fn reserve(&self, bytes: u64, limits: &Limits) -> io::Result<bool> {
        let Some((_, account)) = self.files() else { return Ok(false) };
        for last_try in [false, true] {
            let in_file = {
                let mut state = self.here.get().state.lock();
                let fits = limits.file_limit == 0 || state.held.saturating_add(bytes) <= limits.file_limit;
                state.held += if fits { bytes } else { 0 };
                fits
            };
            let in_directory = match account {
                Some(account) if in_file => account.reserve(bytes)?.map(|mut room| room.spend(bytes)).is_some(),
                _ => in_file,
            };
            if in_directory {
                return Ok(true);
            }
            if in_file {
                self.here.get().state.lock().held -= bytes;
            }
            if last_try {
                return Ok(false);
            }
            let made = in_file
                && account.as_ref().is_some_and(|account| match limits.when_full {
                    WhenFull::Evict => account.budget().make_room(bytes),
                    WhenFull::Stop | WhenFull::Flush => account.budget().reclaim_for(bytes),
                });
            if !made && limits.when_full == WhenFull::Stop {
                return Ok(false);
            }
            if !made {
                // There is no order of use within the file: it starts again.
                self.discard(0..self.size)?;
            }
        }
        Ok(false)
    }
}

impl Drop for Exact {
    fn drop(&mut self) {
        if let Some(here) = self.here.peek() {
            if let Some(Some((_, Some(account)))) = here.files.get() {
                account.give_back(here.state.lock().held);
            }
        }
    }
}

/// Whether a byte of a block is there.
fn touches(have: &Intervals, block: u64) -> bool {
    have.next_from(block).is_some_and(|range| range.start < block + BLOCK)
}

/// The blocks of a region of which a byte is there.
fn blocks_in(have: &Intervals, region: &Range<u64>) -> u64 {
    let (mut blocks, mut from) = (0, region.start);
    while let Some(range) = have.next_from(from).filter(|range| range.start < region.end) {
        let first = (range.start / BLOCK * BLOCK).max(from);
        from = range.end.next_multiple_of(BLOCK).min(region.end);
        blocks += (from - first) / BLOCK;
    }
    blocks
}

/// A read in exact mode; driven as a [`crate::fetch::Miss`] is.
pub(crate) struct ExactRead<'a> {
    exact: &'a Exact,
    limits: Limits,
    counters: &'a Counters,
    from: u64,
    out: &'a mut [u8],
    left: Intervals,
    buffer: Vec<u8>,
    /// What is being read; `true`: others wait for it.
    asked: Option<(Range<u64>, bool)>,
    missed: bool,
    /// This thread is in a callback of the file's own source.
    nested: bool,
}

impl<'a> ExactRead<'a> {
    pub(crate) fn new(
        exact: &'a Exact,
        limits: Limits,
        counters: &'a Counters,
        from: u64,
        out: &'a mut [u8],
        nested: bool,
    ) -> ExactRead<'a> {
        let left = Intervals::of(from..from + out.len() as u64);
        ExactRead { exact, limits, counters, from, out, left, buffer: Vec::new(), asked: None, missed: false, nested }
    }

    /// Whether a byte was not there.
    pub(crate) fn missed(&self) -> bool {
        self.missed
    }

    pub(crate) fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Goes on until the source is needed or all is delivered.
    pub(crate) fn step(&mut self) -> Result<Step> {
        while let Some(span) = self.left.next_from(0) {
            let here = self.exact.here.get();
            let mut state = here.state.lock();
            if let Some(end) = state.have.end_at(span.start) {
                let (drops, part) = (state.drops, span.start..end.min(span.end));
                drop(state);
                if !self.copy(&part, drops) {
                    return self.pass_through(part);
                }
                continue;
            }
            self.missed = true;
            if state.coming.end_at(span.start).is_some() {
                self.counters.one(Count::Waits);
                // For what this thread itself is reading there is no waiting.
                let deadline = Instant::now() + if self.nested { Duration::ZERO } else { self.limits.wait };
                while state.coming.end_at(span.start).is_some() {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        drop(state);
                        self.counters.one(Count::PassedThrough);
                        return self.pass_through(span);
                    }
                    state = here.moved.wait_for(state, left);
                }
                continue;
            }
            let next = |set: &Intervals| set.next_from(span.start).map_or(u64::MAX, |range| range.start);
            let end = span.end.min(next(&state.have)).min(next(&state.coming));
            let range = self.make_room(span.start..end)?;
            state.coming.insert(range.clone());
            drop(state);
            self.asked = Some((range.clone(), true));
            return Ok(Step::Ask { range, run: None });
        }
        Ok(Step::Done)
    }

    /// Reads for this caller alone.
    fn pass_through(&mut self, range: Range<u64>) -> Result<Step> {
        let range = self.make_room(range)?;
        self.asked = Some((range.clone(), false));
        Ok(Step::Ask { range, run: None })
    }

    /// As much of the beginning of a range as one read may have, and memory is there for.
    fn make_room(&mut self, range: Range<u64>) -> Result<Range<u64>> {
        match as_much_room(&mut self.buffer, (range.end - range.start).min(self.limits.max_fetch)) {
            0 => Err(Error::NoMemory("a read of the source".into())),
            len => Ok(range.start..range.start + len),
        }
    }

    /// Copies bytes that are there. False where the mirror cannot be read.
    fn copy(&mut self, part: &Range<u64>, drops: u64) -> bool {
        let Some(mirror) = self.exact.mirror() else { return false };
        let out = &mut self.out[(part.start - self.from) as usize..(part.end - self.from) as usize];
        if let Err(error) = mirror.read(out, part.start) {
            log::warn(|| format!("a private file cannot be read ({error}): read from the source"));
            return false;
        }
        if self.exact.here.get().state.lock().drops == drops {
            self.left.remove(part.clone());
        } // else something was given up meanwhile: look again
        true
    }

    /// Takes over what the driver read, or its failure.
    pub(crate) fn accept(&mut self, read: Result<()>) -> Result<()> {
        let Some((range, shared)) = self.asked.clone() else { return Err(Error::Internal("a read that nobody asked for".into())) };
        read?; // dropping `self` tells those who wait
        let given = copy_overlap(range.start, &self.buffer, self.from, self.out);
        self.left.remove(given);
        if shared {
            match self.store(&range) {
                Ok(true) => {}
                Ok(false) => self.counters.one(Count::PassedThrough),
                Err(error) => {
                    self.counters.one(Count::PassedThrough);
                    log::warn(|| format!("a private file cannot be written ({error}): read from the source, not kept"));
                }
            }
        }
        self.done_asking();
        Ok(())
    }

    fn store(&self, range: &Range<u64>) -> io::Result<bool> {
        let bytes = cost(range);
        let Some(mirror) = self.exact.mirror() else { return Ok(false) };
        if !self.exact.reserve(bytes, &self.limits)? {
            return Ok(false);
        }
        let here = self.exact.here.get();
        // Under the lock, so that a discard does not fall between the bytes and their entry.
        let mut state = here.state.lock();
        let written = mirror.write(&self.buffer, range.start);
        let mut unused = bytes;
        if written.is_ok() {
            // Blocks at the ends may have been there.
            let region = range.start / BLOCK * BLOCK..range.end.next_multiple_of(BLOCK);
            let before = blocks_in(&state.have, &region);
            state.have.insert(range.clone());
            unused -= (blocks_in(&state.have, &region) - before) * BLOCK;
        }
        state.held -= unused.min(state.held);
        if let Some((_, Some(account))) = self.exact.files() {
            account.give_back(unused);
        }
        written.map(|()| true)
    }

    fn done_asking(&mut self) {
        if let Some((range, true)) = self.asked.take() {
            let here = self.exact.here.get();
            here.state.lock().coming.remove(range);
            here.moved.notify_all();
        }
    }
}

impl Drop for ExactRead<'_> {
    fn drop(&mut self) {
        self.done_asking();
    }
}
