//! `control`: what all processes that use a directory share about it: its limit, its used bytes and the slots, which the budget keeps;
//! the counters; the locks of the directory as a whole.

use crate::format::{
    AT_COUNTERS, AT_SLOTS, CONTROL_LEN, DIRECTORY_LOCK, EVICT_LOCK, SLOT_LEN, Unreadable, check_control, encode_control,
};
use crate::ledger::Slot;
use crate::stats::COUNTS;
use crate::sync::{AtomicU64, Ordering};
use crate::sys::file::{self, Open};
use crate::sys::fork::ChildCloses;
use crate::sys::lock::{Kind, try_lock};
use crate::sys::map::SharedMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

const NAME: &CStr = c"control";

#[derive(Debug)]
pub(crate) struct Control {
    file: OwnedFd,
    map: SharedMap,
}

/// A lock of the directory, held until dropped.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _description: ChildCloses,
}

impl Control {
    /// Opens a directory's `control`, making it if there is none; an error where it is foreign or cannot be used.
    pub(crate) fn open(dir: BorrowedFd<'_>) -> io::Result<Control> {
        for _ in 0..16 {
            match file::open_at(Some(dir), NAME, Open::Existing) {
                Ok(file) => match Control::check(&file)? {
                    Ok(()) => return Control::map(file),
                    Err(Unreadable::Foreign(what)) => return Err(io::Error::other(format!("`control` is foreign: {what}"))),
                    // Torn by a power cut before its first sync: nothing in it was ever counted on.
                    Err(Unreadable::Damaged(_)) => replace_damaged(dir, &file)?,
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => match make(dir) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                },
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("`control` is replaced again and again"))
    }

    fn check(file: &OwnedFd) -> io::Result<Result<(), Unreadable>> {
        let stat = file::stat(file.as_fd())?;
        if !stat.is_file() || !stat.is_ours() || stat.links > 1 {
            return Ok(Err(Unreadable::Foreign("not a plain file of this user's alone".into())));
        }
        let mut bytes = [0; 64];
        let len = file::read_at(file.as_fd(), &mut bytes, 0)?;
        let length = if stat.size == CONTROL_LEN { Ok(()) } else { Err(Unreadable::Damaged("wrong length")) };
        Ok(check_control(&bytes[..len]).and(length))
    }

    /// Whether a file could be a `control` whose maker was killed before it had its name.
    pub(crate) fn was_to_be(file: &OwnedFd) -> bool {
        let whole = file::stat(file.as_fd()).is_ok_and(|stat| stat.size == CONTROL_LEN);
        whole && matches!(Control::check(file), Ok(Ok(()) | Err(Unreadable::Damaged(_))))
    }

    fn map(file: OwnedFd) -> io::Result<Control> {
        file::allocate(file.as_fd(), 0..CONTROL_LEN)?;
        let map = SharedMap::of(file.as_fd(), CONTROL_LEN)?;
        Ok(Control { file, map })
    }

    pub(crate) fn count(&self, news: &[u64; COUNTS]) {
        for (at, &new) in news.iter().enumerate() {
            if new != 0 {
                self.map.word(AT_COUNTERS + 8 * at as u64).fetch_add(new, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn counts(&self) -> [u64; COUNTS] {
        std::array::from_fn(|at| self.map.word(AT_COUNTERS + 8 * at as u64).load(Ordering::Relaxed))
    }

    /// One of the words before the counters, by its offset.
    pub(crate) fn word(&self, at: u64) -> &AtomicU64 {
        self.map.word(at)
    }

    pub(crate) fn slot(&self, slot: u64) -> Slot<'_> {
        let at = AT_SLOTS + slot * SLOT_LEN;
        Slot { reserved: self.map.word(at), private: self.map.word(at + 8), taken: self.map.word(at + 16) }
    }

    /// A description of its own, for a lock.
    pub(crate) fn reopen(&self) -> io::Result<OwnedFd> {
        file::reopen(self.file.as_fd())
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        file::sync_data(self.file.as_fd())
    }

    /// Locks the directory against other publishers and removers; `None` where one of them does not come to an end.
    pub(crate) fn lock(&self, wait: Duration) -> io::Result<Option<DirectoryLock>> {
        self.lock_byte(DIRECTORY_LOCK, wait)
    }

    /// Becomes the one evictor of the directory.
    pub(crate) fn lock_evictor(&self, wait: Duration) -> io::Result<Option<DirectoryLock>> {
        self.lock_byte(EVICT_LOCK, wait)
    }

    fn lock_byte(&self, byte: u64, wait: Duration) -> io::Result<Option<DirectoryLock>> {
        let description = ChildCloses::open(|| self.reopen())?;
        let deadline = Instant::now() + wait;
        while !try_lock(description.as_fd(), Kind::Exclusive, byte, 1)? {
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(Some(DirectoryLock { _description: description }))
    }
}

/// Publishes a new `control`, or finds that another was faster.
fn make(dir: BorrowedFd<'_>) -> io::Result<()> {
    let name = temporary_name(&file::random()?);
    let file = file::open_at(Some(dir), &name, Open::New)?;
    let made = file::set_len(file.as_fd(), CONTROL_LEN)
        .and_then(|()| file::allocate(file.as_fd(), 0..CONTROL_LEN))
        .and_then(|()| file::write_at(file.as_fd(), &encode_control(), 0))
        .and_then(|()| file::sync(file.as_fd()))
        .and_then(|()| file::publish_at(Some(dir), &name, NAME));
    if made.is_err() {
        let _ = file::unlink_at(Some(dir), &name);
    }
    made
}

fn replace_damaged(dir: BorrowedFd<'_>, damaged: &OwnedFd) -> io::Result<()> {
    let (now, then) = (file::stat_at(Some(dir), NAME)?, file::stat(damaged.as_fd())?);
    if (now.device, now.inode) == (then.device, then.inode) {
        file::unlink_at(Some(dir), NAME)?;
    }
    Ok(())
}

/// A name that nobody opens, for a file that is being filled in.
pub(crate) fn temporary_name(random: &[u8; 16]) -> std::ffi::CString {
    named(random, "tmp")
}

/// `<32 hexadecimal digits>.<ending>`.
pub(crate) fn named(random: &[u8; 16], ending: &str) -> std::ffi::CString {
    let mut name = hex(random);
    name.push('.');
    name.push_str(ending);
    std::ffi::CString::new(name).unwrap_or_default()
}

pub(crate) fn hex(bytes: &[u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
