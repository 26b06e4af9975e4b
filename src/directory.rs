//! Naming, making, finding and replacing pairs. What is found is checked before it is used: nothing here follows a link, opens a
//! device, uses another user's file or writes over a foreign one. What cannot be used costs the near copy, never the read.

use crate::budget::{Account, Budget, Census};
use crate::control::{Control, hex, named, temporary_name};
use crate::dropping::Dropped;
use crate::error::{Error, Result};
use crate::format::SESSION_LOCK;
use crate::format::{BLOCK, Header, State, Unreadable};
use crate::index::{self, Index};
use crate::lock::INDEX_SESSION;
use crate::log;
use crate::making::{Found, Wanted, begin_first, c_path, enter, finish, unfit};
use crate::mirror::Mirror;
use crate::options::CacheOptions;
use crate::pair::{Pair, Place, new_header};
use crate::range::Pages;
use crate::sys::file::{self, Open, Stat};
use crate::sys::lock::holder;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_128;

/// A cache directory, open; or what is left of it where it cannot be used.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    fd: Option<Arc<OwnedFd>>,
    /// None: pairs are private, as the directory is not ours alone or its `control` cannot be used.
    shared: Option<Shared>,
}

/// What the processes that use a directory share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) control: Arc<Control>,
    pub(crate) budget: Arc<Budget>,
}

/// A pair as it stands in the directory.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) name: CString,
    pub(crate) header: Header,
    pub(crate) index: OwnedFd,
}

impl Listed {
    /// Whether some process has it open.
    pub(crate) fn is_open(&self) -> bool {
        holder(self.index.as_fd(), SESSION_LOCK, 1).map_or(true, |holder| holder.is_some())
    }
}

/// Rounds of finding and making before giving up: each lost one means that another process won it.
const ROUNDS: u32 = 64;

impl Directory {
    /// `$XDG_CACHE_HOME/nearfile`, else `$HOME/.cache/nearfile`.
    pub(crate) fn default_path() -> Result<PathBuf> {
        let from = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        from("XDG_CACHE_HOME")
            .or_else(|| from("HOME").map(|home| home.join(".cache")))
            .map(|base| base.join("nearfile"))
            .ok_or_else(|| {
                Error::Argument(
                    "no cache directory: neither XDG_CACHE_HOME nor HOME is an absolute path; give one to nearfile_cache_open"
                        .into(),
                )
            })
    }

    pub(crate) fn open(path: &Path, options: &CacheOptions, wait: Duration) -> Result<Directory> {
        let name = c_path(path)?;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        let opened = made.and_then(|()| file::open_at(None, &name, Open::Directory));
        let unusable = |error: &io::Error| {
            log::warn(|| {
                format!("cache directory {}: {error}: files are read from their sources, and nothing is kept", path.display())
            });
            Directory { path: path.to_owned(), fd: None, shared: None }
        };
        let fd = match opened {
            Ok(fd) => fd,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::EEXIST)) || path.is_file() => {
                return Err(Error::Argument(format!(
                    "cache directory {}: it, or a part of its path, is a file; name a directory",
                    path.display()
                )));
            }
            Err(error) => return Ok(unusable(&error)),
        };
        let stat = match file::stat(fd.as_fd()) {
            Ok(stat) => stat,
            Err(error) => return Ok(unusable(&error)),
        };
        let (path, fd) = (std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()), Arc::new(fd));
        let shared = if is_led_to_by_another(&name, &stat) {
            log::warn(|| {
                let path = path.display();
                format!(
                    "cache directory {path} was found by a link of another user's: files are cached for this process alone; name the directory itself"
                )
            });
            None
        } else if !stat.is_dir() || !stat.is_ours() {
            log::warn(|| {
                let path = path.display();
                format!(
                    "cache directory {path} belongs to another user or can be written by others: files are cached for this process alone; `chmod go-w` your own directory to share it"
                )
            });
            None
        } else if let Some(kind) = file::unshareable(fd.as_fd()) {
            log::warn(|| {
                let path = path.display();
                format!(
                    "cache directory {path} is on {kind}, whose locks are not to be relied on: files are cached for this process alone; name one on a local disk"
                )
            });
            None
        } else {
            let shared = Shared::open(&path, &fd, options, wait);
            shared
                .inspect_err(|error| {
                    log::warn(|| format!("cache directory {}: {error}: files are cached for this process alone", path.display()))
                })
                .ok()
        };
        Ok(Directory { path, fd: Some(fd), shared })
    }

    pub(crate) fn shared(&self) -> Option<&Shared> {
        self.shared.as_ref()
    }

    fn account(&self, private: bool) -> Option<Account> {
        self.shared.as_ref().map(|shared| Account::new(Arc::clone(&shared.budget), private))
    }

    /// The pair of a file, found or made; private where there is no key or the directory is not shared; `None` where nothing can be
    /// kept, which the log explains.
    pub(crate) fn pair(&self, wanted: Wanted<'_>, wait: Duration) -> Option<Arc<Pair>> {
        let fd = self.fd.as_ref()?;
        if let (Some(name), Some(shared)) = (wanted.index_name(), &self.shared) {
            match self.keyed(fd, &shared.control, &name, wanted, wait) {
                Ok(Found::Pair(pair)) => return Some(pair),
                Ok(Found::Unusable(why)) => self.say_private(&name, &why),
                Ok(Found::Again | Found::Damaged(_)) => self.say_private(&name, "it is replaced again and again"),
                Err(error) => self.say_private(&name, &error.to_string()),
            }
        }
        private(fd.as_fd(), wanted, self.account(true), wait)
            .inspect_err(|error| log::warn(|| format!("{}: no private file there ({error}): nothing is kept", self.path.display())))
            .ok()
    }

    fn say_private(&self, name: &CStr, why: &str) {
        log::warn(|| format!("{}: {why}: the file is cached for this process alone", self.place_of(name).display()));
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn place_of(&self, name: &CStr) -> PathBuf {
        self.path.join(OsStr::from_bytes(name.to_bytes()))
    }

    fn keyed(&self, fd: &Arc<OwnedFd>, control: &Control, name: &CStr, wanted: Wanted<'_>, wait: Duration) -> io::Result<Found> {
        for _ in 0..ROUNDS {
            let found = match file::open_at(Some(fd.as_fd()), name, Open::Existing) {
                Ok(index) => self.join(fd, name, index, wanted, wait)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.make(fd, control, name, wanted, wait)?,
                Err(error) => Found::Unusable(error.to_string()),
            };
            match found {
                Found::Again => {}
                Found::Damaged(what) => self.replace(fd, control, name, wanted, what, wait)?,
                Found::Pair(pair) => {
                    pair.index().spare(); // wanted again, should it have been removed while open
                    return Ok(Found::Pair(pair));
                }
                unusable => return Ok(unusable),
            }
        }
        Ok(Found::Again)
    }

    /// Opens the pair of an index that exists.
    fn join(&self, fd: &Arc<OwnedFd>, name: &CStr, index: OwnedFd, wanted: Wanted<'_>, wait: Duration) -> io::Result<Found> {
        let stat = file::stat(index.as_fd())?;
        if let Some(why) = unfit(&stat) {
            return Ok(Found::Unusable(why.into()));
        }
        if stat.links == 0 {
            return Ok(Found::Again);
        }
        if let Some(pair) = Pair::find((stat.device, stat.inode)) {
            let same = wanted.matches(pair.index().header());
            return Ok(if same { Found::Pair(pair) } else { Found::Unusable("another key has the same name".into()) });
        }
        let header = match index::read_header(index.as_fd(), &stat)? {
            Ok(header) if wanted.matches(&header) => header,
            Ok(_) => return Ok(Found::Unusable("another key has the same name".into())),
            Err(Unreadable::Foreign(what)) => return Ok(Found::Unusable(what)),
            Err(Unreadable::Damaged(what)) => return Ok(Found::Damaged(what)),
        };
        let data_name = named(&header.mirror, "data");
        let mirror = match file::open_at(Some(fd.as_fd()), &data_name, Open::Existing) {
            Ok(mirror) => mirror,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let still_there = file::stat(index.as_fd())?.links > 0;
                return Ok(if still_there { Found::Damaged("its mirror is gone") } else { Found::Again });
            }
            Err(error) => return Ok(Found::Unusable(format!("its mirror: {error}"))),
        };
        let place = Place { data: self.place_of(&data_name), index: self.place_of(name), parents: vec![Arc::clone(fd)] };
        enter(index, mirror, &header, place, self.account(false), wait)
    }

    /// Makes a pair under random names and publishes it; the index comes last and is the commit point.
    fn make(&self, fd: &Arc<OwnedFd>, control: &Control, name: &CStr, wanted: Wanted<'_>, wait: Duration) -> io::Result<Found> {
        let Some(_lock) = control.lock(wait)? else { return Ok(Found::Unusable("the directory's lock is stuck".into())) };
        if let Some(shared) = &self.shared {
            shared.budget.answer_for_files();
        }
        let random = file::random()?;
        let (data_name, index_name) = (named(&random, "data"), temporary_name(&random));
        let dir = Some(fd.as_fd());
        let mirror = file::open_at(dir, &data_name, Open::New)?;
        let header = new_header(wanted.key.unwrap_or_default(), wanted.version, wanted.pages, random);
        let made = file::set_len(mirror.as_fd(), header.size)
            .and_then(|()| file::open_at(dir, &index_name, Open::New))
            .and_then(|index| begin_first(index, &mirror, &header, true));
        let published = made.and_then(|index| file::publish_at(dir, &index_name, name).map(|()| index));
        let index = match published {
            Ok(index) => index,
            Err(error) => {
                let _ = file::unlink_at(dir, &index_name);
                let _ = file::unlink_at(dir, &data_name);
                return if error.kind() == io::ErrorKind::AlreadyExists { Ok(Found::Again) } else { Err(error) };
            }
        };
        let place = Place { data: self.place_of(&data_name), index: self.place_of(name), parents: vec![Arc::clone(fd)] };
        finish(index, mirror, place, self.account(false), wait)
    }

    /// Takes a damaged pair out of the way, both files; who has it open keeps what is open.
    fn replace(
        &self,
        fd: &Arc<OwnedFd>,
        control: &Control,
        name: &CStr,
        wanted: Wanted<'_>,
        what: &str,
        wait: Duration,
    ) -> io::Result<()> {
        let dir = Some(fd.as_fd());
        let Some(_lock) = control.lock(wait)? else { return Err(io::Error::other("the directory's lock is stuck")) };
        // Under the lock, look again: another may have replaced it already.
        let Ok(index) = file::open_at(dir, name, Open::Existing) else { return Ok(()) };
        let stat = file::stat(index.as_fd())?;
        if unfit(&stat).is_some() {
            return Ok(());
        }
        match index::read_header(index.as_fd(), &stat)? {
            Err(Unreadable::Foreign(_)) => return Ok(()),
            Err(Unreadable::Damaged(_)) => {
                if let Some(mirror) = index::mirror_of_damaged(index.as_fd()) {
                    let data_name = named(&mirror, "data");
                    if file::stat_at(dir, &data_name).is_ok_and(|mirror| unfit(&mirror).is_none()) {
                        let _ = file::unlink_at(dir, &data_name);
                    }
                }
            }
            Ok(header) => {
                let data_name = named(&header.mirror, "data");
                let whole = wanted.matches(&header)
                    && file::stat_at(dir, &data_name).is_ok_and(|mirror| unfit(&mirror).is_none() && mirror.size == header.size);
                if whole {
                    return Ok(());
                }
                let _ = file::unlink_at(dir, &data_name);
            }
        }
        if let Some(shared) = &self.shared {
            shared.budget.recount_later(); // what it held can no longer be told
        }
        log::warn(|| format!("{}: {what}: replaced", self.place_of(name).display()));
        file::unlink_at(dir, name)
    }

    /// A mirror without a name or an index, of this process alone, and its account.
    pub(crate) fn unnamed_mirror(&self, size: u64) -> Option<(Mirror, Option<Account>)> {
        let made = unnamed(self.fd.as_ref()?.as_fd()).and_then(|mirror| file::set_len(mirror.as_fd(), size).map(|()| mirror));
        let mirror = made.inspect_err(|error| {
            log::warn(|| format!("{}: no private file there ({error}): nothing is kept", self.path.display()))
        });
        Some((Mirror::new(mirror.ok()?, None), self.account(true)))
    }

    /// The pairs of the directory that can be used, in no order, one open at a time.
    pub(crate) fn list(&self) -> impl Iterator<Item = Listed> + '_ {
        self.fd.iter().flat_map(|fd| list(&self.path, fd.as_fd()))
    }

    /// The pairs of a key, of whatever version.
    pub(crate) fn list_key<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = Listed> + 'a {
        let prefix = hex(&xxh3_128(key).to_be_bytes());
        let named_so = move |name: &CString| name.to_bytes().starts_with(prefix.as_bytes());
        let fd = self.fd.iter();
        fd.flat_map(move |fd| pairs(names(&self.path).filter(named_so.clone()), fd.as_fd()))
            .filter(move |pair| pair.header.key == key)
    }

    /// A pair by its name.
    pub(crate) fn listed(&self, name: &CStr) -> Option<Listed> {
        listed(self.fd.as_ref()?.as_fd(), name.to_owned()).ok().flatten()
    }

    /// Opens a pair that is in the directory; `None` where that cannot be.
    pub(crate) fn open_listed(&self, listed: Listed, wait: Duration) -> Option<Arc<Pair>> {
        let pages = Pages { size: listed.header.size, page_size: listed.header.page_size };
        let wanted = Wanted { key: Some(&listed.header.key), version: &listed.header.version, pages };
        match self.join(self.fd.as_ref()?, &listed.name, listed.index, wanted, wait) {
            Ok(Found::Pair(pair)) => Some(pair),
            _ => None,
        }
    }

    /// The mirror of a pair that is in the directory.
    pub(crate) fn open_mirror(&self, listed: &Listed) -> io::Result<OwnedFd> {
        let dir = self.fd.as_ref().map(|fd| fd.as_fd());
        let mirror = file::open_at(dir, &named(&listed.header.mirror, "data"), Open::Existing)?;
        match unfit(&file::stat(mirror.as_fd())?) {
            Some(why) => Err(io::Error::other(format!("its mirror {why}"))),
            None => Ok(mirror),
        }
    }

    /// Removes the files of a pair that nobody has open; returns what it held, or `None` where somebody has.
    pub(crate) fn remove_closed(&self, listed: Listed) -> io::Result<Option<Dropped>> {
        let (Some(fd), Some(shared)) = (&self.fd, &self.shared) else { return Ok(None) };
        let dir = Some(fd.as_fd());
        // Whoever opens it meanwhile waits at the gate, and then finds a file without a name.
        let Some(_gate) = INDEX_SESSION.is_deserted(listed.index.as_fd(), Duration::ZERO)? else { return Ok(None) };
        if file::stat(listed.index.as_fd())?.links != 1 {
            return Ok(None);
        }
        shared.budget.before_drop()?;
        let locked = file::reopen(listed.index.as_fd())?;
        let index = Index::map(locked, &listed.header, false)?;
        let gone = Dropped { pages: index.census().0, bytes: index.count_held() };
        file::unlink_at(dir, &listed.name)?;
        file::unlink_at(dir, &named(&listed.header.mirror, "data"))?;
        shared.budget.give_back(gone.bytes);
        Ok(Some(gone))
    }
}

impl Shared {
    fn open(path: &Path, fd: &Arc<OwnedFd>, options: &CacheOptions, wait: Duration) -> io::Result<Shared> {
        let control = Arc::new(Control::open(fd.as_fd())?);
        let census = || {
            let again = sweep_orphans(path, fd.as_fd());
            let closed = list(path, fd.as_fd()).map(|listed| (!listed.is_open(), listed));
            let indexes =
                closed.filter_map(|(closed, listed)| Some((closed, Index::map(listed.index, &listed.header, false).ok()?)));
            let count = |(closed, index): (bool, Index)| {
                if closed {
                    let _ = punch_strays(fd.as_fd(), &index); // where it cannot, what is there is not counted
                }
                index.recount_held()
            };
            Census { bytes: indexes.map(count).sum(), again }
        };
        let dir = Arc::clone(fd);
        let budget = Budget::open(Arc::clone(&control), dir, options.size_limit, options.min_free, wait, census)?;
        Ok(Shared { control, budget })
    }
}

/// Whether the last part of a path is not the directory that was opened but a link to it that neither we nor root made: another user
/// does not choose where things are kept.
fn is_led_to_by_another(name: &CStr, opened: &Stat) -> bool {
    let end = name.to_bytes().iter().rposition(|&byte| byte != b'/').map_or(1, |last| last + 1);
    let Ok(name) = CString::new(&name.to_bytes()[..end]) else { return true };
    file::stat_at(None, &name).map_or(true, |named| {
        let itself = (named.device, named.inode) == (opened.device, opened.inode);
        !itself && ![0, file::effective_user()].contains(&named.owner)
    })
}

fn list<'a>(path: &Path, dir: BorrowedFd<'a>) -> impl Iterator<Item = Listed> + use<'a> {
    pairs(names(path), dir)
}

fn pairs<'a, I: Iterator<Item = CString>>(names: I, dir: BorrowedFd<'a>) -> impl Iterator<Item = Listed> + use<'a, I> {
    names.filter(|name| name.to_bytes().ends_with(b".index")).filter_map(move |name| listed(dir, name).ok().flatten())
}

fn names(path: &Path) -> impl Iterator<Item = CString> + use<> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| CString::new(entry.file_name().as_bytes()).ok())
}

fn listed(dir: BorrowedFd<'_>, name: CString) -> io::Result<Option<Listed>> {
    let index = file::open_at(Some(dir), &name, Open::Existing)?;
    let stat = file::stat(index.as_fd())?;
    if unfit(&stat).is_some() {
        return Ok(None);
    }
    // A pair at paths of a program's own, whose mirror has no name here, is nobody's to give up.
    let header = index::read_header(index.as_fd(), &stat)?.ok().filter(|header| header.mirror != [0; 16]);
    Ok(header.map(|header| Listed { name, header, index }))
}

/// Removes what was left behind by makers and removers that were killed: indexes and `control`s that never got their names, and
/// mirrors that no index names; these only if empty, or if every index here can be read. Nobody else is in the directory. What is of
/// another kind is left alone; whether something is young enough to be in the making, and so left for the next sweep, is returned.
fn sweep_orphans(path: &Path, dir: BorrowedFd<'_>) -> bool {
    names(path).filter(|name| name.to_bytes().ends_with(b".index")).for_each(|name| sweep_torn(dir, &name));
    let mirrors: Vec<CString> = list(path, dir).map(|pair| named(&pair.header.mirror, "data")).collect();
    let all_read = mirrors.len() == names(path).filter(|name| name.to_bytes().ends_with(b".index")).count();
    let age_left_behind = |name: &CStr| {
        let file = file::open_at(Some(dir), name, Open::Existing).ok()?;
        let stat = file::stat(file.as_fd()).ok()?;
        let ours = if name.to_bytes().ends_with(b".data") {
            all_read
        } else {
            let header = index::read_header(file.as_fd(), &stat);
            Control::was_to_be(&file) || matches!(header, Ok(Ok(_) | Err(Unreadable::Damaged(_))))
        };
        (unfit(&stat).is_none() && (ours || stat.allocated == 0)).then(|| index::now().saturating_sub(stat.changed))
    };
    let mut again = false;
    for name in names(path) {
        let bytes = name.to_bytes();
        let named_so =
            bytes.len() > 32 && bytes[..32].iter().all(u8::is_ascii_hexdigit) && matches!(&bytes[32..], b".tmp" | b".data");
        if !named_so || mirrors.contains(&name) {
            continue;
        }
        match age_left_behind(&name) {
            Some(age) if age > ORPHAN_AGE.as_nanos() as u64 => drop(file::unlink_at(Some(dir), &name)),
            Some(_) => again = true,
            None => {}
        }
    }
    again
}

/// Removes an index that a power cut tore before it was whole, so that its mirror can be told to be nobody's.
fn sweep_torn(dir: BorrowedFd<'_>, name: &CStr) {
    let torn = || {
        let file = file::open_at(Some(dir), name, Open::Existing)?;
        let stat = file::stat(file.as_fd())?;
        Ok::<_, io::Error>(
            unfit(&stat).is_none() && matches!(index::read_header(file.as_fd(), &stat)?, Err(Unreadable::Damaged(_))),
        )
    };
    if torn().unwrap_or(false) {
        let _ = file::unlink_at(Some(dir), name);
    }
}

/// Gives back what a mirror has under absent pages: after a power cut bytes may be there whose words are not. Nobody has it open.
fn punch_strays(dir: BorrowedFd<'_>, index: &Index) -> io::Result<()> {
    let mirror = file::open_at(Some(dir), &named(&index.header().mirror, "data"), Open::Existing)?;
    let pages = index.pages();
    let mut at = 0;
    while let Some(data) = file::next_data(mirror.as_fd(), at)?.filter(|&data| data < pages.size) {
        let run = index.alike(pages.page_of(data))?;
        let bytes = pages.bytes_of(run);
        // Blocks that a present page has a part in are its own.
        let hole = bytes.start.next_multiple_of(BLOCK)..if bytes.end == pages.size { bytes.end } else { bytes.end / BLOCK * BLOCK };
        if index.load(run.first)?.state() == State::Absent && !hole.is_empty() {
            file::punch(mirror.as_fd(), hole.start..hole.end.next_multiple_of(BLOCK))?;
        }
        at = bytes.end;
    }
    Ok(())
}

/// Nobody takes so long to make a pair.
const ORPHAN_AGE: Duration = Duration::from_secs(60);

/// A pair without names, gone with the last process that has it.
fn private(dir: BorrowedFd<'_>, wanted: Wanted<'_>, account: Option<Account>, wait: Duration) -> io::Result<Arc<Pair>> {
    let mirror = unnamed(dir)?;
    file::set_len(mirror.as_fd(), wanted.pages.size)?;
    let header = new_header(wanted.key.unwrap_or_default(), wanted.version, wanted.pages, [0; 16]);
    let index = begin_first(unnamed(dir)?, &mirror, &header, false)?;
    let path = |fd: BorrowedFd<'_>| PathBuf::from(OsStr::from_bytes(file::descriptor_path(fd.as_raw_fd()).as_bytes()));
    let place = Place { data: path(mirror.as_fd()), index: path(index.file()), parents: Vec::new() };
    let stat = file::stat(index.file())?;
    Ok(Pair::new(index, Mirror::new(mirror, None), place, account, wait, (stat.device, stat.inode)))
}

fn unnamed(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let here = file::descriptor_path(dir.as_raw_fd());
    let here = CString::new(here.as_bytes()).map_err(io::Error::other)?;
    if let Ok(file) = file::open_at(None, &here, Open::Unnamed).or_else(|_| file::open_at(Some(dir), c".", Open::Unnamed)) {
        return Ok(file);
    }
    // A file system without O_TMPFILE: a random name, taken away at once.
    let name = temporary_name(&file::random()?);
    let file = file::open_at(Some(dir), &name, Open::New)?;
    file::unlink_at(Some(dir), &name)?;
    Ok(file)
}
