//! The only room that talks to the system: files, locks, maps, holes, the fork word. One file per concern.
//! Everything that a test may want to make fail goes through here.
#![allow(unsafe_code, reason = "system calls")]

#[cfg(test)]
pub(crate) mod fault;
pub(crate) mod file;
pub(crate) mod fork;
pub(crate) mod futex;
mod lineage;
pub(crate) mod lock;
pub(crate) mod map;
mod signal;
pub(crate) mod spare;
pub(crate) mod thread;

use std::io;

/// What a system call returns; -1 says that it failed.
trait Value: Copy + PartialEq {
    const FAILED: Self;
}

impl Value for i32 {
    const FAILED: i32 = -1;
}

impl Value for i64 {
    const FAILED: i64 = -1;
}

impl Value for isize {
    const FAILED: isize = -1;
}

impl Value for *mut libc::c_void {
    const FAILED: *mut libc::c_void = libc::MAP_FAILED;
}

/// The value of a system call, or its errno; tried again where a signal came between. Tests make it fail, by name.
fn check<T: Value>(name: &'static str, mut call: impl FnMut() -> T) -> io::Result<T> {
    loop {
        let value = fault::attempt(name, &mut call);
        if value != T::FAILED {
            return Ok(value);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The same for calls that move up to `len` bytes, and return how many.
#[inline(always)]
fn check_len(name: &'static str, len: usize, mut call: impl FnMut(usize) -> libc::ssize_t) -> io::Result<usize> {
    check(name, || call(fault::cut(len))).map(isize::unsigned_abs)
}

#[cfg(not(test))]
mod fault {
    pub(super) fn attempt<T>(_name: &'static str, call: impl FnOnce() -> T) -> T {
        call()
    }

    pub(super) fn cut(len: usize) -> usize {
        len
    }
}

/// An offset as the system takes it. Offsets are below 2^63 by the checks at open; a larger one is an error, not a wrap.
fn offset(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}
