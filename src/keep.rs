//! Keeping what is there: a copy of a mirror's data with an index of its own beside it, which opens again by its two paths.

use crate::error::{Error, Result};
use crate::exact::Exact;
use crate::fetch::as_much_room;
use crate::format::{Header, crc32c};
use crate::index::{self, Index};
use crate::mirror::Mirror;
use crate::pair::{Pair, new_header};
use crate::range::Pages;
use crate::sys::file::{self, Open};
use crate::sys::spare::Held;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What is to be kept: pages with their checksums, of a mirror that does not give them up meanwhile.
pub(crate) struct Keepsake<'a> {
    pub(crate) header: Header,
    pub(crate) mirror: Held<'a>,
    pub(crate) pages: Vec<(u64, u32)>,
}

impl Pair {
    /// The present pages, as they are to be kept. The caller has frozen the pair.
    pub(crate) fn keepsake(&self) -> io::Result<Keepsake<'_>> {
        let mut pages = Vec::new();
        self.index().each_allocated(|page, word| {
            if word.is_present() {
                pages.push((page, word.crc()));
            }
        });
        let header = Header { mirror: [0; 16], ..self.index().header().clone() };
        Ok(Keepsake { header, mirror: self.mirror().file()?, pages })
    }
}

/// What is kept of an exact file: its pages of 4 KiB that are there as a whole.
pub(crate) fn exact_keepsake<'a>(exact: &Exact, mirror: &'a Mirror, size: u64) -> io::Result<Keepsake<'a>> {
    let pages = Pages { size, page_size: 4096 };
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    for range in exact.ranges() {
        let Some(run) = pages.inside(&range) else { continue };
        for page in run.first..=run.last {
            let bytes = pages.bytes(page);
            let page_bytes = &mut buffer[..(bytes.end - bytes.start) as usize];
            mirror.read(page_bytes, bytes.start)?;
            kept.push((page, crc32c(page_bytes)));
        }
    }
    Ok(Keepsake { header: new_header(&[], &[], pages, [0; 16]), mirror: mirror.file()?, pages: kept })
}

/// `path.index`, where the index of a kept file is.
pub(crate) fn index_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".index");
    name.into()
}

/// Writes `path` and `path.index`, or neither, and never over a file that is there. Both are on the disk when this returns.
pub(crate) fn preserve(keepsake: &Keepsake<'_>, path: &Path) -> Result<()> {
    let index_path = index_path(path);
    for path in [path, &index_path] {
        if path.symlink_metadata().is_ok() {
            return Err(taken(path));
        }
    }
    let failed = |error: io::Error| Error::io(format!("preserve to {}", path.display()), error);
    let data_beside = Beside::new(path).map_err(failed)?;
    let index_beside = Beside::new(&index_path).map_err(failed)?;
    copy_data(keepsake, &data_beside.file).map_err(failed)?;
    write_index(keepsake, &index_beside.file).map_err(failed)?;
    file::sync(data_beside.file.as_fd()).and_then(|()| file::sync(index_beside.file.as_fd())).map_err(failed)?;
    data_beside.publish()?;
    if let Err(error) = index_beside.publish() {
        let _ = std::fs::remove_file(path); // ours: it was published just now
        return Err(error);
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(parent).and_then(|parent| file::sync(parent.as_fd())).map_err(failed)
}

fn taken(path: &Path) -> Error {
    Error::Exists(format!("{} exists, and preserve writes over nothing: remove it, or name another", path.display()))
}

/// A file that is filled in beside its final name.
struct Beside {
    file: OwnedFd,
    beside: CString,
    path: PathBuf,
    published: std::cell::Cell<bool>,
}

impl Beside {
    fn new(path: &Path) -> io::Result<Beside> {
        let mut name: OsString = path.as_os_str().to_owned();
        name.push(format!(".{}", crate::control::hex(&file::random()?)));
        let beside = CString::new(name.as_bytes()).map_err(io::Error::other)?;
        let file = file::open_at(None, &beside, Open::New)?;
        Ok(Beside { file, beside, path: path.to_owned(), published: std::cell::Cell::new(false) })
    }

    fn publish(&self) -> Result<()> {
        let name =
            CString::new(self.path.as_os_str().as_bytes()).map_err(|_| Error::Argument("a path has a zero byte in it".into()))?;
        match file::publish_at(None, &self.beside, &name) {
            Ok(()) => {
                self.published.set(true);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(taken(&self.path)),
            Err(error) => Err(Error::io(self.path.display().to_string(), error)),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.published.get() {
            let _ = file::unlink_at(None, &self.beside);
        }
    }
}

/// Shares the blocks where the file system can (holes stay holes), else copies the pages that are kept.
fn copy_data(keepsake: &Keepsake<'_>, to: &OwnedFd) -> io::Result<()> {
    if file::clone_whole(keepsake.mirror.as_fd(), to.as_fd()).is_ok() {
        return Ok(());
    }
    file::set_len(to.as_fd(), keepsake.header.size)?;
    let mut buffer = Vec::new();
    if as_much_room(&mut buffer, 1 << 20) == 0 {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    for &(page, _) in &keepsake.pages {
        let mut at = page * keepsake.header.page_size;
        let end = (at + keepsake.header.page_size).min(keepsake.header.size);
        while at < end {
            let len = buffer.len().min((end - at) as usize);
            let got = file::read_at(keepsake.mirror.as_fd(), &mut buffer[..len], at)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file::write_at(to.as_fd(), &buffer[..got], at)?;
            at += got as u64;
        }
    }
    Ok(())
}

/// An index whose one session ended well; its pages are compared before their first hit.
fn write_index(keepsake: &Keepsake<'_>, to: &OwnedFd) -> io::Result<()> {
    index::write_new(to.as_fd(), &keepsake.header)?;
    let mut index = Index::map(file::reopen(to.as_fd())?, &keepsake.header, true)?;
    index.begin_first_session(&file::stat(keepsake.mirror.as_fd())?);
    for &(page, crc) in &keepsake.pages {
        index.import(page, crc)?;
    }
    index.end_session_clean();
    Ok(())
}
