//! The one gate: sized structs in and out, strings in, results to statuses, the thread's last failure, the panic hook.

use crate::error::{Error, Result, shield};
use crate::ffi::status::{nearfile_error, nearfile_status};
use crate::log::{Level, say};
use crate::sync::{AtomicBool, Ordering};
use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::mem;
use std::ptr;

/// Structs that begin with their own size, filled by a caller of whatever version.
///
/// # Safety
/// `repr(C)`, first field `struct_size: usize`, and all zeros are a valid value.
pub(super) unsafe trait Sized_: Copy {
    const NAME: &'static str;
}

/// More than any version of a struct will have: a larger `struct_size` was never set.
const LARGEST_STRUCT: usize = 4096;

fn check_struct_size<T: Sized_>(size: usize) -> Result<usize> {
    if (size_of::<usize>()..=LARGEST_STRUCT).contains(&size) {
        return Ok(size);
    }
    let name = T::NAME;
    Err(Error::Argument(format!("{name}.struct_size is {size}: set it to sizeof({name})")))
}

/// Copies a caller's struct: what an older caller has not got is zero, what a newer one has on top must be.
///
/// # Safety
/// `from` is null or points to as many bytes as its first field says.
pub(super) unsafe fn copy_in<T: Sized_>(from: *const T) -> Result<Option<T>> {
    if from.is_null() {
        return Ok(None);
    }
    // SAFETY: every such struct begins with its size.
    let size = check_struct_size::<T>(unsafe { from.cast::<usize>().read() })?;
    let ours = size_of::<T>();
    // SAFETY: the caller has `size` bytes there.
    let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), size) };
    if bytes.iter().skip(ours).any(|&byte| byte != 0) {
        return Err(Error::Unsupported(format!(
            "{} has fields that this version of nearfile does not know; set them to zero",
            T::NAME
        )));
    }
    // SAFETY: all zeros are valid for such structs.
    let mut value: T = unsafe { mem::zeroed() };
    // SAFETY: both have that many bytes.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut value).cast::<u8>(), size.min(ours)) };
    Ok(Some(value))
}

/// Fills a caller's struct as far as it goes; its `struct_size` stays.
///
/// # Safety
/// `to` is null or points to as many writable bytes as its first field says.
pub(super) unsafe fn copy_out<T: Sized_>(mut value: T, to: *mut T) -> Result<()> {
    if to.is_null() {
        return Err(Error::Argument(format!("the {} to fill is NULL", T::NAME)));
    }
    // SAFETY: every such struct begins with its size.
    let size = check_struct_size::<T>(unsafe { to.cast::<usize>().read() })?;
    // SAFETY: the first field is the size, and `to` has that many bytes.
    unsafe {
        (&raw mut value).cast::<usize>().write(size);
        ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), to.cast::<u8>(), size.min(size_of::<T>()));
    }
    Ok(())
}

/// A caller's string, as bytes.
///
/// # Safety
/// Null, or terminated and unchanged while in use.
pub(super) unsafe fn bytes<'a>(string: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: by the caller.
    (!string.is_null()).then(|| unsafe { CStr::from_ptr(string) }.to_bytes())
}

/// A caller's buffer.
///
/// # Safety
/// `buf` has `len` writable bytes, or `len` is 0.
pub(super) unsafe fn buffer<'a>(buf: *mut std::ffi::c_void, len: usize) -> Result<&'a mut [u8]> {
    if len == 0 {
        return Ok(&mut []);
    }
    if buf.is_null() {
        return Err(Error::Argument(format!("buf is NULL, and {len} bytes are asked for")));
    }
    if isize::try_from(len).is_err() {
        return Err(Error::Argument(format!("len {len} is more than a buffer can have")));
    }
    // SAFETY: by the caller; what is in it is never read.
    Ok(unsafe { std::slice::from_raw_parts_mut(buf.cast(), len) })
}

/// A handle that must be there.
pub(super) fn given<'a, T>(handle: Option<&'a T>, name: &str) -> Result<&'a T> {
    handle.ok_or_else(|| Error::Argument(format!("{name} is NULL")))
}

/// A place for a result that must be there.
///
/// # Safety
/// `out` is null or writable.
pub(super) unsafe fn put<T>(out: *mut T, value: T, name: &str) -> Result<()> {
    if out.is_null() {
        return Err(Error::Argument(format!("{name} is NULL")));
    }
    // SAFETY: by the caller; what was there is not dropped, as it may be uninitialised.
    unsafe { out.write(value) };
    Ok(())
}

struct Failure {
    status: i32,
    os_errno: i32,
    source_code: i64,
    message: String,
}

thread_local! {
    static LAST: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

pub(super) fn status_of(error: &Error) -> nearfile_status {
    use nearfile_status as S;
    match error {
        Error::Argument(_) => S::NEARFILE_ERROR_ARGUMENT,
        Error::Io { .. } => S::NEARFILE_ERROR_IO,
        Error::Source(_) => S::NEARFILE_ERROR_SOURCE,
        Error::ShortSource { .. } => S::NEARFILE_ERROR_SHORT_SOURCE,
        Error::Frozen(_) => S::NEARFILE_ERROR_FROZEN,
        Error::Forked => S::NEARFILE_ERROR_FORKED,
        Error::Exists(_) => S::NEARFILE_ERROR_EXISTS,
        Error::Cancelled => S::NEARFILE_ERROR_CANCELLED,
        Error::Unsupported(_) => S::NEARFILE_ERROR_UNSUPPORTED,
        Error::NoMemory(_) => S::NEARFILE_ERROR_NO_MEMORY,
        Error::Internal(_) => S::NEARFILE_ERROR_INTERNAL,
    }
}

/// Remembers a failure for `nearfile_last_error` and returns its status.
fn fail(error: &Error) -> i32 {
    let os_errno = match error {
        Error::Io { cause, .. } => cause.raw_os_error().unwrap_or(0),
        _ => 0,
    };
    let source_code = match error {
        Error::Source(error) => error.code,
        _ => 0,
    };
    let status = status_of(error) as i32;
    let failure = Failure { status, os_errno, source_code, message: error.to_string() };
    // A thread that is ending has no last error any more.
    let _ = LAST.try_with(|last| last.borrow_mut().replace(failure));
    status
}

/// 0 or a status.
pub(super) fn status(result: Result<()>) -> i32 {
    result.map_or_else(|error| fail(&error), |()| 0)
}

/// A count or a status.
#[inline(always)]
pub(super) fn count(result: Result<u64>) -> i64 {
    let small = |value| i64::try_from(value).map_err(|_| Error::Internal("a count above 2^63".into()));
    result.and_then(small).unwrap_or_else(|error| fail(&error).into())
}

/// Runs what cannot call back.
pub(super) fn shielded<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    quiet_panics();
    shield(call)
}

/// A panic of ours is a line in the log and a status; it does not print into the program's output.
pub(super) fn quiet_panics() {
    // No `Once`: a child may be forked while another thread is in it.
    static DONE: AtomicBool = AtomicBool::new(false);
    // In a test build the hook belongs to the test runner.
    if !cfg!(test) && !DONE.load(Ordering::Relaxed) && !DONE.swap(true, Ordering::AcqRel) {
        std::panic::set_hook(Box::new(|panic| say(Level::Error, || panic.to_string())));
    }
}

pub(super) fn last_error() -> nearfile_error {
    let mut error = nearfile_error { struct_size: 0, status: 0, os_errno: 0, source_code: 0, message: [0; 256] };
    let _ = LAST.try_with(|last| {
        if let Some(failure) = &*last.borrow() {
            error.status = failure.status;
            error.os_errno = failure.os_errno;
            error.source_code = failure.source_code;
            write_message(&failure.message, &mut error.message);
        }
    });
    error
}

/// As much of a sentence as fits, cut between characters, always terminated.
fn write_message(message: &str, to: &mut [c_char; 256]) {
    let mut end = message.len().min(to.len() - 1);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    for (to, byte) in to.iter_mut().zip(message[..end].bytes().filter(|&byte| byte != 0)) {
        *to = byte as c_char;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::status::nearfile_stats;

    #[test]
    fn an_older_and_a_newer_caller_are_understood() {
        let mut room = [0_usize; 64];
        room[0] = 16;
        room[1] = 7;
        room[2] = 9; // beyond what the older caller says it has
        // SAFETY: 64 words of room.
        let older = unsafe { copy_in(room.as_ptr().cast::<nearfile_stats>()) };
        assert!(matches!(older, Ok(Some(stats)) if stats.hits == 7 && stats.misses == 0));
        room[0] = size_of::<nearfile_stats>() + 8;
        // SAFETY: as above.
        assert!(matches!(unsafe { copy_in(room.as_ptr().cast::<nearfile_stats>()) }, Ok(Some(_))));
        room[size_of::<nearfile_stats>() / 8] = 1;
        // SAFETY: as above.
        assert!(matches!(unsafe { copy_in(room.as_ptr().cast::<nearfile_stats>()) }, Err(Error::Unsupported(_))));
        for wrong in [0, 1, 4097, usize::MAX] {
            room[0] = wrong;
            // SAFETY: refused before anything but the size is read.
            assert!(matches!(unsafe { copy_in(room.as_ptr().cast::<nearfile_stats>()) }, Err(Error::Argument(_))));
        }
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let mut to = [0; 256];
        write_message(&"é".repeat(200), &mut to);
        assert_eq!((to[253], to[254], to[255]), (0xa9_u8 as c_char, 0, 0));
    }
}
