//! The sparse data file: byte n of the remote file is byte n of the mirror. Written by `pwrite` only, read by `pread`.

use crate::sys::file;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

#[derive(Debug)]
pub(crate) struct Mirror {
    file: OwnedFd,
    can_punch: OnceLock<bool>,
}

impl Mirror {
    pub(crate) fn new(file: OwnedFd) -> Mirror {
        Mirror { file, can_punch: OnceLock::new() }
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Fills the buffer; a file that ends before is an error: someone cut it off.
    pub(crate) fn read(&self, buf: &mut [u8], from: u64) -> io::Result<()> {
        if file::read_at(self.file(), buf, from)? == buf.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    pub(crate) fn write(&self, buf: &[u8], to: u64) -> io::Result<()> {
        file::write_at(self.file(), buf, to)
    }

    /// Whether the file system can give back parts of a file; asked once, past the end, where it changes nothing.
    pub(crate) fn can_punch(&self) -> bool {
        *self.can_punch.get_or_init(|| {
            let past_the_end = file::stat(self.file()).map_or(0, |stat| stat.size.next_multiple_of(4096));
            file::punch(self.file(), past_the_end..past_the_end + 4096).is_ok()
        })
    }

    /// Gives the space of a range back. The page words already say absent.
    pub(crate) fn punch(&self, range: Range<u64>) -> io::Result<()> {
        file::punch(self.file(), range)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        file::sync(self.file())
    }
}
