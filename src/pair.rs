//! A mirror and its index, open: the way of a hit, the comparison of a page with its checksum, and the end of a session.

use crate::budget::Account;
use crate::bypass::Bypass;
use crate::format::{Crc32c, Header, State, Word};
use crate::hook;
use crate::index::{Index, now};
use crate::lock::{Claim, INDEX_SESSION, PageLocks};
use crate::log;
use crate::mirror::Mirror;
use crate::range::{Pages, Run};
use crate::stats::{Count, Counters};
use crate::sync::{AtomicU64, Mutex};
use crate::sys::file;
use crate::sys::fork::PerProcess;
use crate::word;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What a handle takes on trust.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Trust {
    /// Nothing: checksums are compared at every hit.
    pub(crate) never: bool,
    /// The disk, where the session was opened clean: checksums are not compared.
    pub(crate) clean: bool,
    /// That the mirror stays as long as it is and can be read: hits are copied from its map, where a fault kills the process.
    pub(crate) map: bool,
}

/// Where the two files of a pair can be found by name.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) data: PathBuf,
    pub(crate) index: PathBuf,
    /// The directories whose names must reach the disk with the files.
    pub(crate) parents: Vec<Arc<OwnedFd>>,
}

/// Spare fetch buffers of this process, and reads around the pair.
#[derive(Debug, Default)]
pub(crate) struct Local {
    pub(crate) bypass: Bypass,
    pub(crate) buffers: Mutex<Vec<Vec<u8>>>,
}

/// One open pair, shared by all files of this process that read it.
#[derive(Debug)]
pub(crate) struct Pair {
    index: Index,
    mirror: Mirror,
    locks: PageLocks,
    place: Place,
    /// Who counts its bytes; None: nobody, as it lies in no cache directory.
    account: Option<Account>,
    /// How long its end waits for others who come in or go.
    wait: Duration,
    local: PerProcess<Local>,
    /// Until when nobody looks for pages to give up, nanoseconds since 1970: it was in vain.
    vain_until: AtomicU64,
    identity: (u64, u64),
}

/// What came of comparing a page.
enum Checked {
    /// It matched, and so many bytes of it were copied.
    Copied(usize),
    /// Its word changed meanwhile.
    Changed,
    /// It does not match, or cannot be read: not a hit.
    Unfit,
}

/// Copies that are tried again before a page under change is left to the miss path.
const TRIES: u32 = 8;

/// Pairs that this process has open, by device and inode of the index.
static OPEN: PerProcess<Mutex<Roll>> = PerProcess::new();

type Roll = BTreeMap<(u64, u64), Weak<Pair>>;

impl Pair {
    /// Takes over an index whose session was entered on its descriptor.
    pub(crate) fn new(
        index: Index,
        mirror: Mirror,
        place: Place,
        account: Option<Account>,
        wait: Duration,
        identity: (u64, u64),
    ) -> Arc<Pair> {
        let pair = Pair {
            index,
            mirror,
            locks: PageLocks::new(),
            place,
            account,
            wait,
            local: PerProcess::new(),
            vain_until: AtomicU64::new(0),
            identity,
        };
        Arc::new(pair)
    }

    /// The pair that this process has open already.
    pub(crate) fn find(identity: (u64, u64)) -> Option<Arc<Pair>> {
        OPEN.get().lock().get(&identity).and_then(Weak::upgrade)
    }

    /// Makes the pair findable; another thread may have been faster, then its pair is returned.
    pub(crate) fn enroll(self: Arc<Pair>) -> Arc<Pair> {
        let mut open = OPEN.get().lock();
        if let Some(theirs) = open.get(&self.identity).and_then(Weak::upgrade) {
            drop(open);
            return theirs; // ours closes here, outside of the lock
        }
        open.insert(self.identity, Arc::downgrade(&self));
        drop(open);
        self
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    pub(crate) fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    /// Lets hits be copied from a map of the mirror, if that can be.
    pub(crate) fn map_mirror(&self) {
        let path = self.place.data.display();
        if self.index.is_in_memory() {
            // Should a page go between the look at its word and the copy, a hole would be read, which takes space there.
            log::warn(|| format!("{path}: lies in memory, where a map may raise SIGBUS: hits are read, NEARFILE_MAP is ignored"));
        } else if self.pages().size > 0 {
            if let Err(error) = self.mirror.make_map(self.pages().size) {
                log::warn(|| format!("{path}: cannot be mapped ({error}): hits are read"));
            }
        }
    }

    pub(crate) fn vain_until(&self) -> &AtomicU64 {
        &self.vain_until
    }

    pub(crate) fn local(&self) -> &Local {
        self.local.get()
    }

    pub(crate) fn pages(&self) -> Pages {
        self.index.pages()
    }

    pub(crate) fn claim(&self, run: Run) -> io::Result<Claim<'_>> {
        self.locks.claim(self.index.file(), run)
    }

    /// The pages from `run.first` on that are not present; `None` where the first one is.
    pub(crate) fn absent_head(&self, run: Run) -> io::Result<Option<Run>> {
        let mut last = None;
        for page in run.first..=run.last {
            if self.index.load(page)?.is_present() {
                break;
            }
            last = Some(page);
        }
        Ok(last.map(|last| Run { first: run.first, last }))
    }

    /// Whether a page is present, and where that answer ends, bytes.
    pub(crate) fn extent(&self, offset: u64) -> (u64, bool) {
        let pages = self.pages();
        let first = pages.page_of(offset);
        let present = |page| self.index().load(page).is_ok_and(|word| word.is_present());
        let cached = present(first);
        let mut page = first + 1;
        while page < pages.count() {
            // A stretch without blocks is absent as a whole.
            let here = match self.index().next_allocated(page) {
                Some(stretch) if stretch.first == page => stretch,
                _ if cached => break,
                Some(stretch) => Run { first: stretch.first, last: stretch.last },
                None => return (pages.size, false),
            };
            match (here.first..=here.last).find(|&page| present(page) != cached) {
                Some(other) => {
                    page = other;
                    break;
                }
                None => page = here.last + 1,
            }
        }
        (pages.bytes_of(Run { first, last: page.min(pages.count()) - 1 }).end, cached)
    }

    /// Copies bytes from `from` on as far as their pages are present; returns how many. One system call, no lock, no allocation.
    pub(crate) fn copy_out(&self, from: u64, out: &mut [u8], trust: Trust, counters: &Counters) -> usize {
        if self.hit(from, out, trust) { out.len() } else { self.copy_any(from, out, trust, counters) }
    }

    /// The common case by the shortest way: bytes of one page that stands, on a disk that works. What is not so is [`Pair::copy_any`]'s.
    ///
    /// It does not panic, so nothing needs to be around it, and all of it is inlined, with the use noted before the copy: after a system
    /// call each return and each branch costs more than before it (7 ns a level of calls, on the machine of docs/performance.md).
    #[inline(always)]
    pub(crate) fn hit(&self, from: u64, out: &mut [u8], trust: Trust) -> bool {
        let page = self.pages().page_of(from);
        let last = from.wrapping_add(out.len() as u64).wrapping_sub(1);
        if out.is_empty() || self.pages().page_of(last) != page || !self.mirror.reads.is_well() {
            return false;
        }
        let Some(word) = self.index.peek(page) else { return false };
        if !word.is_present() || !self.stands(word, trust) || !self.index.warm_at_once(page) {
            return false;
        }
        hook::widen_hit();
        self.mirror.copy_once(out, from, trust.map) && word::stood(word, || self.index.peek(page))
    }

    /// [`Pair::copy_out`] without the short way.
    #[inline(never)]
    pub(crate) fn copy_any(&self, from: u64, out: &mut [u8], trust: Trust, counters: &Counters) -> usize {
        let mut done = 0;
        if !self.mirror.reads.allows() {
            return 0;
        }
        while done < out.len() {
            let (at, rest) = (from + done as u64, &mut out[done..]);
            let copied = if self.pages().touched(&(at..at + rest.len() as u64)).count() == 1 {
                self.copy_batch::<1>(at, rest, trust, counters)
            } else {
                self.copy_batch::<64>(at, rest, trust, counters)
            };
            if copied == 0 {
                break;
            }
            done += copied;
        }
        done
    }

    /// Up to `N` pages with one read of the mirror: words, copy, fence, words again.
    fn copy_batch<const N: usize>(&self, from: u64, out: &mut [u8], trust: Trust, counters: &Counters) -> usize {
        let range = from..from + out.len() as u64;
        let run = self.pages().touched(&range).head(N as u64);
        for _ in 0..TRIES {
            let mut seen = [Word(0); N];
            let mut count = 0;
            let mut to_check = None;
            for (page, seen) in (run.first..=run.last).zip(&mut seen) {
                let Ok(word) = self.index.load(page) else { break };
                if !word.is_present() {
                    break;
                }
                if !self.stands(word, trust) {
                    to_check = Some(word);
                    break;
                }
                *seen = word;
                count += 1;
            }
            if count == 0 {
                let Some(word) = to_check else { return 0 };
                match self.check(run.first, word, from, out, counters) {
                    Checked::Copied(n) => return n,
                    Checked::Changed => continue,
                    Checked::Unfit => return 0,
                }
            }
            let run = run.head(count as u64);
            let len = (self.pages().bytes_of(run).end.min(range.end) - from) as usize;
            let words = |at| self.index.load(run.first + at as u64).ok();
            match word::copy(&seen[..count], words, || self.mirror.copy(&mut out[..len], from, trust.map)) {
                Ok(false) => {}
                Ok(true) => {
                    self.mirror.reads.worked(self.place.data.display());
                    for page in run.first..=run.last {
                        self.index.warm(page);
                    }
                    return len;
                }
                Err(error) => {
                    self.note_unreadable(run.first, &error);
                    return 0;
                }
            }
        }
        0
    }

    /// Whether a present page may be served without comparing it.
    #[inline(always)]
    pub(crate) fn stands(&self, word: Word, trust: Trust) -> bool {
        let mine = word.epoch() == self.index.epoch();
        (mine && word.state() == State::Verified && !trust.never) || (trust.clean && !trust.never && self.index.is_sound(word))
    }

    /// Compares a page with its checksum, copying what is wanted of it on the way: what is given is what was compared.
    #[inline(never)]
    fn check(&self, page: u64, word: Word, from: u64, out: &mut [u8], counters: &Counters) -> Checked {
        let bytes = self.pages().bytes(page);
        let wanted = from..bytes.end.min(from + out.len() as u64);
        let out = &mut out[..(wanted.end - from) as usize];
        let mut crc = Crc32c::new();
        let compare = |at, piece: &[u8]| {
            crc.add(piece);
            copy_overlap(at, piece, from, out);
        };
        match word::copy(&[word], |_| self.index.load(page).ok(), || self.each_piece(bytes, compare)) {
            Ok(true) => {}
            Ok(false) => return Checked::Changed,
            Err(error) => {
                self.note_unreadable(page, &error);
                if error.kind() == io::ErrorKind::UnexpectedEof {
                    self.mistrust(page, word, counters);
                }
                return Checked::Unfit;
            }
        }
        if crc.value() != word.crc() {
            self.mistrust(page, word, counters);
            return Checked::Unfit;
        }
        self.mirror.reads.worked(self.place.data.display());
        counters.one(Count::PagesVerified);
        if word.state() != State::Verified || word.epoch() != self.index.epoch() {
            self.index.stamp(page, word);
        }
        self.index.warm(page);
        Checked::Copied((wanted.end - wanted.start) as usize)
    }

    fn each_piece(&self, bytes: Range<u64>, mut call: impl FnMut(u64, &[u8])) -> io::Result<()> {
        let mut piece = [0_u8; 32 << 10];
        let mut at = bytes.start;
        while at < bytes.end {
            let len = piece.len().min((bytes.end - at) as usize);
            self.mirror.read(&mut piece[..len], at)?;
            call(at, &piece[..len]);
            at += len as u64;
        }
        Ok(())
    }

    fn mistrust(&self, page: u64, word: Word, counters: &Counters) {
        if self.index.mistrust(page, word) {
            counters.one(Count::ChecksumFailures);
            log::warn(|| format!("{}: page {page} does not match its checksum and is fetched again", self.place.data.display()));
        }
    }

    fn note_unreadable(&self, page: u64, error: &io::Error) {
        let path = self.place.data.display();
        if error.kind() == io::ErrorKind::UnexpectedEof {
            log::warn(|| format!("{path}: ends before page {page}: someone cut it off; read from the source"));
        } else {
            self.mirror.reads.failed(path, format_args!("page {page} cannot be read"), error);
        }
    }

    /// The last closer of a session makes the pair durable and says so; everyone else just leaves.
    fn end_session(&mut self) -> io::Result<()> {
        if self.index.is_fixed() || (!self.index.is_lasting() && self.account.is_none()) {
            return Ok(());
        }
        let fresh = file::reopen(self.index.file())?;
        if self.index.is_lasting() && self.index.must_sync() && !self.index.is_doomed() {
            // The bulk of it before the lock, so that the next opener does not wait for it.
            self.mirror.sync()?;
            file::sync_data(self.index.file())?;
        }
        self.index.leave_session(fresh);
        let Some(_gate) = INDEX_SESSION.is_deserted(self.index.file(), self.wait)? else { return Ok(()) };
        if !self.index.is_lasting() {
            self.give_back(self.index.take_held());
            return Ok(());
        }
        if file::stat(self.index.file())?.links == 0 {
            return Ok(());
        }
        if self.index.is_doomed() {
            return self.take_away();
        }
        self.make_durable()
    }

    /// To be called before pages or files go.
    pub(crate) fn before_drop(&self) -> io::Result<()> {
        self.account.as_ref().map_or(Ok(()), |account| account.budget().before_drop())
    }

    /// Gives bytes that no page holds any more back to the directory.
    pub(crate) fn give_back(&self, bytes: u64) {
        if let Some(account) = &self.account {
            account.give_back(bytes);
        }
    }

    /// Inside the gate of a session that nobody is in: the files, and only then the word that says that they are whole.
    fn make_durable(&self) -> io::Result<()> {
        if !self.index.must_sync() {
            self.index.end_session_clean();
            return Ok(());
        }
        self.mirror.sync()?;
        file::sync(self.index.file())?;
        for parent in &self.place.parents {
            file::sync(parent.as_fd())?;
        }
        if self.index.end_session_clean() {
            file::sync_data(self.index.file())?;
        }
        Ok(())
    }

    /// Removes the files of a pair that was removed while it was open. Inside the gate, likewise.
    fn take_away(&self) -> io::Result<()> {
        self.before_drop()?;
        let held = self.index.count_held();
        for path in [&self.place.index, &self.place.data] {
            std::fs::remove_file(path)?;
        }
        self.give_back(held);
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let mut open = OPEN.get().lock();
        if open.get(&self.identity).is_some_and(|weak| weak.strong_count() == 0) {
            open.remove(&self.identity);
        }
        if open.is_empty() {
            *open = Roll::new(); // an empty tree keeps a node, which leak checkers do not find in a map of ours
        }
        drop(open);
        if let Err(error) = self.end_session() {
            let data = self.place.data.display();
            log::warn(|| format!("{data}: not closed cleanly ({error}): its pages are compared again when it is opened next"));
        }
    }
}

/// Copies into `out`, which stands for bytes from `out_at` on, what of `bytes`, which stand at `at`, falls into it. Returns the range.
pub(crate) fn copy_overlap(at: u64, bytes: &[u8], out_at: u64, out: &mut [u8]) -> Range<u64> {
    let start = at.max(out_at);
    let end = (at + bytes.len() as u64).min(out_at + out.len() as u64);
    if start < end {
        out[(start - out_at) as usize..(end - out_at) as usize].copy_from_slice(&bytes[(start - at) as usize..(end - at) as usize]);
    }
    start..end.max(start)
}

/// The header that a new pair gets.
pub(crate) fn new_header(key: &[u8], version: &[u8], pages: Pages, mirror: [u8; 16]) -> Header {
    Header { key: key.to_vec(), version: version.to_vec(), size: pages.size, page_size: pages.page_size, mirror, made: now() }
}
