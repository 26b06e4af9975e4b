//! Files mapped: an index for reading and writing, as an array of atomics; a mirror for reading, in part while it is pinned, or as a
//! whole to copy hits from.

use super::check;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::io;
use std::ops::Range;
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

fn map(file: BorrowedFd<'_>, range: Range<u64>, access: libc::c_int, how: libc::c_int) -> io::Result<(NonNull<u8>, usize)> {
    let too_large = |_| io::Error::from_raw_os_error(libc::ENOMEM);
    let len = usize::try_from(range.end - range.start).map_err(too_large)?;
    let from = libc::off_t::try_from(range.start).map_err(too_large)?;
    // SAFETY: a new mapping, placed by the kernel.
    let at = check("mmap", || unsafe { libc::mmap(ptr::null_mut(), len, access, how, file.as_raw_fd(), from) })?;
    NonNull::new(at.cast()).map(|start| (start, len)).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

impl SharedMap {
    /// Maps the first `len` bytes, which the file must have.
    pub(crate) fn of(file: BorrowedFd<'_>, len: u64) -> io::Result<SharedMap> {
        let (start, len) = map(file, 0..len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)?;
        Ok(SharedMap { start, len })
    }

    /// The same over a file that cannot be written: what is stored is this process's alone.
    pub(crate) fn copy_of(file: BorrowedFd<'_>, len: u64) -> io::Result<SharedMap> {
        let (start, len) = map(file, 0..len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
        Ok(SharedMap { start, len })
    }

    /// The 64-bit word at a byte offset, a multiple of 8. Past the end: a defect, and a panic rather than a stray load.
    pub(crate) fn word(&self, offset: u64) -> &AtomicU64 {
        self.word_at(offset).unwrap_or_else(|| outside(offset))
    }

    /// The same; `None` past the end.
    #[inline(always)]
    pub(crate) fn word_at(&self, offset: u64) -> Option<&AtomicU64> {
        let inside = offset % 8 == 0 && offset < self.len as u64 / 8 * 8;
        // SAFETY: inside the map and aligned (maps start on a page); only ever used as an atomic.
        inside.then(|| unsafe { &*self.start.as_ptr().add(offset as usize).cast::<AtomicU64>() })
    }

    /// The 32-bit word at a byte offset, a multiple of 4.
    pub(crate) fn half(&self, offset: u64) -> &AtomicU32 {
        self.half_at(offset).unwrap_or_else(|| outside(offset))
    }

    /// The same; `None` past the end.
    #[inline(always)]
    pub(crate) fn half_at(&self, offset: u64) -> Option<&AtomicU32> {
        let inside = offset % 4 == 0 && offset < self.len as u64 / 4 * 4;
        // SAFETY: as in `word_at`.
        inside.then(|| unsafe { &*self.start.as_ptr().add(offset as usize).cast::<AtomicU32>() })
    }
}

#[cold]
fn outside(offset: u64) -> ! {
    panic!("a word outside of the map, at {offset}")
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: made by `of`, and every borrow of it has ended.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A part of a mirror, mapped for reading. What it says is fixed only while its pages are pinned.
#[derive(Debug)]
pub(crate) struct Window {
    start: NonNull<u8>,
    len: usize,
    /// Bytes between the start of the map and what was asked for.
    skip: usize,
}

// SAFETY: never written through; see `bytes` for reading.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Maps a range, which the file must have.
    pub(crate) fn of(file: BorrowedFd<'_>, range: Range<u64>) -> io::Result<Window> {
        const ALIGNMENT: u64 = 64 << 10; // the largest page of any machine
        let from = range.start / ALIGNMENT * ALIGNMENT;
        let (start, len) = map(file, from..range.end, libc::PROT_READ, libc::MAP_SHARED)?;
        Ok(Window { start, len, skip: (range.start - from) as usize })
    }

    /// The first `len` bytes of what was asked for.
    pub(crate) fn bytes(&self, len: usize) -> &[u8] {
        assert!(self.skip + len <= self.len, "bytes outside of the window");
        // SAFETY: inside the map, which lives as long as the borrow; nobody writes there, as whoever made the window holds a pin lock
        // on its pages for as long as it lives, without which pages are neither fetched nor punched.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(self.skip), len) }
    }

    /// Copies from byte `at` of what was asked for. Others may be punching or writing there: the caller looks afterwards whether what it
    /// copied stood still, and throws it away where it did not.
    /// False where the window does not have them.
    #[inline(always)]
    pub(crate) fn copy_to(&self, at: usize, out: &mut [u8]) -> bool {
        let inside = self.skip.checked_add(at).and_then(|from| from.checked_add(out.len())).is_some_and(|end| end <= self.len);
        if !inside {
            return false;
        }
        // SAFETY: inside the map, and `out` is the caller's. The copy is the C library's, on raw memory: the compiler is told nothing
        // about bytes that change under it.
        unsafe { libc::memcpy(out.as_mut_ptr().cast(), self.start.as_ptr().add(self.skip + at).cast(), out.len()) };
        true
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: made by `of`; the pin that it belonged to has ended.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A whole file mapped for reading, once someone asks for it. No lock: a child may be forked while another thread maps.
#[derive(Debug)]
pub(crate) struct WholeMap(AtomicPtr<Window>);

impl WholeMap {
    pub(crate) const fn new() -> WholeMap {
        WholeMap(AtomicPtr::new(ptr::null_mut()))
    }

    /// Maps the file's first `len` bytes, unless that was done.
    pub(crate) fn make(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
        if self.get().is_none() {
            let made = Box::into_raw(Box::new(Window::of(file, 0..len)?));
            if self.0.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire).is_err() {
                // SAFETY: made above, and seen by nobody.
                drop(unsafe { Box::from_raw(made) });
            }
        }
        Ok(())
    }

    pub(crate) fn get(&self) -> Option<&Window> {
        // SAFETY: null, or made above and freed only by `drop`.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }
}

impl Drop for WholeMap {
    fn drop(&mut self) {
        let made = *self.0.get_mut();
        if !made.is_null() {
            // SAFETY: made by `make`, and every borrow of it has ended.
            drop(unsafe { Box::from_raw(made) });
        }
    }
}
