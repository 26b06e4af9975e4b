//! `nearfile_cache`: a directory of near copies.

use super::boundary::{Sized_, bytes, copy_in, copy_out, given, put, shielded, status};
use super::status::nearfile_stats;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::options::CacheOptions;
use std::ffi::{OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::time::Duration;

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
    /// The directory's limit, bytes. Not in this version: 0.
    pub size_limit: u64,
    /// Bytes of the file system to keep free. Not in this version: 0.
    pub min_free: u64,
    /// Bytes a page, 1 to 1 GiB; 0: 1 MiB.
    pub page_size: u64,
    /// The most that one source read asks for, bytes, 1 to 1 GiB; 0: 8 MiB. Absent pages side by side become one read up to here.
    pub max_fetch_bytes: u64,
    /// What happens at the limit. Not in this version: 0.
    pub when_full: u32,
    /// No flag in this version: 0.
    pub flags: u32,
    /// The longest wait for another's fetch of a page, milliseconds from its last progress; then the read goes to the source itself.
    /// 0: 10,000.
    pub wait_ms: u32,
    /// Threads for reading ahead. Not in this version: 0.
    pub workers: u32,
}

// SAFETY: repr(C), begins with its size, integers only.
unsafe impl Sized_ for nearfile_cache_options {
    const NAME: &'static str = "nearfile_cache_options";
}

fn convert(options: &nearfile_cache_options) -> Result<CacheOptions> {
    let later = [
        ("size_limit", options.size_limit),
        ("min_free", options.min_free),
        ("when_full", options.when_full.into()),
        ("workers", options.workers.into()),
    ];
    if let Some((name, _)) = later.iter().find(|(_, value)| *value != 0) {
        return Err(Error::Unsupported(format!("nearfile_cache_options.{name} is not in this version: set it to 0")));
    }
    if options.flags != 0 {
        return Err(Error::Argument(format!("nearfile_cache_options.flags {:#x} has bits that are none", options.flags)));
    }
    Ok(CacheOptions {
        page_size: options.page_size,
        max_fetch_bytes: options.max_fetch_bytes,
        wait: Duration::from_millis(options.wait_ms.into()),
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
