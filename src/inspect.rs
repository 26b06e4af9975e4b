//! A look at near copies from outside, as tools need it: what each page is and who holds it, whether it matches its checksum. Reads
//! neither source nor session, and changes nothing but what a repair drops.

use crate::cache::{Cache, Entry};
use crate::directory::Listed;
use crate::error::{Error, Result, shield};
use crate::format::{Crc32c, State, Word};
use crate::index::Index;
use crate::keep::preserve;
use crate::lock;
use crate::mirror::Mirror;
use crate::options::check_key;
use crate::pair::Pair;
use crate::range::Run;
use crate::stats::{COUNTS, Count};
use crate::sys::lock::Kind;
use crate::word;
use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// What a page is. A page that is not listed is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PageState {
    /// Being written, or left so by a process that died; also one whose checksum did not match. Not served.
    Taken,
    /// Here; its checksum is compared before its next hit.
    Filled,
    /// Here, and compared with its checksum in the session that is on, or, of a file that nobody has open, in the last one.
    Verified,
}

/// A page of a near copy that is not absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// Its number; page *n* begins at byte *n* × page size.
    pub number: u64,
    /// What it is.
    pub state: PageState,
    /// How often it was used lately, 0 to 3: what eviction goes by.
    pub uses: u8,
}

/// The pages of a near copy, as they were when they were looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Map {
    /// Pages that are not absent, in order.
    pub pages: Vec<Page>,
    /// Pages that pins keep, in order.
    pub pinned: Vec<Range<u64>>,
    /// Pages that are being fetched or dropped just now, in order.
    pub busy: Vec<Range<u64>>,
    /// Whether a handle is frozen: nobody gives up pages of the file.
    pub frozen: bool,
}

/// What came of comparing the pages of a near copy with their checksums.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Pages compared so far.
    pub pages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Numbers of those that do not match, or cannot be read, in order.
    pub damaged: Vec<u64>,
    /// Of the damaged ones, how many are served to nobody any more: their next reader fetches them again.
    pub repaired: u64,
}

/// What came of comparing a page.
enum Compared {
    Matches,
    Differs(Word),
    /// Gone or fetched anew meanwhile: others see to it.
    Changed,
}

impl Cache {
    /// The pages of a near copy that [`Cache::list`] showed, and who holds them. An error where it is gone.
    pub fn map(&self, entry: &Entry) -> Result<Map> {
        let listed = self.find(entry)?;
        shield(|| map(listed).map_err(|error| failed("map", entry, error)))
    }

    /// Compares every present page of a near copy with its checksum. `progress` is told after each page, and ends it with `false`.
    ///
    /// With `repair`, what does not match is served to nobody any more, its space is given back unless a pin or a frozen handle keeps
    /// it, and its next reader fetches it again: as if that reader had found it. It counts as a checksum failure.
    pub fn verify(&self, entry: &Entry, repair: bool, progress: &mut dyn FnMut(&Verified) -> bool) -> Result<Verified> {
        let io_failed = |error| failed("verify", entry, error);
        let listed = self.find(entry)?;
        let file = self.shared.directory.open_mirror(&listed).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                failed("verify", entry, io::Error::other("its mirror is gone: remove the key, or open it, which makes a new one"))
            }
            _ => io_failed(error),
        })?;
        let mirror = Mirror::new(file, None);
        let index = Index::map(listed.index, &listed.header, false).map_err(io_failed)?;
        let mut present = Vec::new();
        index.each_allocated(|page, word| present.extend(word.is_present().then_some(page)));
        let (mut verified, mut differing) = (Verified::default(), Vec::new());
        let mut buffer = vec![0; PIECE];
        for page in present {
            match compare(&index, &mirror, page, &mut buffer) {
                Compared::Changed => continue,
                Compared::Matches => {}
                Compared::Differs(word) => {
                    verified.damaged.push(page);
                    differing.push((page, word));
                }
            }
            let bytes = index.pages().bytes(page);
            verified.pages += 1;
            verified.bytes += bytes.end - bytes.start;
            if !progress(&verified) {
                return Err(Error::Cancelled);
            }
        }
        if repair && !differing.is_empty() {
            verified.repaired = self.repair(entry, &differing)?;
        }
        Ok(verified)
    }

    /// Writes what is here of a near copy to `path`, holes as holes, and its index to `path.index`, to be opened again by
    /// [`crate::Options::paths`]. Never over a file that is there. Nothing of it is given up meanwhile.
    pub fn preserve(&self, entry: &Entry, path: &Path) -> Result<()> {
        let pair = self.open_pair(entry)?;
        let io_failed = |error| failed("preserve", entry, error);
        let frozen = lock::freeze(pair.index().file(), self.shared.limits.wait).map_err(io_failed)?;
        if frozen.is_none() {
            return Err(failed("preserve", entry, io::Error::other("another process does not stop dropping pages")));
        }
        shield(|| preserve(&pair.keepsake().map_err(io_failed)?, path))
    }

    fn find(&self, entry: &Entry) -> Result<Listed> {
        check_key(&entry.key)?;
        let name = entry.index_path.file_name().and_then(|name| CString::new(name.as_bytes()).ok());
        let listed = name.and_then(|name| self.shared.directory.listed(&name));
        let same = |listed: &Listed| listed.header.key == entry.key && listed.header.version == entry.version;
        listed.filter(same).ok_or_else(|| failed("look", entry, io::ErrorKind::NotFound.into()))
    }

    fn open_pair(&self, entry: &Entry) -> Result<Arc<Pair>> {
        let opened = self.shared.directory.open_listed(self.find(entry)?, self.shared.limits.wait);
        opened.ok_or_else(|| {
            failed("open", entry, io::Error::other("it is damaged, or another process does not come to an end with it"))
        })
    }

    /// Mistrusts pages whose words are what they were when they were compared, as a reader would. Returns how many are harmless now.
    fn repair(&self, entry: &Entry, differing: &[(u64, Word)]) -> Result<u64> {
        let pair = self.open_pair(entry)?;
        let mut mistrusted = 0;
        for &(page, seen) in differing {
            let word = pair.index().load(page).map_err(|error| failed("repair", entry, error))?;
            let stands = word.is_present() && (word.sequence(), word.crc()) == (seen.sequence(), seen.crc());
            if stands && pair.index().mistrust(page, word) {
                mistrusted += 1;
                // Its space only: where it cannot be had now, who fetches the page takes it over.
                let _ = pair.discard(Run::one(page));
            }
        }
        if let Some(shared) = self.shared.directory.shared() {
            let mut news = [0; COUNTS];
            news[Count::ChecksumFailures as usize] = mistrusted;
            shared.control.count(&news);
        }
        let served = |page: u64, seen: Word| {
            let sequence = pair.index().load(page).map(|word| (word.is_present(), word.sequence()));
            sequence.is_ok_and(|now| now == (true, seen.sequence()))
        };
        Ok(differing.iter().filter(|&&(page, seen)| !served(page, seen)).count() as u64)
    }
}

/// Bytes of a page that are read at once.
const PIECE: usize = 256 << 10;
/// Rounds of comparing a page whose word changes under it.
const TRIES: u32 = 8;

fn failed(what: &str, entry: &Entry, error: io::Error) -> Error {
    Error::io(format!("{what} {}", entry.index_path.display()), error)
}

fn map(listed: Listed) -> io::Result<Map> {
    let index = Index::map(listed.index, &listed.header, false)?;
    let epoch = index.epoch_now();
    let mut pages = Vec::new();
    index.each_allocated(|number, word| {
        let state = match word.state() {
            State::Absent => return,
            State::Taken => PageState::Taken,
            State::Verified if word.epoch() == epoch => PageState::Verified,
            State::Filled | State::Verified => PageState::Filled,
        };
        pages.push(Page { number, state, uses: index.uses(number) as u8 });
    });
    let (mut pinned, mut busy) = (Vec::new(), Vec::new());
    for (run, kind) in lock::held(index.file(), index.pages().count())? {
        let held = if kind == Kind::Shared { &mut pinned } else { &mut busy };
        held.push(run.first..run.last + 1);
    }
    Ok(Map { pages, pinned, busy, frozen: lock::is_frozen(index.file())? })
}

fn compare(index: &Index, mirror: &Mirror, page: u64, buffer: &mut [u8]) -> Compared {
    for _ in 0..TRIES {
        let Ok(word) = index.load(page) else { return Compared::Changed };
        if !word.is_present() {
            return Compared::Changed;
        }
        let mut crc = Crc32c::new();
        let read = || read_pieces(mirror, index.pages().bytes(page), buffer, &mut crc);
        match word::copy(&[word], |_| index.load(page).ok(), read) {
            Ok(true) if crc.value() == word.crc() => return Compared::Matches,
            Ok(true) | Err(_) => return Compared::Differs(word),
            Ok(false) => {}
        }
    }
    Compared::Changed
}

fn read_pieces(mirror: &Mirror, bytes: Range<u64>, buffer: &mut [u8], crc: &mut Crc32c) -> io::Result<()> {
    let mut at = bytes.start;
    while at < bytes.end {
        let len = buffer.len().min((bytes.end - at) as usize);
        mirror.read(&mut buffer[..len], at)?;
        crc.add(&buffer[..len]);
        at += len as u64;
    }
    Ok(())
}
