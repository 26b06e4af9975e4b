//! How the files of a pair become a pair: what is found is checked before it is used, and its session is entered. For pairs in a
//! directory and for pairs at paths of a program's own alike.

use crate::budget::Account;
use crate::control::hex;
use crate::error::{Error, Result};
use crate::format::Header;
use crate::index::{self, Index};
use crate::lock::INDEX_SESSION;
use crate::mirror::{Mirror, Name};
use crate::pair::{Pair, Place};
use crate::range::Pages;
use crate::session::Entry;
use crate::sys::file::{self, Stat};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_128;

/// What a file to open is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) version: &'a [u8],
    pub(crate) pages: Pages,
}

impl Wanted<'_> {
    pub(crate) fn matches(&self, header: &Header) -> bool {
        self.key.is_none_or(|key| header.key == key) && header.version == self.version && header.size == self.pages.size
    }

    pub(crate) fn index_name(&self) -> Option<CString> {
        let key = xxh3_128(self.key?).to_be_bytes();
        let mut content = self.pages.size.to_be_bytes().to_vec();
        content.extend_from_slice(self.version);
        let name = format!("{}-{}.index", hex(&key), hex(&xxh3_128(&content).to_be_bytes()));
        CString::new(name).ok()
    }
}

/// What came of opening the files of a pair.
pub(crate) enum Found {
    Pair(Arc<Pair>),
    /// It changed meanwhile.
    Again,
    /// Damaged: to be replaced.
    Damaged(&'static str),
    /// Somebody else's, or out of order in a way that we must not touch.
    Unusable(String),
}

/// Why a file must not be used; `None` where it may.
pub(crate) fn unfit(stat: &Stat) -> Option<&'static str> {
    if !stat.is_file() {
        Some("not a plain file")
    } else if stat.owner != file::effective_user() {
        Some("belongs to another user")
    } else if !stat.is_ours() {
        Some("can be written by other users")
    } else if stat.links > 1 {
        Some("has a second name")
    } else {
        None
    }
}

/// Enters the session of a pair whose files were found, each way that two processes can meet there.
pub(crate) fn enter(
    index: OwnedFd,
    mirror: OwnedFd,
    header: &Header,
    place: Place,
    account: Option<Account>,
    wait: Duration,
) -> io::Result<Found> {
    let mirror_stat = file::stat(mirror.as_fd())?;
    if let Some(why) = unfit(&mirror_stat) {
        return Ok(if mirror_stat.links == 0 { Found::Again } else { Found::Unusable(format!("its mirror {why}")) });
    }
    if mirror_stat.size != header.size {
        return Ok(Found::Damaged("its mirror has another length"));
    }
    let mut index = Index::map(index, header, true)?;
    let Some((entry, gate)) = INDEX_SESSION.enter(index.file(), wait)? else {
        return Ok(Found::Unusable("another process does not come to an end with opening or closing it".into()));
    };
    match entry {
        Entry::First => index.begin_session(&mirror_stat)?,
        Entry::Joined if index.join_session(&mirror_stat) => {}
        Entry::Joined => return Ok(Found::Unusable("its mirror is not the one that others have open".into())),
    }
    gate.open(index.file())?;
    if file::stat(index.file())?.links == 0 {
        return Ok(Found::Again);
    }
    finish(index, mirror, place, account, wait)
}

pub(crate) fn finish(index: Index, mirror: OwnedFd, place: Place, account: Option<Account>, wait: Duration) -> io::Result<Found> {
    let stat = file::stat(index.file())?;
    let named = place.data.file_name().and_then(|name| CString::new(name.as_bytes()).ok());
    let identity = file::identity(mirror.as_fd()).ok().flatten();
    let name = match (place.parents.first(), named, identity) {
        (Some(dir), Some(name), Some(found)) => Some(Name { dir: Arc::clone(dir), name, found }),
        _ => None,
    };
    let pair = Pair::new(index, Mirror::new(mirror, name), place, account, wait, (stat.device, stat.inode));
    Ok(Found::Pair(pair.enroll()))
}

/// Fills in a new index, in whose first session this process is alone.
pub(crate) fn begin_first(index: OwnedFd, mirror: &OwnedFd, header: &Header, lasting: bool) -> io::Result<Index> {
    index::write_new(index.as_fd(), header)?;
    // Nobody else can open it before it has its name.
    let Some((Entry::First, gate)) = INDEX_SESSION.enter(index.as_fd(), Duration::ZERO)? else {
        return Err(io::Error::other("a new index is locked"));
    };
    let mut index = Index::map(index, header, lasting)?;
    index.begin_first_session(&file::stat(mirror.as_fd())?);
    gate.open(index.file())?;
    Ok(index)
}

pub(crate) fn c_path(path: &Path) -> Result<CString> {
    if path.as_os_str().is_empty() {
        return Err(Error::Argument("a path is empty".into()));
    }
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::Argument("a path has a zero byte in it".into()))
}
