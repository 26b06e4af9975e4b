//! The page states that all processes share: one atomic 64-bit word a page in a file mapped by everyone who has it open.
//! How a word changes is said and done in `word.rs`.
//!
//! Invariants:
//! 1. Before the first change of a session its number is on the disk ([`Index::before_change`]); stamps in a session that was
//!    opened clean may precede it, as they say nothing that was not true before.
//! 2. No store, and in memory no load, before its stretch of the file has blocks: a hole of a full file system raises SIGBUS.

use crate::format::{
    AT_BEATS, AT_DIRTY, AT_DOOMED, AT_DROPPING, AT_DURABLE, AT_HAND, AT_HELD, AT_MIRROR_DEVICE, AT_MIRROR_INODE, AT_OPENED,
    AT_SESSION_WORD, AT_SOUND_SINCE, AT_USED_AT, AT_WORDS, BEATS, HEADER_LEN, Header, State, Unreadable, Word, begins_a_round,
    cost, epoch_of, index_len, is_since, recency_of, word_offset,
};
use crate::hook;
use crate::ledger;
use crate::range::{Pages, Run};
use crate::session::SessionWord;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::file::{self, Stat};
use crate::sys::futex;
use crate::sys::map::SharedMap;
use crate::word::PageWord;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// What is given its blocks at once: 8,192 words.
const STRETCH: u64 = 64 << 10;

/// More pages than are dropped under one note: as its word is drawn.
const MOST_DROPPED: u64 = 1 << 24;

/// An open, mapped index, and this process's part in its session.
#[derive(Debug)]
pub(crate) struct Index {
    file: OwnedFd,
    map: SharedMap,
    header: Header,
    pages: Pages,
    /// Words are loaded only where blocks are.
    in_memory: bool,
    /// It will be opened again, so the sync rules hold.
    lasting: bool,
    /// The file cannot be written: the map is a copy of this process's.
    fixed: bool,
    /// A bit a stretch, set once it has blocks.
    stretches: Vec<AtomicU64>,
    /// The number of the session, and whether the one before ended well.
    count: u64,
    opened_clean: bool,
}

/// Reads the header of an index and checks that the file is as long as it must be.
pub(crate) fn read_header(file: BorrowedFd<'_>, stat: &Stat) -> io::Result<Result<Header, Unreadable>> {
    let mut bytes = vec![0; HEADER_LEN];
    let len = file::read_at(file, &mut bytes, 0)?;
    let header = match Header::decode(&bytes[..len]) {
        Ok(header) => header,
        Err(unreadable) => return Ok(Err(unreadable)),
    };
    let pages = Pages { size: header.size, page_size: header.page_size };
    if stat.size != index_len(pages.count()) {
        return Ok(Err(Unreadable::Damaged("wrong length")));
    }
    Ok(Ok(header))
}

/// What the pages of an index hold and when it was last used, as its file says.
pub(crate) fn read_use(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let mut bytes = [0; 8];
    let mut word = |at| file::read_at(file, &mut bytes, at).map(|_| u64::from_ne_bytes(bytes));
    Ok((word(AT_HELD)?, word(AT_USED_AT)?))
}

/// The mirror's name in an index whose header does not hold, as far as it can be told: 16 random bytes name nobody else's by chance.
pub(crate) fn mirror_of_damaged(file: BorrowedFd<'_>) -> Option<[u8; 16]> {
    let mut bytes = vec![0; HEADER_LEN];
    let len = file::read_at(file, &mut bytes, 0).ok()?;
    Header::mirror_of_damaged(&bytes[..len])
}

/// Makes an empty file into an index whose first session, number 1, has begun and not ended. Nothing is synced: until this number
/// is on the disk there is no header there either, so no later session can take the same.
pub(crate) fn write_new(file: BorrowedFd<'_>, header: &Header) -> io::Result<()> {
    let pages = Pages { size: header.size, page_size: header.page_size };
    let mut bytes = header.encode();
    let mut session = |at: u64, value: u64| bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_ne_bytes());
    session(AT_SESSION_WORD, 1 << 1);
    session(AT_OPENED, 1 << 1);
    session(AT_DURABLE, 1);
    session(AT_SOUND_SINCE, 1);
    let len = index_len(pages.count());
    file::set_len(file, len)?;
    // What was only written has no block yet where allocation is delayed, and a store into its map may find none left.
    match file::allocate(file, 0..HEADER_LEN as u64) {
        Err(error) if file::is_unsupported(&error) => fill(file, len)?,
        allocated => allocated?,
    }
    file::write_at(file, &bytes, 0)
}

/// The largest index that is written out where the file system cannot allocate: 8 million pages.
const LARGEST_FILLED: u64 = 64 << 20;

/// Gives a new index all of its blocks, as zeros.
fn fill(file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
    if len > LARGEST_FILLED {
        return Err(io::Error::other(
            "this file system cannot allocate blocks (fallocate), and the index is too large to be filled",
        ));
    }
    let zeros = vec![0; STRETCH as usize];
    (0..len).step_by(zeros.len()).try_for_each(|at| file::write_at(file, &zeros[..(len - at).min(STRETCH) as usize], at))
}

impl Index {
    pub(crate) fn map(file: OwnedFd, header: &Header, lasting: bool) -> io::Result<Index> {
        let pages = Pages { size: header.size, page_size: header.page_size };
        let len = index_len(pages.count());
        // A map keeps its description, and with it the description's locks: it gets one of its own, so that closing `file` leaves
        // the session.
        let map = SharedMap::of(file::reopen(file.as_fd())?.as_fd(), len)?;
        let in_memory = file::is_in_memory(file.as_fd());
        let stretches = (0..len.div_ceil(STRETCH).div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Index {
            file,
            map,
            header: header.clone(),
            pages,
            in_memory,
            lasting,
            fixed: false,
            stretches,
            count: 0,
            opened_clean: false,
        })
    }

    /// An index on a file that cannot be written: its pages can be compared, stamped for this process, and read.
    pub(crate) fn map_fixed(file: OwnedFd, header: &Header) -> io::Result<Index> {
        let pages = Pages { size: header.size, page_size: header.page_size };
        let map = SharedMap::copy_of(file.as_fd(), index_len(pages.count()))?;
        Ok(Index {
            file,
            map,
            header: header.clone(),
            pages,
            in_memory: false,
            lasting: false,
            fixed: true,
            stretches: Vec::new(),
            count: 0,
            opened_clean: false,
        })
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn pages(&self) -> Pages {
        self.pages
    }

    pub(crate) fn epoch(&self) -> u16 {
        epoch_of(self.count)
    }

    /// The epoch of the session that is on, or of the last one, whoever is in it.
    pub(crate) fn epoch_now(&self) -> u16 {
        epoch_of(self.session().count())
    }

    /// Whether a page can be trusted without comparing it: the session was opened clean, and the page was filled or compared in one
    /// that ended well, with none since that did not.
    pub(crate) fn is_sound(&self, word: Word) -> bool {
        let since = if hook::NO_SOUND { 0 } else { self.map.word(AT_SOUND_SINCE).load(Ordering::Acquire) };
        self.opened_clean && word.epoch() != self.epoch() && is_since(word.epoch(), since, self.count)
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// On a file system where reading a hole of a map takes space.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    pub(crate) fn is_fixed(&self) -> bool {
        self.fixed
    }

    pub(crate) fn is_lasting(&self) -> bool {
        self.lasting
    }

    // ---- sessions ----

    fn session(&self) -> SessionWord<'_> {
        SessionWord(self.map.word(AT_SESSION_WORD))
    }

    /// The first opener's part, inside the session's gate.
    pub(crate) fn begin_session(&mut self, mirror: &Stat) -> io::Result<()> {
        let (count, opened_clean) = self.session().coming();
        if begins_a_round(count) && !hook::NO_SWEEP {
            self.sweep()?;
        }
        self.record_mirror(mirror);
        self.spare(); // whoever was to take it away did not come to it
        self.set(AT_USED_AT, now());
        if !opened_clean {
            self.set(AT_SOUND_SINCE, count);
        }
        self.map.word(AT_OPENED).store(count << 1 | u64::from(opened_clean), Ordering::Release);
        self.session().begin(count);
        (self.count, self.opened_clean) = (count, opened_clean);
        Ok(())
    }

    /// The maker's part: the first session began when the file was written.
    pub(crate) fn begin_first_session(&mut self, mirror: &Stat) {
        self.record_mirror(mirror);
        self.set(AT_USED_AT, now());
        (self.count, self.opened_clean) = (1, false);
    }

    /// A later opener's part, as a member of the session: whether the mirror is the session's.
    pub(crate) fn join_session(&mut self, mirror: &Stat) -> bool {
        self.count = self.session().count();
        self.opened_clean = self.map.word(AT_OPENED).load(Ordering::Acquire) == self.count << 1 | 1;
        self.map.word(AT_MIRROR_DEVICE).load(Ordering::Acquire) == mirror.device
            && self.map.word(AT_MIRROR_INODE).load(Ordering::Acquire) == mirror.inode
    }

    fn record_mirror(&self, mirror: &Stat) {
        self.map.word(AT_MIRROR_DEVICE).store(mirror.device, Ordering::Release);
        self.map.word(AT_MIRROR_INODE).store(mirror.inode, Ordering::Release);
    }

    /// Epochs are about to repeat: no word may look like the coming session's own.
    fn sweep(&self) -> io::Result<()> {
        self.each_allocated(|page, word| {
            if word.state() != State::Absent {
                self.word(page).put(word.swept());
            }
        });
        file::sync_data(self.file())
    }

    /// The session still is the one that this process is in; false only where locks do not work.
    pub(crate) fn session_stands(&self) -> bool {
        self.session().stands(self.count)
    }

    /// Makes sure that the session's number is on the disk; the one sync on a read's path, once a session.
    pub(crate) fn before_change(&self) -> io::Result<()> {
        if self.lasting && !hook::NO_DURABLE && self.map.word(AT_DURABLE).load(Ordering::Acquire) != self.count {
            file::sync_data(self.file())?;
            self.map.word(AT_DURABLE).store(self.count, Ordering::Release);
        }
        Ok(())
    }

    /// Whether any process of this session has changed a page.
    fn is_dirty(&self) -> bool {
        self.map.word(AT_DIRTY).load(Ordering::Acquire) == self.count
    }

    /// Whether the last closer must sync before it may say clean. A session that changed no page must do so, too, if it was opened
    /// after an unclean end: what it compared may be in the kernel's cache only. The very first one has nothing to lose then.
    pub(crate) fn must_sync(&self) -> bool {
        self.is_dirty() || !(self.opened_clean || self.count == 1)
    }

    fn mark_dirty(&self) {
        let dirty = self.map.word(AT_DIRTY);
        if dirty.load(Ordering::Relaxed) != self.count {
            dirty.store(self.count, Ordering::Release);
        }
    }

    /// Closes the description on which the session was entered: whoever inherited it stays in. `fresh` takes its place.
    pub(crate) fn leave_session(&mut self, fresh: OwnedFd) {
        self.file = fresh;
    }

    /// The last closer's word, inside the session's gate; synced by the caller where it must be.
    pub(crate) fn end_session_clean(&self) -> bool {
        self.set(AT_USED_AT, now());
        self.session().end_clean(self.count)
    }

    fn set(&self, at: u64, value: u64) {
        self.map.word(at).store(value, Ordering::Release);
    }

    /// Removed while it is open: the last closer takes it away, unless someone opens it again before.
    pub(crate) fn doom(&self) {
        self.set(AT_DOOMED, 1);
    }

    /// Opened again: it stays.
    pub(crate) fn spare(&self) {
        self.set(AT_DOOMED, 0);
    }

    pub(crate) fn is_doomed(&self) -> bool {
        // A pair at paths of a program's own is never taken away.
        self.header.mirror != [0; 16] && self.map.word(AT_DOOMED).load(Ordering::Acquire) != 0
    }

    // ---- what the pages hold, and how useful they are ----

    /// Bytes that the pages hold, as the budget counts them.
    pub(crate) fn held(&self) -> u64 {
        self.map.word(AT_HELD).load(Ordering::Acquire)
    }

    /// Adds to what is held, if that stays within a limit (0: none).
    pub(crate) fn hold(&self, bytes: u64, limit: u64) -> bool {
        ledger::add_within(self.map.word(AT_HELD), bytes, limit)
    }

    /// Takes all that is held: whoever comes second gets nothing.
    pub(crate) fn take_held(&self) -> u64 {
        self.map.word(AT_HELD).swap(0, Ordering::AcqRel)
    }

    pub(crate) fn let_go(&self, bytes: u64) {
        ledger::subtract(self.map.word(AT_HELD), bytes);
    }

    /// Counts what the pages hold, and what a dropper that was killed left.
    pub(crate) fn count_held(&self) -> u64 {
        let mut held = 0;
        self.each_allocated(|page, word| {
            if word.state() != State::Absent {
                held += cost(&self.pages.bytes(page));
            }
        });
        let left = self.left_dropping().into_iter().flat_map(|left| left.first..=left.last);
        let absent = left.filter(|&page| self.load(page).is_ok_and(|word| word.state() == State::Absent));
        held + absent.map(|page| cost(&self.pages.bytes(page))).sum::<u64>()
    }

    /// Counts that anew, and notes it: after an unclean end the note may be off by what was under way.
    pub(crate) fn recount_held(&self) -> u64 {
        let held = self.count_held();
        self.set(AT_HELD, held);
        held
    }

    // ---- what is being dropped ----

    /// Notes which pages are about to be dropped, none of them absent; or what is left to be dropped of them.
    pub(crate) fn note_dropping(&self, run: Option<Run>) {
        self.set(AT_DROPPING, run.map_or(0, |run| run.first << 24 | run.count()));
    }

    /// What a dropper is at, or was when it was killed.
    pub(crate) fn left_dropping(&self) -> Option<Run> {
        let word = self.map.word(AT_DROPPING).load(Ordering::Acquire);
        let (first, count) = (word >> 24, word & (MOST_DROPPED - 1));
        (count > 0 && first + count <= self.pages.count()).then(|| Run { first, last: first + count - 1 })
    }

    /// Whether an absent page is counted still, as its dropper was killed. The caller has locked it, so no dropper is at it.
    pub(crate) fn is_left(&self, page: u64) -> bool {
        self.left_dropping().is_some_and(|left| (left.first..=left.last).contains(&page))
    }

    fn recency(&self, page: u64) -> Option<(&AtomicU32, u32)> {
        let (at, shift) = recency_of(self.pages.count(), page);
        self.allocate(at / STRETCH).ok()?;
        Some((self.map.half(at), shift))
    }

    /// How often a page was used since the hand passed, 0 to 3. Of an absent page: how often it was missed.
    pub(crate) fn uses(&self, page: u64) -> u32 {
        self.recency(page).map_or(0, |(word, shift)| word.load(Ordering::Relaxed) >> shift & 3)
    }

    /// Notes one more use; a store only until there are three. Lost to a neighbour's now and then: a hint.
    pub(crate) fn warm(&self, page: u64) -> u32 {
        self.recency(page).map_or(0, |(word, shift)| warmer(word, shift))
    }

    /// The same where it needs no room; false where it may. For hits: it does not panic.
    #[inline(always)]
    pub(crate) fn warm_at_once(&self, page: u64) -> bool {
        let (at, shift) = recency_of(self.pages.count(), page);
        match self.map.half_at(at) {
            Some(word) if self.fixed || self.is_allocated(at / STRETCH) => {
                warmer(word, shift);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn set_uses(&self, page: u64, uses: u32) {
        if let Some((word, shift)) = self.recency(page) {
            // An update that always has a value cannot fail.
            let _ =
                word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| Some(bits & !(3 << shift) | (uses & 3) << shift));
        }
    }

    pub(crate) fn hand(&self) -> u64 {
        self.map.word(AT_HAND).load(Ordering::Relaxed)
    }

    pub(crate) fn set_hand(&self, page: u64) {
        self.map.word(AT_HAND).store(page, Ordering::Relaxed);
    }

    // ---- words ----

    /// Gives the stretches of the file around these pages' words their blocks.
    pub(crate) fn make_room(&self, run: Run) -> io::Result<()> {
        (word_offset(run.first) / STRETCH..=(word_offset(run.last) + 7) / STRETCH).try_for_each(|stretch| self.allocate(stretch))
    }

    /// Gives one stretch its blocks. The first holds the beats, too.
    fn allocate(&self, stretch: u64) -> io::Result<()> {
        if self.fixed {
            return Ok(());
        }
        let seen = &self.stretches[(stretch / 64) as usize];
        let bit = 1 << (stretch % 64);
        if seen.load(Ordering::Acquire) & bit == 0 {
            let end = ((stretch + 1) * STRETCH).min(index_len(self.pages.count()));
            match file::allocate(self.file(), (stretch * STRETCH).max(AT_BEATS)..end) {
                // Its maker filled it.
                Err(error) if file::is_unsupported(&error) && file::stat(self.file()).is_ok_and(|stat| stat.has_no_hole()) => {}
                allocated => allocated?,
            }
            seen.fetch_or(bit, Ordering::AcqRel);
        }
        Ok(())
    }

    /// The pages from one on, up to some thousands, that are all absent as it is, or all not.
    pub(crate) fn alike(&self, first: u64) -> io::Result<Run> {
        let absent = |page| self.load(page).map(|word| word.state() == State::Absent);
        let (mut last, furthest, like) = (first, (first + 8192).min(self.pages.count()) - 1, absent(first)?);
        while last < furthest && absent(last + 1)? == like {
            last += 1;
        }
        Ok(Run { first, last })
    }

    /// A page's word; an error where even looking needs room that there is not.
    pub(crate) fn load(&self, page: u64) -> io::Result<Word> {
        if self.in_memory {
            self.make_room(Run::one(page))?;
        }
        Ok(self.word(page).load())
    }

    /// The same where looking needs nothing else, else `None`. For hits: it does not panic.
    #[inline(always)]
    pub(crate) fn peek(&self, page: u64) -> Option<Word> {
        let at = word_offset(page);
        if self.in_memory && !self.is_allocated(at / STRETCH) {
            return None;
        }
        self.map.word_at(at).map(|word| PageWord(word).load())
    }

    fn is_allocated(&self, stretch: u64) -> bool {
        let bits = self.stretches.get((stretch / 64) as usize);
        bits.is_some_and(|bits| bits.load(Ordering::Acquire) >> (stretch % 64) & 1 == 1)
    }

    fn word(&self, page: u64) -> PageWord<'_> {
        PageWord(self.map.word(word_offset(page)))
    }

    /// Takes an absent or left-over page. The caller holds its lock, and has called `before_change` and `make_room`.
    pub(crate) fn take(&self, page: u64) -> Option<Word> {
        self.mark_dirty();
        self.word(page).take(self.epoch())
    }

    pub(crate) fn publish(&self, page: u64, taken: Word, crc: u32) -> bool {
        self.word(page).publish(taken, crc, self.epoch())
    }

    /// Stamps a page whose checksum matched. A stamp that cannot be made costs another comparison, no more.
    pub(crate) fn stamp(&self, page: u64, seen: Word) -> Option<Word> {
        if !self.opened_clean && self.before_change().is_err() {
            return None;
        }
        self.word(page).stamp(seen, self.epoch())
    }

    pub(crate) fn mistrust(&self, page: u64, seen: Word) -> bool {
        if self.before_change().is_err() {
            return false;
        }
        self.mark_dirty();
        self.word(page).mistrust(seen, self.epoch())
    }

    /// Makes a page absent. The caller holds its lock alone, and punches after this returns true, never before.
    pub(crate) fn give_up(&self, page: u64, seen: Word) -> bool {
        self.mark_dirty();
        self.word(page).give_up(seen)
    }

    /// The next pages, at or after one, whose words have blocks: everything else is absent.
    pub(crate) fn next_allocated(&self, page: u64) -> Option<Run> {
        let count = self.pages.count();
        if page >= count {
            return None;
        }
        match file::next_data(self.file(), word_offset(page)) {
            Ok(None) => None,
            Ok(Some(at)) if at >= word_offset(count) => None,
            Ok(Some(at)) => {
                let first = (at - AT_WORDS) / 8;
                Some(Run { first, last: (first + STRETCH / 8 - 1).min(count - 1) })
            }
            Err(_) => Some(Run { first: page, last: count - 1 }),
        }
    }

    /// Calls with every page that may not be absent, and its word.
    pub(crate) fn each_allocated(&self, mut call: impl FnMut(u64, Word)) {
        let mut from = 0;
        while let Some(run) = self.next_allocated(from) {
            for page in run.first..=run.last {
                if let Ok(word) = self.load(page) {
                    call(page, word);
                }
            }
            from = run.last + 1;
        }
    }

    /// Present pages and their bytes, counted.
    pub(crate) fn census(&self) -> (u64, u64) {
        let (mut pages, mut bytes) = (0, 0);
        self.each_allocated(|page, word| {
            if word.is_present() {
                let range = self.pages.bytes(page);
                pages += 1;
                bytes += range.end - range.start;
            }
        });
        (pages, bytes)
    }

    /// Puts a page that was copied from another pair into a new index, to be compared before its first hit.
    pub(crate) fn import(&self, page: u64, crc: u32) -> io::Result<()> {
        self.make_room(Run::one(page))?;
        self.word(page).put(Word(0).taken(0).filled(crc, 0));
        self.hold(cost(&self.pages.bytes(page)), 0);
        Ok(())
    }

    // ---- beats ----

    /// The word that moves when `page` does; `None` where there is no room for it, and waiters go by time alone.
    fn beat_of(&self, page: u64) -> Option<&AtomicU32> {
        self.allocate(0).ok()?;
        Some(self.map.half(AT_BEATS + 4 * (page % BEATS)))
    }

    /// Tells who waits for one of these pages that their holder is alive, or done.
    pub(crate) fn beat(&self, run: Run) {
        for page in run.first..=run.last.min(run.first + BEATS - 1) {
            let Some(beat) = self.beat_of(page) else { return };
            let before = beat.load(Ordering::Relaxed);
            let after = (before & !1).wrapping_add(2);
            let before = beat.swap(after, Ordering::AcqRel);
            if before & 1 == 1 {
                futex::wake_all(beat);
            }
        }
    }

    /// How far the beat of a page has come, to tell progress by.
    pub(crate) fn beat_seen(&self, page: u64) -> u32 {
        self.beat_of(page).map_or(0, |beat| beat.load(Ordering::Acquire) & !1)
    }

    /// Sleeps until the beat moves past `seen`, or for `time`.
    pub(crate) fn sleep(&self, page: u64, seen: u32, time: Duration) {
        let Some(beat) = self.beat_of(page) else {
            std::thread::sleep(time);
            return;
        };
        let asleep = seen | 1;
        let now = beat.load(Ordering::Acquire);
        if now == asleep || (now == seen && beat.compare_exchange(seen, asleep, Ordering::AcqRel, Ordering::Acquire).is_ok()) {
            futex::wait(beat, asleep, time);
        }
    }
}

#[inline(always)]
fn warmer(word: &AtomicU32, shift: u32) -> u32 {
    let before = word.load(Ordering::Relaxed);
    let uses = before >> shift & 3;
    if uses == 3 {
        return 3;
    }
    let _ = word.compare_exchange(before, before + (1 << shift), Ordering::Relaxed, Ordering::Relaxed);
    uses + 1
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
