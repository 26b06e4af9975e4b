//! A pair at two paths of a program's own: opened if both are there, made if neither is, and never over a foreign file.

use crate::control::hex;
use crate::error::{Error, Result};
use crate::format::Unreadable;
use crate::index::{self, Index};
use crate::log;
use crate::making::{Found, Wanted, begin_first, c_path, enter, finish, unfit};
use crate::pair::{Pair, Place, new_header};
use crate::sys::file::{self, Open, Stat};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A pair at two paths of the program's choice: opened if both are there, made if neither is.
///
/// A frozen pair is never made, and may lie where it cannot be written.
pub(crate) fn pair_at(data: &Path, index: &Path, wanted: Wanted<'_>, frozen: bool, wait: Duration) -> Result<Option<Arc<Pair>>> {
    let names = Paths { data: c_path(data)?, index: c_path(index)?, frozen };
    let deadline = Instant::now() + GRACE;
    loop {
        let found = match (names.open(&names.data), names.open(&names.index)) {
            (Ok(data_file), Ok(index_file)) => names.join(data_file, index_file, data, index, wanted, wait),
            (Err(error), _) | (_, Err(error)) if frozen => return Err(Error::io(format!("frozen pair {}", data.display()), error)),
            (Err(first), Err(second)) if missing(&first) && missing(&second) => names.make(None, data, index, wanted, wait),
            (Ok(data_file), Err(error)) if missing(&error) => {
                // Another process may be between the two; or one died there, leaving an empty mirror.
                if is_empty_mirror(&data_file, wanted) && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                names.make(Some(data_file), data, index, wanted, wait)
            }
            // Both may have been published between the two looks; the data comes first.
            (Err(error), Ok(_)) if missing(&error) && names.open(&names.data).is_ok() => continue,
            (Err(error), Ok(_)) if missing(&error) => {
                let (index, data) = (index.display(), data.display());
                return Err(Error::Exists(format!(
                    "{index} exists and {data} does not: remove the one, or name the file that belongs to it"
                )));
            }
            (Err(error), _) => return Err(Error::io(data.display().to_string(), error)),
            (_, Err(error)) => return Err(Error::io(index.display().to_string(), error)),
        };
        match found {
            Ok(Found::Pair(pair)) => {
                if let Some(kind) = file::unshareable(pair.index().file()).filter(|_| !frozen) {
                    let path = index.display();
                    log::warn(|| format!("{path} is on {kind}: never open it from a second machine, its locks do not reach there"));
                }
                return Ok(Some(pair));
            }
            Ok(Found::Again) if Instant::now() < deadline + wait => {}
            Ok(Found::Again) => return Err(Error::Exists(format!("{}: replaced again and again", index.display()))),
            Ok(Found::Damaged(what)) => {
                return Err(Error::Exists(format!(
                    "{} and {}: {what}: remove both, and they are made anew",
                    data.display(),
                    index.display()
                )));
            }
            Ok(Found::Unusable(why)) => return Err(Error::Exists(format!("{}: {why}", index.display()))),
            Err(error) => {
                log::warn(|| format!("{}: {error}: nothing is kept", data.display()));
                return Ok(None);
            }
        }
    }
}

/// How long a mirror without an index may be one that is being made.
const GRACE: Duration = Duration::from_millis(300);

fn is_empty_mirror(data: &OwnedFd, wanted: Wanted<'_>) -> bool {
    file::stat(data.as_fd()).is_ok_and(|stat| unfit(&stat).is_none() && stat.allocated == 0 && stat.size == wanted.pages.size)
}

fn missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

const OTHER_CONTENT: &str = "holds another key, version or size: remove both files, or name others";

struct Paths {
    data: CString,
    index: CString,
    frozen: bool,
}

impl Paths {
    fn open(&self, name: &CStr) -> io::Result<OwnedFd> {
        file::open_at(None, name, Open::Existing).or_else(|error| match error.raw_os_error() {
            Some(libc::EROFS | libc::EACCES | libc::EPERM) if self.frozen => file::open_at(None, name, Open::ReadOnly),
            _ => Err(error),
        })
    }

    fn join(
        &self,
        mirror: OwnedFd,
        index: OwnedFd,
        data_path: &Path,
        index_path: &Path,
        wanted: Wanted<'_>,
        wait: Duration,
    ) -> io::Result<Found> {
        let stat = file::stat(index.as_fd())?;
        if file::is_read_only(index.as_fd()) || file::is_read_only(mirror.as_fd()) {
            return self.join_fixed(mirror, index, &stat, data_path, index_path, wanted);
        }
        if let Some(why) = unfit(&stat) {
            return Ok(Found::Unusable(why.into()));
        }
        if let Some(pair) = Pair::find((stat.device, stat.inode)) {
            if !wanted.matches(pair.index().header()) {
                return Ok(Found::Unusable(OTHER_CONTENT.into()));
            }
            let same = file::stat(mirror.as_fd())?.inode == file::stat(pair.mirror().file()?.as_fd())?.inode;
            return Ok(if same { Found::Pair(pair) } else { Found::Unusable("is open with another data_path".into()) });
        }
        match index::read_header(index.as_fd(), &stat)? {
            Ok(header) if wanted.matches(&header) => {
                let place = place_at(data_path, index_path)?;
                enter(index, mirror, &header, place, None, wait)
            }
            Ok(_) => Ok(Found::Unusable(OTHER_CONTENT.into())),
            Err(Unreadable::Foreign(what)) => Ok(Found::Unusable(what)),
            Err(Unreadable::Damaged(what)) => Ok(Found::Damaged(what)),
        }
    }

    /// A pair that cannot be written: nobody's session, pages compared and stamped for this process alone.
    fn join_fixed(
        &self,
        mirror: OwnedFd,
        index: OwnedFd,
        stat: &Stat,
        data_path: &Path,
        index_path: &Path,
        wanted: Wanted<'_>,
    ) -> io::Result<Found> {
        let mirror_stat = file::stat(mirror.as_fd())?;
        if !stat.is_file() || !mirror_stat.is_file() {
            return Ok(Found::Unusable("not a plain file".into()));
        }
        let header = match index::read_header(index.as_fd(), stat)? {
            Ok(header) if wanted.matches(&header) && mirror_stat.size == header.size => header,
            Ok(_) => return Ok(Found::Unusable(OTHER_CONTENT.into())),
            Err(unreadable) => return Ok(Found::Unusable(unreadable.to_string())),
        };
        let mut index = Index::map_fixed(index, &header)?;
        index.begin_session(&mirror_stat)?;
        finish(index, mirror, place_at(data_path, index_path)?, None, Duration::ZERO)
    }

    /// Makes the pair; of a mirror that is there already only one that holds nothing is taken.
    fn make(
        &self,
        there: Option<OwnedFd>,
        data_path: &Path,
        index_path: &Path,
        wanted: Wanted<'_>,
        wait: Duration,
    ) -> io::Result<Found> {
        let mirror = match there {
            Some(mirror) => {
                if !is_empty_mirror(&mirror, wanted) {
                    return Ok(Found::Unusable(
                        "does not exist, and data_path is a file that nearfile did not make: remove it, or name another".into(),
                    ));
                }
                mirror
            }
            None => match self.publish(&self.data, data_path, |file| file::set_len(file.as_fd(), wanted.pages.size).map(|()| file))
            {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Found::Again),
                mirror => mirror?,
            },
        };
        let header = new_header(wanted.key.unwrap_or_default(), wanted.version, wanted.pages, [0; 16]);
        match self.publish(&self.index, index_path, |file| begin_first(file, &mirror, &header, true)) {
            Ok(index) => finish(index, mirror, place_at(data_path, index_path)?, None, wait),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Found::Again),
            Err(error) => Err(error),
        }
    }

    /// Fills in a file beside its final name and links it there.
    fn publish<T>(&self, name: &CStr, path: &Path, fill: impl FnOnce(OwnedFd) -> io::Result<T>) -> io::Result<T> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".");
        beside.push(hex(&file::random()?));
        let beside = CString::new(beside.as_bytes()).map_err(io::Error::other)?;
        let filled = file::open_at(None, &beside, Open::New).and_then(fill);
        let published = filled.and_then(|value| file::publish_at(None, &beside, name).map(|()| value));
        published.inspect_err(|_| drop(file::unlink_at(None, &beside)))
    }
}

fn place_at(data: &Path, index: &Path) -> io::Result<Place> {
    let mut parents = Vec::new();
    for path in [data, index] {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = CString::new(parent.as_os_str().as_bytes()).map_err(io::Error::other)?;
        parents.push(Arc::new(file::open_at(None, &name, Open::Directory)?));
    }
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    Ok(Place { data: absolute(data), index: absolute(index), parents })
}
