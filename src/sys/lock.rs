//! Byte-range locks that belong to an open file description (`F_OFD_SETLK`): threads and processes exclude each other alike when
//! each has a description of its own, and the kernel frees a lock when the last descriptor of its description is gone.

use super::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Shared,
    Exclusive,
}

fn request(kind: libc::c_int, first: u64, count: u64) -> libc::flock {
    // SAFETY: a struct of integers; F_OFD calls want l_pid 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // Both are below 2^63 by how the callers number their bytes.
    lock.l_start = first as libc::off_t;
    lock.l_len = count as libc::off_t;
    lock
}

fn raw_kind(kind: Kind) -> libc::c_int {
    match kind {
        Kind::Shared => libc::F_RDLCK,
        Kind::Exclusive => libc::F_WRLCK,
    }
}

/// Locks `count` bytes from `first` without waiting; `false` where another description holds one of them.
/// On a range that this description holds already the kind is changed, in one step.
pub(crate) fn try_lock(file: BorrowedFd<'_>, kind: Kind, first: u64, count: u64) -> io::Result<bool> {
    let lock = request(raw_kind(kind), first, count);
    // SAFETY: a valid request.
    match check("fcntl lock", || unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn unlock(file: BorrowedFd<'_>, first: u64, count: u64) -> io::Result<()> {
    let lock = request(libc::F_UNLCK, first, count);
    // SAFETY: a valid request.
    check("fcntl unlock", || unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }).map(drop)
}

/// Lets go of everything that is locked on a description.
pub(crate) fn unlock_all(file: BorrowedFd<'_>) -> io::Result<()> {
    unlock(file, 0, 0) // a length of 0 reaches to the end of all offsets
}

/// A lock of another description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// First and last byte.
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) kind: Kind,
}

/// Some lock that keeps an exclusive lock on `count` bytes from `first` away; `None` where nothing does any more.
pub(crate) fn holder(file: BorrowedFd<'_>, first: u64, count: u64) -> io::Result<Option<Holder>> {
    let mut lock = request(libc::F_WRLCK, first, count);
    // SAFETY: a valid request, which the call overwrites.
    check("fcntl getlk", || unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) })?;
    if lock.l_type == libc::F_UNLCK as libc::c_short {
        return Ok(None);
    }
    let first = lock.l_start as u64;
    let last = if lock.l_len == 0 { u64::MAX } else { first + lock.l_len as u64 - 1 };
    let kind = if lock.l_type == libc::F_RDLCK as libc::c_short { Kind::Shared } else { Kind::Exclusive };
    Ok(Some(Holder { first, last, kind }))
}
