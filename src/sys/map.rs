//! Files mapped shared, for reading and writing, as arrays of atomics.

use crate::sync::{AtomicU32, AtomicU64};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

/// The whole of a file, mapped. Nothing in it is ever borrowed as plain memory: other processes write it.
#[derive(Debug)]
pub(crate) struct SharedMap {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is reached only through atomics.
unsafe impl Send for SharedMap {}
// SAFETY: as above.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps the first `len` bytes, which the file must have.
    pub(crate) fn of(file: BorrowedFd<'_>, len: u64) -> io::Result<SharedMap> {
        let len = usize::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, placed by the kernel.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(at.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(SharedMap { start, len })
    }

    /// The 64-bit word at a byte offset, a multiple of 8. Past the end: a defect, and a panic rather than a stray load.
    pub(crate) fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(offset % 8 == 0 && offset + 8 <= self.len as u64, "a word outside of the map");
        // SAFETY: inside the map and aligned (maps start on a page); only ever used as an atomic.
        unsafe { &*self.start.as_ptr().add(offset as usize).cast::<AtomicU64>() }
    }

    /// The 32-bit word at a byte offset, a multiple of 4.
    pub(crate) fn half(&self, offset: u64) -> &AtomicU32 {
        assert!(offset % 4 == 0 && offset + 4 <= self.len as u64, "a word outside of the map");
        // SAFETY: as in `word`.
        unsafe { &*self.start.as_ptr().add(offset as usize).cast::<AtomicU32>() }
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: made by `of`, and every borrow of it has ended.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
