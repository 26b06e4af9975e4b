//! `nearfile_file`: a file as a C program sees it.

use super::boundary::{Sized_, buffer, bytes, copy_in, copy_out, count, given, put, quiet_panics, shielded, status, status_of};
use super::cache::nearfile_cache;
use super::source::{Callbacks, nearfile_source};
use super::status::nearfile_stats;
use crate::error::{Error, Result};
use crate::file::{File, RangeRead};
use crate::options::Options;
use crate::source::Source;
use crate::sync::{AtomicBool, Ordering};
use std::ffi::{CString, OsStr, c_char, c_void};
use std::io::SeekFrom;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

/// nearfile_options.size: asked of the source at open.
pub const NEARFILE_SIZE_UNKNOWN: u64 = u64::MAX;
/// nearfile_options.mode: whole pages are fetched and kept.
pub const NEARFILE_PAGED: u32 = 0;
/// nearfile_options.mode: only the bytes asked for and not there yet are read and kept, to the byte. Private only: no key, no paths. A
/// forked child starts its own copy.
pub const NEARFILE_EXACT: u32 = 1;
/// nearfile_options.flags: copy hits from a map of the near copy: no system call a hit. The one danger: a disk error under the map, or
/// a truncation of the near copy by the same user, is then a SIGBUS, which reads survive without this flag. Ignored, with a line in
/// the log, on tmpfs; ignored in exact mode.
pub const NEARFILE_MAP: u32 = 1;
/// nearfile_options.flags: a miss is NEARFILE_ERROR_FROZEN, and nothing is given up while the file is open. With data_path and
/// index_path no source is needed, and they may lie where nothing can be written.
pub const NEARFILE_FROZEN: u32 = 2;
/// nearfile_options.flags: compare a page's checksum at every hit, not at its first of a session; for disks that are not trusted.
pub const NEARFILE_VERIFY_ALWAYS: u32 = 4;
/// nearfile_options.flags: do not compare pages of a session that was opened after a clean close.
pub const NEARFILE_TRUST_CLEAN: u32 = 8;
/// nearfile_options.flags: read nothing ahead, and call the source on the thread that reads only.
pub const NEARFILE_READAHEAD_OFF: u32 = 16;
const KNOWN_FLAGS: u32 = NEARFILE_MAP | NEARFILE_FROZEN | NEARFILE_VERIFY_ALWAYS | NEARFILE_TRUST_CLEAN | NEARFILE_READAHEAD_OFF;
/// nearfile_prefetch flags: return at once; the library's own threads fetch. What is not done when the file is closed is left.
pub const NEARFILE_PREFETCH_NOWAIT: u32 = 1;
/// From the start of the file, as SEEK_SET.
pub const NEARFILE_SEEK_SET: i32 = 0;
/// From the position, as SEEK_CUR.
pub const NEARFILE_SEEK_CUR: i32 = 1;
/// From the end of the file, as SEEK_END.
pub const NEARFILE_SEEK_END: i32 = 2;

/// An open near copy. Used from any thread and in children forked after it was opened; one position a handle.
pub struct nearfile_file {
    pub(super) file: File,
    data_path: Option<CString>,
    index_path: Option<CString>,
}

/// Which file, and how it is read. Zero means the default, but for size.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct nearfile_options {
    /// sizeof(nearfile_options), set by the caller.
    pub struct_size: usize,
    /// What names the remote file, 1 to 4,096 bytes, terminated. NULL: private, gone at close.
    pub key: *const c_char,
    /// What names its content (an ETag, a generation), up to 1,024 bytes. Another version is another near copy. NULL: "".
    pub version: *const c_char,
    /// Bytes, at most 2^63 - 1. 0 is an empty file. NEARFILE_SIZE_UNKNOWN: asked of the source.
    pub size: u64,
    /// Bytes a page, 1 to 1 GiB; 0: the cache's. A near copy that exists keeps its own (nearfile_page_size).
    pub page_size: u64,
    /// The most bytes kept of this file by reads of this handle; 0: no limit of its own. What happens then is the cache's when_full.
    pub size_limit: u64,
    /// NEARFILE_PAGED, NEARFILE_EXACT.
    pub mode: u32,
    /// NEARFILE_MAP, NEARFILE_FROZEN, NEARFILE_VERIFY_ALWAYS, NEARFILE_TRUST_CLEAN, NEARFILE_READAHEAD_OFF.
    pub flags: u32,
    /// With index_path: the mirror at a path of the program's choice, made if neither exists. Both or neither.
    pub data_path: *const c_char,
    /// With data_path: its index.
    pub index_path: *const c_char,
}

// SAFETY: repr(C), begins with its size; zero is null for pointers.
unsafe impl Sized_ for nearfile_options {
    const NAME: &'static str = "nearfile_options";
}

/// # Safety
/// The strings are null or terminated.
unsafe fn convert(options: &nearfile_options) -> Result<Options> {
    if options.flags & !KNOWN_FLAGS != 0 {
        return Err(Error::Argument(format!(
            "nearfile_options.flags {:#x} has bits that this version does not know",
            options.flags
        )));
    }
    if !matches!(options.mode, NEARFILE_PAGED | NEARFILE_EXACT) {
        return Err(Error::Argument(format!("nearfile_options.mode {} is none of 0 (PAGED), 1 (EXACT)", options.mode)));
    }
    let path = |path: &[u8]| PathBuf::from(OsStr::from_bytes(path));
    // SAFETY: by the caller.
    let (key, version, data, index) =
        unsafe { (bytes(options.key), bytes(options.version), bytes(options.data_path), bytes(options.index_path)) };
    let paths = match (data, index) {
        (Some(data), Some(index)) => Some((path(data), path(index))),
        (None, None) => None,
        _ => return Err(Error::Argument("data_path and index_path: give both or neither".into())),
    };
    Ok(Options {
        key: key.map(<[u8]>::to_vec),
        version: version.unwrap_or_default().to_vec(),
        size: (options.size != NEARFILE_SIZE_UNKNOWN).then_some(options.size),
        page_size: options.page_size,
        verify_always: options.flags & NEARFILE_VERIFY_ALWAYS != 0,
        trust_clean: options.flags & NEARFILE_TRUST_CLEAN != 0,
        map: options.flags & NEARFILE_MAP != 0,
        size_limit: options.size_limit,
        exact: options.mode == NEARFILE_EXACT,
        readahead_off: options.flags & NEARFILE_READAHEAD_OFF != 0,
        frozen: options.flags & NEARFILE_FROZEN != 0,
        paths,
    })
}

fn handle(file: File) -> *mut nearfile_file {
    let terminated = |path: Option<&Path>| path.and_then(|path| CString::new(path.as_os_str().as_bytes()).ok());
    let (data_path, index_path) = (terminated(file.data_path()), terminated(file.index_path()));
    Box::into_raw(Box::new(nearfile_file { file, data_path, index_path }))
}

/// Opens the near copy of a remote file and sets *out_file; on failure to NULL, and source->user_data stays the caller's.
///
/// source may be NULL with NEARFILE_FROZEN, data_path and index_path. The tables and strings are copied. Nothing is read from the source, but its size if that is unknown. cache may be NULL with
/// data_path and index_path. What stands in the way of a near copy (a full disk, a foreign file of the same name) is no failure:
/// the file is then cached for this process alone or read from the source, and the log says so. Ended by nearfile_close.
/// Threads: any. Calls source->open and size or seek where the size is unknown.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn nearfile_open(
    cache: Option<&nearfile_cache>,
    source: *const nearfile_source,
    options: *const nearfile_options,
    out_file: *mut *mut nearfile_file,
) -> i32 {
    quiet_panics();
    let open = || {
        // SAFETY: the caller's pointers, as the header wants them.
        let (table, options) = unsafe {
            put(out_file, ptr::null_mut(), "out_file")?;
            let table = copy_in(source)?;
            let options = copy_in(options)?.ok_or_else(|| Error::Argument("options is NULL: at least a size is needed".into()))?;
            (table, convert(&options)?)
        };
        let owned = Arc::new(AtomicBool::new(false));
        let source = match table {
            Some(table) => Some(Box::new(Callbacks::new(table, Arc::clone(&owned))?) as Box<dyn Source>),
            None => None,
        };
        let file = File::open_in(cache.map(|cache| &cache.cache), source, &options)?;
        owned.store(true, Ordering::Release);
        // SAFETY: as above.
        unsafe { put(out_file, handle(file), "out_file") }
    };
    status(open())
}

/// Opens another handle of the same file, at position 0, and sets *out_file. Ended by nearfile_close of its own. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nearfile_dup(file: Option<&nearfile_file>, out_file: *mut *mut nearfile_file) -> i32 {
    status(shielded(|| {
        // SAFETY: the caller's pointer.
        unsafe {
            put(out_file, ptr::null_mut(), "out_file")?;
            put(out_file, handle(given(file, "file")?.file.dup()), "out_file")
        }
    }))
}

/// Closes a handle; NULL does nothing. The last one of a file calls source->close and release, and the last one on the machine makes
/// the near copy durable, which takes as long as the disk does. No other call on the handle may be under way.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn nearfile_close(file: Option<Box<nearfile_file>>) {
    quiet_panics();
    drop(file);
}

/// The size of the remote file, bytes; or NEARFILE_ERROR_ARGUMENT.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_size(file: Option<&nearfile_file>) -> i64 {
    count(shielded(|| Ok(given(file, "file")?.file.size())))
}

/// Bytes a page, as the near copy has them; or NEARFILE_ERROR_ARGUMENT.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_page_size(file: Option<&nearfile_file>) -> i64 {
    count(shielded(|| Ok(given(file, "file")?.file.page_size())))
}

/// Where the mirror is: a sparse file of which only what nearfile_extent calls cached may be read. For a private file a path below
/// /proc/self/fd that this process can open. The file's, valid until it is closed; NULL where nothing is kept.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_data_path(file: Option<&nearfile_file>) -> *const c_char {
    file.and_then(|file| file.data_path.as_ref()).map_or(ptr::null(), |path| path.as_ptr())
}

/// Where the index is, likewise.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_index_path(file: Option<&nearfile_file>) -> *const c_char {
    file.and_then(|file| file.index_path.as_ref()).map_or(ptr::null(), |path| path.as_ptr())
}

/// Reads len bytes at the position into buf and moves it. Returns the bytes read: len, less only at the end of the file, 0 past it;
/// or a status, and the position stays. Threads that share the handle get parts that follow each other. Calls the source for what
/// is not present.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn nearfile_read(file: Option<&nearfile_file>, buf: *mut c_void, len: usize) -> i64 {
    let read = || {
        let file = given(file, "file")?;
        // SAFETY: the caller's buffer.
        file.file.read(unsafe { buffer(buf, len) }?).map(|n| n as u64)
    };
    count(read())
}

/// Moves the position by whence: NEARFILE_SEEK_SET, _CUR or _END. Past the end is fine, and reads there return 0. Returns the
/// position, or NEARFILE_ERROR_ARGUMENT, and it stays. Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_seek(file: Option<&nearfile_file>, offset: i64, whence: i32) -> i64 {
    count(shielded(|| {
        let file = given(file, "file")?;
        let to = match whence {
            NEARFILE_SEEK_SET => {
                SeekFrom::Start(u64::try_from(offset).map_err(|_| Error::Argument(format!("seek to {offset}, before the start")))?)
            }
            NEARFILE_SEEK_CUR => SeekFrom::Current(offset),
            NEARFILE_SEEK_END => SeekFrom::End(offset),
            other => return Err(Error::Argument(format!("whence {other} is none of 0 (SET), 1 (CUR), 2 (END)"))),
        };
        file.file.seek(to)
    }))
}

/// The position, bytes; or NEARFILE_ERROR_ARGUMENT.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_tell(file: Option<&nearfile_file>) -> i64 {
    count(shielded(|| Ok(given(file, "file")?.file.tell())))
}

/// Reads len bytes at offset into buf; the position does not matter and does not move. Returns the bytes read: len, less only at the
/// end of the file, 0 at or past it; or a status, and what is in buf is undefined. Calls the source for what is not present.
/// Threads: any, at once.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn nearfile_pread(file: Option<&nearfile_file>, buf: *mut c_void, len: usize, offset: u64) -> i64 {
    let read = || {
        let file = given(file, "file")?;
        // SAFETY: the caller's buffer.
        file.file.read_at(unsafe { buffer(buf, len) }?, offset).map(|n| n as u64)
    };
    count(read())
}

/// Sets *out_cached to 1 if the byte at offset is in the near copy, else 0, and *out_end to where that answer ends: a walk from 0 in
/// such steps, until out_end is the size, gives the whole picture. At or past the end: the size, and 0. Others may fetch and drop
/// pages meanwhile. Never calls the source. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nearfile_extent(
    file: Option<&nearfile_file>,
    offset: u64,
    out_end: *mut u64,
    out_cached: *mut i32,
) -> i32 {
    status(shielded(|| {
        let (end, cached) = given(file, "file")?.file.extent(offset)?;
        // SAFETY: the caller's pointers.
        unsafe {
            put(out_end, end, "out_end")?;
            put(out_cached, cached.into(), "out_cached")
        }
    }))
}

/// Drops the pages that lie wholly in len bytes from offset (a range up to the end holds the short last page whole) and gives their
/// space back, except pages that are pinned, frozen or being fetched just now. Reads of others go on and fetch what they miss. Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_discard(file: Option<&nearfile_file>, offset: u64, len: u64) -> i32 {
    status(shielded(|| given(file, "file")?.file.discard(offset..offset.saturating_add(len)).map(drop)))
}

/// Fills *out_stats, whose struct_size the caller has set, with this process's numbers of the file. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nearfile_get_stats(file: Option<&nearfile_file>, out_stats: *mut nearfile_stats) -> i32 {
    status(shielded(|| {
        let stats = given(file, "file")?.file.stats();
        // SAFETY: the caller's struct, of the size that it says.
        unsafe { copy_out(stats.into(), out_stats) }
    }))
}

/// One of a batch of reads.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct nearfile_range {
    /// Where to read, bytes from the start.
    pub offset: u64,
    /// Where to put it.
    pub buf: *mut c_void,
    /// Bytes to read.
    pub len: usize,
    /// Set: the bytes read, as nearfile_pread returns them.
    pub out_len: usize,
    /// Set: 0, or the status of this one.
    pub out_status: i32,
}

/// Reads count ranges, each as nearfile_pread does, and sets out_len and out_status of each; range_size is sizeof(nearfile_range). What
/// they miss is fetched together: neighbours as one request, and as many requests at once as there are connections and workers.
/// Returns 0, or the first status that is not 0; the others are read all the same. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn nearfile_read_ranges(
    file: Option<&nearfile_file>,
    ranges: *mut nearfile_range,
    count: usize,
    range_size: usize,
) -> i32 {
    let check = || {
        let file = given(file, "file")?;
        if ranges.is_null() && count != 0 {
            return Err(Error::Argument("ranges is NULL".into()));
        }
        if range_size < size_of::<nearfile_range>() || range_size % align_of::<nearfile_range>() != 0 {
            return Err(Error::Argument(format!("range_size is {range_size}: give sizeof(nearfile_range)")));
        }
        Ok(file)
    };
    let file = match check() {
        Ok(file) => file,
        Err(error) => return status(Err(error)),
    };
    // SAFETY: the caller has `count` structs of `range_size` bytes there, of which ours is the beginning.
    let range_at = |at: usize| unsafe { &mut *ranges.cast::<u8>().add(at * range_size).cast::<nearfile_range>() };
    let read = |at: usize| {
        let range = range_at(at);
        // SAFETY: the caller's buffer.
        match unsafe { buffer(range.buf, range.len) } {
            Ok(buf) => RangeRead { offset: range.offset, buf, result: Ok(0) },
            Err(error) => RangeRead { offset: 0, buf: &mut [], result: Err(error) },
        }
    };
    let mut reads: Vec<RangeRead<'_>> = (0..count).map(read).collect();
    file.file.read_ranges(&mut reads);
    let mut first = 0;
    for (at, read) in reads.into_iter().enumerate() {
        let (range, read) = (range_at(at), read.result);
        range.out_len = *read.as_ref().unwrap_or(&0);
        range.out_status = match read {
            Ok(_) => 0,
            // The last error is that of the status that is returned.
            Err(error) if first == 0 => status(Err(error)),
            Err(error) => status_of(&error) as i32,
        };
        if first == 0 {
            first = range.out_status;
        }
    }
    first
}

/// Hears how far a prefetch has come, bytes; 0 goes on, anything else cancels it.
pub type nearfile_progress_callback =
    Option<unsafe extern "C-unwind" fn(user_data: *mut c_void, done_bytes: u64, total_bytes: u64) -> i32>;

/// Reads what is absent of len bytes from offset, so that later reads are hits, and returns when it is there. Stops early, with 0, where a
/// limit keeps things out. progress may be NULL; it is called on this thread, and NEARFILE_ERROR_CANCELLED is returned when it ends it.
///
/// flags: 0, or NEARFILE_PREFETCH_NOWAIT: returns at once, and the library's own threads fetch; progress is not called, and errors are
/// met by who reads. NEARFILE_ERROR_UNSUPPORTED where no thread of the library's may call the source. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn nearfile_prefetch(
    file: Option<&nearfile_file>,
    offset: u64,
    len: u64,
    flags: u32,
    progress: nearfile_progress_callback,
    user_data: *mut c_void,
) -> i32 {
    let prefetch = || {
        let file = given(file, "file")?;
        if flags & !NEARFILE_PREFETCH_NOWAIT != 0 {
            return Err(Error::Argument(format!("flags {flags:#x} has bits that this version does not know")));
        }
        if flags & NEARFILE_PREFETCH_NOWAIT != 0 {
            return file.file.prefetch_in_background(offset..offset.saturating_add(len));
        }
        file.file.prefetch(offset..offset.saturating_add(len), &mut |done, total| {
            // SAFETY: the program's callback, with what it was given.
            progress.is_none_or(|progress| unsafe { progress(user_data, done, total) } == 0)
        })
    };
    status(prefetch())
}

/// From now on a miss of this handle is NEARFILE_ERROR_FROZEN and the source is not touched; nobody gives up what is there while the
/// handle is open. Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_freeze(file: Option<&nearfile_file>) -> i32 {
    status(shielded(|| given(file, "file")?.file.freeze()))
}

/// Freezes the handle and writes what is there to path, holes as holes, and its index to path.index; a file opened with these two as
/// data_path and index_path has the same bytes. Both reach the disk before this returns, or neither is there.
/// NEARFILE_ERROR_EXISTS where one of them exists: nothing is overwritten. In exact mode, pages of 4 KiB that are there as a whole
/// (open the copy with page_size 4096, no key and the same size). Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nearfile_preserve(file: Option<&nearfile_file>, path: *const c_char) -> i32 {
    status(shielded(|| {
        // SAFETY: the caller's string.
        let path = unsafe { bytes(path) }.ok_or_else(|| Error::Argument("path is NULL".into()))?;
        given(file, "file")?.file.preserve(Path::new(OsStr::from_bytes(path)))
    }))
}
