//! The sparse data file: byte n of the remote file is byte n of the mirror. Written by `pwrite` only, read by `pread`, or from a map
//! where a handle asked for that.

use crate::breaker::Breaker;
use crate::sync::{AtomicU32, Ordering};
use crate::sys::file;
use crate::sys::map::WholeMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub(crate) struct Mirror {
    file: OwnedFd,
    /// 0: not known yet, 1: no, 2: yes. No lock: a child may be forked while another thread finds out.
    can_punch: AtomicU32,
    map: WholeMap,
    /// Hits, and pages stored: a disk that is full can be read.
    pub(crate) reads: Breaker,
    pub(crate) stores: Breaker,
}

impl Mirror {
    pub(crate) fn new(file: OwnedFd) -> Mirror {
        Mirror { file, can_punch: AtomicU32::new(0), map: WholeMap::new(), reads: Breaker::default(), stores: Breaker::default() }
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Fills the buffer; a file that ends before is an error: someone cut it off.
    pub(crate) fn read(&self, buf: &mut [u8], from: u64) -> io::Result<()> {
        if file::read_at(self.file(), buf, from)? == buf.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Maps its first `len` bytes, which are all, to copy hits from.
    pub(crate) fn make_map(&self, len: u64) -> io::Result<()> {
        self.map.make(self.file(), len)
    }

    /// Fills the buffer with bytes of present pages, from the map if it may and there is one.
    pub(crate) fn copy(&self, buf: &mut [u8], from: u64, mapped: bool) -> io::Result<()> {
        match (self.map.get(), usize::try_from(from)) {
            (Some(map), Ok(at)) if mapped => {
                map.copy_to(at, buf);
                Ok(())
            }
            _ => self.read(buf, from),
        }
    }

    pub(crate) fn write(&self, buf: &[u8], to: u64) -> io::Result<()> {
        file::write_at(self.file(), buf, to)
    }

    /// Whether the file system can give back parts of a file; asked once, past the end, where it changes nothing.
    pub(crate) fn can_punch(&self) -> bool {
        if self.can_punch.load(Ordering::Relaxed) == 0 {
            let past_the_end = file::stat(self.file()).map_or(0, |stat| stat.size.next_multiple_of(4096));
            let can = file::punch(self.file(), past_the_end..past_the_end + 4096).is_ok();
            self.can_punch.store(if can { 2 } else { 1 }, Ordering::Relaxed);
        }
        self.can_punch.load(Ordering::Relaxed) == 2
    }

    /// Gives the space of a range back. The page words already say absent.
    pub(crate) fn punch(&self, range: Range<u64>) -> io::Result<()> {
        file::punch(self.file(), range)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        file::sync(self.file())
    }
}
