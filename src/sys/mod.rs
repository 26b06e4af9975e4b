//! The only room that talks to the system: files, locks, maps, holes, the fork word. One file per concern.
//! Everything that a test may want to make fail goes through here.
#![allow(unsafe_code, reason = "system calls")]

pub(crate) mod file;
pub(crate) mod fork;
pub(crate) mod futex;
mod lineage;
pub(crate) mod lock;
pub(crate) mod map;
mod signal;
pub(crate) mod spare;

use std::io;

/// The value of a system call, or its errno; tried again where a signal came between.
fn check(call: impl FnMut() -> libc::c_int) -> io::Result<libc::c_int> {
    let mut call = call;
    loop {
        let value = call();
        if value >= 0 {
            return Ok(value);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The same for calls that return a length.
fn check_len(call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    let mut call = call;
    loop {
        let value = call();
        if value >= 0 {
            return Ok(value.unsigned_abs());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// An offset as the system takes it. Offsets are below 2^63 by the checks at open; a larger one is an error, not a wrap.
fn offset(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}
