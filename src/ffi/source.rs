//! A table of C callbacks as a [`Source`].

use super::boundary::Sized_;
use crate::error::{Error, Result, SourceError};
use crate::source::{Connection, DEFAULT_CONNECTIONS, Source};
use crate::sync::{AtomicBool, Ordering};
use crate::sys::fork;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

/// nearfile_source.flags: read_at keeps no state of its own, so a forked child may use the parent's connection.
pub const NEARFILE_SOURCE_FORK_SAFE: u32 = 1;

/// A way to read a remote file: read_at, or read and seek; the rest may be NULL.
///
/// Callbacks return 0, or a code of their own, which nearfile_error.source_code passes on. They may run on any thread that reads and, where
/// there is an open, max_connections is more than 1 or read_at is NEARFILE_SOURCE_FORK_SAFE, on threads of the library's own, unless the
/// file was opened with NEARFILE_READAHEAD_OFF. They must not longjmp, fork, or read the same file through nearfile. A C++ exception
/// passes through to the C++ caller of the read; on a thread of the library's own nobody catches it, and the process ends. *out_len holds a value that is refused before each call, so a callback that forgets it stores nothing.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct nearfile_source {
    /// sizeof(nearfile_source), set by the caller.
    pub struct_size: usize,
    /// NEARFILE_SOURCE_FORK_SAFE, or 0.
    pub flags: u32,
    /// The most connections open at once in one process. 0: 16 for read_at; 1 for read and seek. 1: callbacks never overlap. Read
    /// and seek without open have 1 whatever is asked.
    pub max_connections: u32,
    /// What open and release are given, and every other callback where there is no open.
    pub user_data: *mut c_void,
    /// Opens a connection: one socket, one FILE *. Called when first needed, in each process that needs one. A connection is used by
    /// one call at a time. NULL: the connection is user_data, on which read_at may run on several threads at once.
    pub open: Option<unsafe extern "C-unwind" fn(user_data: *mut c_void, out_connection: *mut *mut c_void) -> i32>,
    /// Reads up to len bytes (at least 1) at offset into buf and sets *out_len. Fewer is fine and is read on; 0 is an error.
    pub read_at: Option<
        unsafe extern "C-unwind" fn(connection: *mut c_void, offset: u64, buf: *mut c_void, len: usize, out_len: *mut usize) -> i32,
    >,
    /// Reads up to len bytes where seek went, likewise.
    pub read:
        Option<unsafe extern "C-unwind" fn(connection: *mut c_void, buf: *mut c_void, len: usize, out_len: *mut usize) -> i32>,
    /// Moves by whence (NEARFILE_SEEK_...) and sets *out_position, bytes from the start.
    pub seek: Option<unsafe extern "C-unwind" fn(connection: *mut c_void, offset: i64, whence: i32, out_position: *mut u64) -> i32>,
    /// Closes a connection that open made, in the process that opened it.
    pub close: Option<unsafe extern "C-unwind" fn(connection: *mut c_void)>,
    /// Called once, in the process that gave the source to nearfile_open, when the last file over it is closed. Not called where
    /// nearfile_open failed: user_data is the caller's still.
    pub release: Option<unsafe extern "C-unwind" fn(user_data: *mut c_void)>,
    /// Sets *out_size, bytes. Asked for NEARFILE_SIZE_UNKNOWN only; NULL: seek to the end is asked instead.
    pub size: Option<unsafe extern "C-unwind" fn(connection: *mut c_void, out_size: *mut u64) -> i32>,
}

// SAFETY: repr(C), begins with its size; zero is None for function pointers and null for the rest.
unsafe impl Sized_ for nearfile_source {
    const NAME: &'static str = "nearfile_source";
}

/// The callbacks of one nearfile_open.
pub(super) struct Callbacks {
    table: nearfile_source,
    made_in: u32,
    /// Set once the library owns user_data.
    owned: Arc<AtomicBool>,
}

// SAFETY: the header says on which threads callbacks run; user_data is the program's to make fit for that.
unsafe impl Send for Callbacks {}
// SAFETY: as above.
unsafe impl Sync for Callbacks {}

impl Callbacks {
    /// Checks a table. What it is given to is not released before `owned` is set.
    pub(super) fn new(table: nearfile_source, owned: Arc<AtomicBool>) -> Result<Callbacks> {
        if table.flags & !NEARFILE_SOURCE_FORK_SAFE != 0 {
            return Err(Error::Argument(format!("nearfile_source.flags {:#x} has bits that are none", table.flags)));
        }
        if table.read_at.is_none() && (table.read.is_none() || table.seek.is_none()) {
            return Err(Error::Argument("nearfile_source has neither read_at nor both read and seek".into()));
        }
        Ok(Callbacks { table, made_in: fork::generation(), owned })
    }
}

impl Source for Callbacks {
    fn connect(&self) -> std::result::Result<Box<dyn Connection>, SourceError> {
        let mut connection = self.table.user_data;
        if let Some(open) = self.table.open {
            connection = ptr::null_mut();
            // SAFETY: the program's callback, as it was registered.
            let code = unsafe { open(self.table.user_data, &raw mut connection) };
            check(code, "open")?;
        }
        Ok(Box::new(Opened { table: self.table, connection }))
    }

    fn max_connections(&self) -> u32 {
        match (self.table.max_connections, self.table.read_at.is_some(), self.table.open.is_some()) {
            (_, false, false) | (0, false, true) => 1,
            (0, true, _) => DEFAULT_CONNECTIONS,
            (most, _, _) => most,
        }
    }

    fn runs_on_workers(&self) -> bool {
        // user_data as the connection, and not a word of more than one or of no state: it may belong to the thread that reads.
        self.table.open.is_some() || self.table.max_connections > 1 || self.table.flags & NEARFILE_SOURCE_FORK_SAFE != 0
    }

    fn connects_after_fork(&self) -> bool {
        self.table.open.is_some() || self.table.flags & NEARFILE_SOURCE_FORK_SAFE != 0
    }
}

impl Drop for Callbacks {
    fn drop(&mut self) {
        if let Some(release) = self.table.release {
            if self.owned.load(Ordering::Acquire) && self.made_in == fork::generation() {
                // SAFETY: the program's callback; nothing of the library uses user_data any more.
                unsafe { release(self.table.user_data) };
            }
        }
    }
}

/// One connection: what open made, or user_data.
struct Opened {
    table: nearfile_source,
    connection: *mut c_void,
}

// SAFETY: used by one call at a time; the header says that threads may differ.
unsafe impl Send for Opened {}

fn check(code: i32, callback: &str) -> std::result::Result<(), SourceError> {
    if code == 0 { Ok(()) } else { Err(SourceError::new(code.into(), format!("the source's {callback} returned {code}"))) }
}

impl Opened {
    fn seek(&self, offset: i64, whence: i32) -> std::result::Result<u64, SourceError> {
        let Some(seek) = self.table.seek else { return Err(SourceError::new(0, "the source has no seek")) };
        let mut position = u64::MAX;
        // SAFETY: the program's callback, on its connection.
        check(unsafe { seek(self.connection, offset, whence, &raw mut position) }, "seek")?;
        if i64::try_from(position).is_err() {
            return Err(SourceError::new(0, "the source's seek returned 0 and did not set *out_position"));
        }
        Ok(position)
    }
}

impl Connection for Opened {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> std::result::Result<usize, SourceError> {
        let mut len = usize::MAX;
        let (into, room) = (buf.as_mut_ptr().cast(), buf.len());
        if let Some(read_at) = self.table.read_at {
            // SAFETY: the program's callback, on its connection, with `room` bytes of ours.
            check(unsafe { read_at(self.connection, offset, into, room, &raw mut len) }, "read_at")?;
        } else if let Some(read) = self.table.read {
            let target = i64::try_from(offset).map_err(|_| SourceError::new(0, "an offset above 2^63"))?;
            let position = self.seek(target, super::file::NEARFILE_SEEK_SET)?;
            if position != offset {
                return Err(SourceError::new(0, format!("the source's seek to {offset} went to {position}")));
            }
            // SAFETY: as above.
            check(unsafe { read(self.connection, into, room, &raw mut len) }, "read")?;
        }
        if len == usize::MAX {
            return Err(SourceError::new(0, "the source's read returned 0 and did not set *out_len"));
        }
        Ok(len)
    }

    fn size(&mut self) -> std::result::Result<u64, SourceError> {
        let Some(size) = self.table.size else {
            if self.table.seek.is_none() {
                return Err(SourceError::new(0, "the size is NEARFILE_SIZE_UNKNOWN, and the source has neither size nor seek"));
            }
            return self.seek(0, super::file::NEARFILE_SEEK_END);
        };
        let mut bytes = u64::MAX;
        // SAFETY: the program's callback, on its connection.
        check(unsafe { size(self.connection, &raw mut bytes) }, "size")?;
        if i64::try_from(bytes).is_err() {
            return Err(SourceError::new(0, format!("the source's size returned 0 and set *out_size to {bytes}, or not at all")));
        }
        Ok(bytes)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let (Some(_), Some(close)) = (self.table.open, self.table.close) {
            // SAFETY: the program's callback, on a connection that its open made in this process.
            unsafe { close(self.connection) };
        }
    }
}
