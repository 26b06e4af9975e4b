//! `nearfile_cache`: a directory of near copies.

use super::boundary::{Sized_, bytes, copy_in, copy_out, given, put, shielded, status};
use super::status::nearfile_stats;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::options::{CacheOptions, WhenFull};
use std::ffi::{CString, OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::time::Duration;

/// nearfile_cache_options.when_full: pages of less use are given up, those of outdated versions and of closed files first.
pub const NEARFILE_FULL_EVICT: u32 = 0;
/// nearfile_cache_options.when_full: what is there stays; nothing more is kept.
pub const NEARFILE_FULL_STOP: u32 = 1;
/// nearfile_cache_options.when_full: all pages of the file that is read are dropped, and it starts again.
pub const NEARFILE_FULL_FLUSH: u32 = 2;

/// A cache directory, open. Used from any thread, and in children forked after it was opened.
pub struct nearfile_cache {
    pub(super) cache: Cache,
}

/// Choices for a cache directory, as this process uses it. Zero means the default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct nearfile_cache_options {
    /// sizeof(nearfile_cache_options), set by the caller.
    pub struct_size: usize,
    /// The directory's limit, bytes, over all processes and files, held at every instant. It is the directory's from then on; 0 keeps
    /// what it has, which at first is no limit. Counted in whole 4 KiB blocks of mirrors; indexes are not counted.
    pub size_limit: u64,
    /// Bytes of the file system that are left free; 0: none.
    pub min_free: u64,
    /// Bytes a page, 1 to 1 GiB; 0: 1 MiB.
    pub page_size: u64,
    /// The most that one source read asks for, bytes, 1 to 1 GiB; 0: 8 MiB. Absent pages side by side become one read up to here.
    pub max_fetch_bytes: u64,
    /// What this process does when a page does not fit: NEARFILE_FULL_EVICT, _STOP, _FLUSH.
    pub when_full: u32,
    /// No flag in this version: 0.
    pub flags: u32,
    /// The longest wait for another's fetch of a page, milliseconds from its last progress; then the read goes to the source itself.
    /// 0: 10,000.
    pub wait_ms: u32,
    /// Threads of this process that fetch beside the one that reads, at most, up to 1,024; 0: 16. None is started before it has something
    /// to do (reading ahead, several requests of one read or batch, a prefetch that is not waited for); idle ones end after two seconds.
    pub workers: u32,
}

// SAFETY: repr(C), begins with its size, integers only.
unsafe impl Sized_ for nearfile_cache_options {
    const NAME: &'static str = "nearfile_cache_options";
}

fn convert(options: &nearfile_cache_options) -> Result<CacheOptions> {
    if options.flags != 0 {
        return Err(Error::Argument(format!("nearfile_cache_options.flags {:#x} has bits that are none", options.flags)));
    }
    let when_full = match options.when_full {
        NEARFILE_FULL_EVICT => WhenFull::Evict,
        NEARFILE_FULL_STOP => WhenFull::Stop,
        NEARFILE_FULL_FLUSH => WhenFull::Flush,
        other => {
            return Err(Error::Argument(format!(
                "nearfile_cache_options.when_full {other} is none of 0 (EVICT), 1 (STOP), 2 (FLUSH)"
            )));
        }
    };
    Ok(CacheOptions {
        page_size: options.page_size,
        max_fetch_bytes: options.max_fetch_bytes,
        wait: Duration::from_millis(options.wait_ms.into()),
        size_limit: options.size_limit,
        min_free: options.min_free,
        when_full,
        workers: options.workers,
    })
}

/// Opens a cache directory, making it (0700) if need be, and sets *out_cache; on failure to NULL.
///
/// dir NULL: $XDG_CACHE_HOME/nearfile, else $HOME/.cache/nearfile. options NULL: the defaults. A directory that cannot be used
/// (unwritable, another user's, open to writing by others) is no failure: reads go to the source or to a copy of this process's own,
/// and the log says so. A path that names a file is NEARFILE_ERROR_ARGUMENT. Ended by nearfile_cache_close. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nearfile_cache_open(
    dir: *const c_char,
    options: *const nearfile_cache_options,
    out_cache: *mut *mut nearfile_cache,
) -> i32 {
    status(shielded(|| {
        // SAFETY: the caller's pointers, as the header wants them.
        unsafe {
            put(out_cache, ptr::null_mut(), "out_cache")?;
            let options = copy_in(options)?.map_or(Ok(CacheOptions::default()), |options| convert(&options))?;
            let dir = bytes(dir).map(|dir| Path::new(OsStr::from_bytes(dir)));
            let cache = Cache::open(dir, &options)?;
            put(out_cache, Box::into_raw(Box::new(nearfile_cache { cache })), "out_cache")
        }
    }))
}

/// Ends a cache handle. Files opened through it stay usable. NULL does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_cache_close(cache: Option<Box<nearfile_cache>>) {
    let _ = shielded(|| {
        drop(cache);
        Ok(())
    });
}

/// Fills *out_stats, whose struct_size the caller has set, with the directory's numbers over all processes. Counts the present pages
/// in every index: milliseconds a file, not for a hot path. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nearfile_cache_get_stats(cache: Option<&nearfile_cache>, out_stats: *mut nearfile_stats) -> i32 {
    status(shielded(|| {
        let stats = given(cache, "cache")?.cache.stats();
        // SAFETY: the caller's struct, of the size that it says.
        unsafe { copy_out(stats.into(), out_stats) }
    }))
}

/// Gives up the least useful pages until the directory holds no more than keep_bytes, 0 or more. Pinned, frozen and just fetched pages
/// stay. Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_cache_trim(cache: Option<&nearfile_cache>, keep_bytes: u64) -> i32 {
    status(shielded(|| given(cache, "cache")?.cache.trim(keep_bytes)))
}

/// Drops what is kept of a key, every version of it. Of a file that some process has open the pages go at once, and its files when
/// the last process closes it, unless it is opened again before. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nearfile_cache_remove(cache: Option<&nearfile_cache>, key: *const c_char) -> i32 {
    status(shielded(|| {
        // SAFETY: the caller's string.
        let key = unsafe { bytes(key) }.ok_or_else(|| Error::Argument("key is NULL".into()))?;
        given(cache, "cache")?.cache.remove(key)
    }))
}

/// One near copy in a cache directory. The strings are valid during the call that shows it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct nearfile_entry {
    /// sizeof(nearfile_entry) as the library has it.
    pub struct_size: usize,
    /// What names the remote file.
    pub key: *const c_char,
    /// What names its content.
    pub version: *const c_char,
    /// Where the mirror is.
    pub data_path: *const c_char,
    /// Where the index is.
    pub index_path: *const c_char,
    /// Bytes.
    pub size: u64,
    /// Bytes a page.
    pub page_size: u64,
    /// Pages present.
    pub cached_pages: u64,
    /// Bytes of those.
    pub cached_bytes: u64,
    /// 1 if some process has it open, else 0.
    pub open: u32,
    /// 1 if a newer near copy of the key is there, else 0.
    pub outdated: u32,
}

/// Receives one entry; 0 goes on, anything else ends the list.
pub type nearfile_list_callback = Option<unsafe extern "C-unwind" fn(user_data: *mut c_void, entry: *const nearfile_entry) -> i32>;

/// Shows the near copies of the directory to callback, one after the other on this thread, in no order; the callback may call
/// nearfile. Counts the pages of each. Returns 0, also when the callback ended it. Threads: any.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn nearfile_cache_list(
    cache: Option<&nearfile_cache>,
    callback: nearfile_list_callback,
    user_data: *mut c_void,
) -> i32 {
    let list = || {
        let callback = callback.ok_or_else(|| Error::Argument("callback is NULL".into()))?;
        let entries = shielded(|| Ok(given(cache, "cache")?.cache.list()))?;
        for entry in entries {
            let text = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
            let (key, version) = (text(&entry.key), text(&entry.version));
            let (data, index) = (text(entry.data_path.as_os_str().as_bytes()), text(entry.index_path.as_os_str().as_bytes()));
            let shown = nearfile_entry {
                struct_size: size_of::<nearfile_entry>(),
                key: key.as_ptr(),
                version: version.as_ptr(),
                data_path: data.as_ptr(),
                index_path: index.as_ptr(),
                size: entry.size,
                page_size: entry.page_size,
                cached_pages: entry.cached_pages,
                cached_bytes: entry.cached_bytes,
                open: entry.open.into(),
                outdated: entry.outdated.into(),
            };
            // SAFETY: the program's callback, with what it was given.
            if unsafe { callback(user_data, &raw const shown) } != 0 {
                break;
            }
        }
        Ok(())
    };
    status(list())
}
