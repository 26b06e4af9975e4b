//! Statuses, the last error, the version, the log; the structs of numbers.

use super::boundary::{self, Sized_, copy_out, quiet_panics, shielded, status};
use crate::error::Error;
use crate::log::{self, Level};
use crate::stats::Stats;
use std::ffi::{CString, c_char, c_void};

/// Version of this header: major.
pub const NEARFILE_VERSION_MAJOR: u32 = 0;
/// Version of this header: minor. While major is 0, another minor may change the ABI.
pub const NEARFILE_VERSION_MINOR: u32 = 1;
/// Version of this header: patch.
pub const NEARFILE_VERSION_PATCH: u32 = 0;

/// No lines.
pub const NEARFILE_LOG_OFF: i32 = 0;
/// A defect of the library.
pub const NEARFILE_LOG_ERROR: i32 = 1;
/// The cache could not do its work; reads go on from the source.
pub const NEARFILE_LOG_WARN: i32 = 2;
/// Something worth knowing once.
pub const NEARFILE_LOG_INFO: i32 = 3;
/// What the library is doing.
pub const NEARFILE_LOG_DEBUG: i32 = 4;

/// What functions return: 0 or more is success. The numbers never change and are never reused.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum nearfile_status {
    /// Done.
    NEARFILE_OK = 0,
    /// An argument is out of its range; nearfile_last_error says which, and what would do.
    NEARFILE_ERROR_ARGUMENT = -1,
    /// The operating system refused something that has no way around it; os_errno tells.
    NEARFILE_ERROR_IO = -2,
    /// A callback of the source failed (source_code is what it returned) or returned what cannot be.
    NEARFILE_ERROR_SOURCE = -3,
    /// The source ended before the size given at open.
    NEARFILE_ERROR_SHORT_SOURCE = -4,
    /// A frozen file misses the bytes.
    NEARFILE_ERROR_FROZEN = -5,
    /// A forked child needs a connection, and the source has no open.
    NEARFILE_ERROR_FORKED = -6,
    /// A path is taken.
    NEARFILE_ERROR_EXISTS = -7,
    /// The program's own progress callback ended it.
    NEARFILE_ERROR_CANCELLED = -8,
    /// This version does not have it.
    NEARFILE_ERROR_UNSUPPORTED = -9,
    /// Not enough memory.
    NEARFILE_ERROR_NO_MEMORY = -10,
    /// A defect in nearfile: please report it.
    NEARFILE_ERROR_INTERNAL = -99,
}

/// This thread's last failure.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct nearfile_error {
    /// sizeof(nearfile_error), set by the caller.
    pub struct_size: usize,
    /// A nearfile_status; 0 where nothing has failed on this thread.
    pub status: i32,
    /// The system's errno; 0 where it had none.
    pub os_errno: i32,
    /// What the source's callback returned; 0 where none failed.
    pub source_code: i64,
    /// One sentence, UTF-8, terminated, cut to fit.
    pub message: [c_char; 256],
}

// SAFETY: repr(C), begins with its size, integers only.
unsafe impl Sized_ for nearfile_error {
    const NAME: &'static str = "nearfile_error";
}

/// Numbers of a file (this process's) or of a cache (of all processes, since the directory was made).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct nearfile_stats {
    /// sizeof(nearfile_stats), set by the caller.
    pub struct_size: usize,
    /// Reads of which every page was present.
    pub hits: u64,
    /// Reads of which at least one page was not.
    pub misses: u64,
    /// Reads that waited for another's fetch.
    pub waits: u64,
    /// Bytes asked for, within the file.
    pub bytes_asked: u64,
    /// Bytes given.
    pub bytes_served: u64,
    /// Calls of the source's read_at or read.
    pub source_reads: u64,
    /// Bytes that those gave.
    pub source_bytes: u64,
    /// Reads, sizes and opens of the source that failed.
    pub source_errors: u64,
    /// Pages stored.
    pub pages_fetched: u64,
    /// Pages whose checksum was compared with the mirror and matched.
    pub pages_verified: u64,
    /// Pages whose checksum did not match; they were fetched again.
    pub checksum_failures: u64,
    /// Reads that went to the source, wholly or in part, without being kept: a local fault or a stuck holder.
    pub passed_through: u64,
    /// Pages given up for others.
    pub pages_evicted: u64,
    /// Pages present now.
    pub cached_pages: u64,
    /// Bytes of those.
    pub cached_bytes: u64,
    /// The limit in force, bytes; 0: none.
    pub size_limit: u64,
}

// SAFETY: repr(C), begins with its size, integers only.
unsafe impl Sized_ for nearfile_stats {
    const NAME: &'static str = "nearfile_stats";
}

impl From<Stats> for nearfile_stats {
    fn from(stats: Stats) -> nearfile_stats {
        nearfile_stats {
            struct_size: 0,
            hits: stats.hits,
            misses: stats.misses,
            waits: stats.waits,
            bytes_asked: stats.bytes_asked,
            bytes_served: stats.bytes_served,
            source_reads: stats.source_reads,
            source_bytes: stats.source_bytes,
            source_errors: stats.source_errors,
            pages_fetched: stats.pages_fetched,
            pages_verified: stats.pages_verified,
            checksum_failures: stats.checksum_failures,
            passed_through: stats.passed_through,
            pages_evicted: stats.pages_evicted,
            cached_pages: stats.cached_pages,
            cached_bytes: stats.cached_bytes,
            size_limit: stats.size_limit,
        }
    }
}

/// The version of the library that runs: major << 16 | minor << 8 | patch.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_version() -> u32 {
    NEARFILE_VERSION_MAJOR << 16 | NEARFILE_VERSION_MINOR << 8 | NEARFILE_VERSION_PATCH
}

/// The version of the library that runs, "major.minor.patch". Never freed.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_version_string() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The name of a status, "NEARFILE_ERROR_IO"; "NEARFILE_UNKNOWN_STATUS" for a number that is none. Never NULL, never freed.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_status_name(status: i32) -> *const c_char {
    text_of(status).0.as_ptr()
}

/// What a status means, in one sentence. Never NULL, never freed. nearfile_last_error says more of one failure.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_status_message(status: i32) -> *const c_char {
    text_of(status).1.as_ptr()
}

fn text_of(status: i32) -> (&'static std::ffi::CStr, &'static std::ffi::CStr) {
    match status {
        0 => (c"NEARFILE_OK", c"done"),
        -1 => (c"NEARFILE_ERROR_ARGUMENT", c"an argument is out of its range"),
        -2 => (c"NEARFILE_ERROR_IO", c"the operating system refused an operation"),
        -3 => (c"NEARFILE_ERROR_SOURCE", c"the source failed"),
        -4 => (c"NEARFILE_ERROR_SHORT_SOURCE", c"the source ended before the size given at open"),
        -5 => (c"NEARFILE_ERROR_FROZEN", c"the bytes are not in a file that is frozen"),
        -6 => (c"NEARFILE_ERROR_FORKED", c"the source cannot be opened in a forked child"),
        -7 => (c"NEARFILE_ERROR_EXISTS", c"the path is taken"),
        -8 => (c"NEARFILE_ERROR_CANCELLED", c"cancelled by the program"),
        -9 => (c"NEARFILE_ERROR_UNSUPPORTED", c"this version of nearfile does not have it"),
        -10 => (c"NEARFILE_ERROR_NO_MEMORY", c"not enough memory"),
        -99 => (c"NEARFILE_ERROR_INTERNAL", c"a defect in nearfile, please report it"),
        _ => (c"NEARFILE_UNKNOWN_STATUS", c"not a status of this version of nearfile"),
    }
}

/// Copies this thread's last failure to *out_error, whose struct_size the caller has set. A success does not clear it.
/// Returns 0, or NEARFILE_ERROR_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nearfile_last_error(out_error: *mut nearfile_error) -> i32 {
    // SAFETY: the caller's struct, of the size that it says.
    let copied = shielded(|| unsafe { copy_out(boundary::last_error(), out_error) });
    copied.map_or_else(|error| boundary::status_of(&error) as i32, |()| 0)
}

/// Receives lines of the log: a level (NEARFILE_LOG_...) and one line of UTF-8, valid during the call. Called on any thread; must
/// not throw, and must not call nearfile.
pub type nearfile_log_callback = Option<unsafe extern "C-unwind" fn(user_data: *mut c_void, level: i32, message: *const c_char)>;

/// Sends lines of level 1 to max_level (NEARFILE_LOG_...) to callback, for the whole process; NULL or NEARFILE_LOG_OFF: to nobody,
/// as at first. The previous callback may still be running on another thread when this returns. Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_set_log(callback: nearfile_log_callback, user_data: *mut c_void, max_level: i32) -> i32 {
    status(shielded(|| {
        let level = match max_level {
            NEARFILE_LOG_OFF | NEARFILE_LOG_ERROR => Level::Error,
            NEARFILE_LOG_WARN => Level::Warn,
            NEARFILE_LOG_INFO => Level::Info,
            NEARFILE_LOG_DEBUG => Level::Debug,
            other => return Err(Error::Argument(format!("max_level {other} is not a NEARFILE_LOG_ level (0 to 4)"))),
        };
        quiet_panics();
        let receiver = callback.filter(|_| max_level != NEARFILE_LOG_OFF).map(|callback| Receiver { callback, user_data });
        log::set_log(
            level,
            receiver.map(|receiver| Box::new(move |level, line: &str| receiver.take(level, line)) as Box<log::Sink>),
        );
        Ok(())
    }))
}

struct Receiver {
    callback: unsafe extern "C-unwind" fn(*mut c_void, i32, *const c_char),
    user_data: *mut c_void,
}

// SAFETY: the header says that the callback is called on any thread.
unsafe impl Send for Receiver {}
// SAFETY: as above.
unsafe impl Sync for Receiver {}

impl Receiver {
    fn take(&self, level: Level, line: &str) {
        let line = CString::new(line.replace('\0', " ")).unwrap_or_default();
        // SAFETY: the program's callback, with what it was registered with.
        unsafe { (self.callback)(self.user_data, level as i32, line.as_ptr()) };
    }
}
