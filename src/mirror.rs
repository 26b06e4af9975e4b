//! The sparse data file: byte n of the remote file is byte n of the mirror. Written by `pwrite` only, read by `pread`, or from a map
//! where a handle asked for that.

use crate::breaker::Breaker;
use crate::sync::{AtomicU32, Ordering};
use crate::sys::file::{self, Identity, Open};
use crate::sys::map::{WholeMap, Window};
use crate::sys::spare::{Held, Spare};
use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct Mirror {
    file: Spare,
    /// None: it has no name, so its descriptor is kept.
    name: Option<Name>,
    /// 0: not known yet, 1: no, 2: yes. No lock: a child may be forked while another thread finds out.
    can_punch: AtomicU32,
    map: WholeMap,
    /// Hits, and pages stored: a disk that is full can be read.
    pub(crate) reads: Breaker,
    pub(crate) stores: Breaker,
}

/// Where it can be opened again, and what is found there then.
#[derive(Debug)]
pub(crate) struct Name {
    pub(crate) dir: Arc<OwnedFd>,
    pub(crate) name: CString,
    pub(crate) found: Identity,
}

impl Name {
    fn open(&self) -> io::Result<OwnedFd> {
        let how = |how| file::open_at(Some(self.dir.as_fd()), &self.name, how);
        let file = how(Open::Existing).or_else(|error| match error.raw_os_error() {
            Some(libc::EROFS | libc::EACCES) => how(Open::ReadOnly),
            _ => Err(error),
        })?;
        if file::identity(file.as_fd())? == Some(self.found) {
            return Ok(file);
        }
        Err(io::Error::other("another file has taken the mirror's name"))
    }
}

impl Mirror {
    pub(crate) fn new(file: OwnedFd, name: Option<Name>) -> Mirror {
        Mirror {
            file: Spare::new(file, name.is_some()),
            name,
            can_punch: AtomicU32::new(0),
            map: WholeMap::new(),
            reads: Breaker::default(),
            stores: Breaker::default(),
        }
    }

    /// Its descriptor, open for as long as it is held.
    #[inline(always)]
    pub(crate) fn file(&self) -> io::Result<Held<'_>> {
        self.file.hold(|| match &self.name {
            Some(name) => name.open(),
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        })
    }

    /// Fills the buffer; a file that ends before is an error: someone cut it off.
    pub(crate) fn read(&self, buf: &mut [u8], from: u64) -> io::Result<()> {
        let len = file::read_at(self.file()?.as_fd(), buf, from)?;
        if len == buf.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Maps its first `len` bytes, which are all, to copy hits from.
    pub(crate) fn make_map(&self, len: u64) -> io::Result<()> {
        self.map.make(self.file()?.as_fd(), len)
    }

    /// Maps a part of it.
    pub(crate) fn window(&self, range: Range<u64>) -> io::Result<Window> {
        Window::of(self.file()?.as_fd(), range)
    }

    /// Fills the buffer with bytes of present pages, from the map if it may and there is one.
    pub(crate) fn copy(&self, buf: &mut [u8], from: u64, mapped: bool) -> io::Result<()> {
        if mapped && self.copy_mapped(buf, from) { Ok(()) } else { self.read(buf, from) }
    }

    /// The same with one try, from the map or by one system call; false where that did not bring all of it.
    #[inline(always)]
    pub(crate) fn copy_once(&self, buf: &mut [u8], from: u64, mapped: bool) -> bool {
        if mapped && self.copy_mapped(buf, from) {
            return true;
        }
        let Ok(file) = self.file() else { return false };
        file::read_once(file.as_fd(), buf, from)
    }

    #[inline(always)]
    fn copy_mapped(&self, buf: &mut [u8], from: u64) -> bool {
        match (self.map.get(), usize::try_from(from)) {
            (Some(map), Ok(at)) => map.copy_to(at, buf),
            _ => false,
        }
    }

    pub(crate) fn write(&self, buf: &[u8], to: u64) -> io::Result<()> {
        file::write_at(self.file()?.as_fd(), buf, to)
    }

    /// Whether the file system can give back parts of a file; asked until it has answered, past the end, where it changes nothing.
    pub(crate) fn can_punch(&self) -> bool {
        if self.can_punch.load(Ordering::Relaxed) == 0 {
            let Ok(file) = self.file() else { return false };
            let Ok(stat) = file::stat(file.as_fd()) else { return false };
            let past_the_end = stat.size.next_multiple_of(4096);
            match file::punch(file.as_fd(), past_the_end..past_the_end + 4096) {
                Ok(()) => self.can_punch.store(2, Ordering::Relaxed),
                Err(error) if file::is_unsupported(&error) => self.can_punch.store(1, Ordering::Relaxed),
                Err(_) => {}
            }
        }
        self.can_punch.load(Ordering::Relaxed) == 2
    }

    /// Gives the space of a range back. The page words already say absent.
    pub(crate) fn punch(&self, range: Range<u64>) -> io::Result<()> {
        file::punch(self.file()?.as_fd(), range)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        file::sync(self.file()?.as_fd())
    }
}
