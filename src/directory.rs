//! Naming, making, finding and replacing pairs. What is found is checked before it is used: nothing here follows a link, opens a
//! device, uses another user's file or writes over a foreign one. What cannot be used costs the near copy, never the read.

use crate::budget::{Account, Budget};
use crate::control::{Control, hex, named, temporary_name};
use crate::error::{Error, Result};
use crate::format::SESSION_LOCK;
use crate::format::{Header, Unreadable};
use crate::index::{self, Index};
use crate::lock::{Entry, INDEX_SESSION};
use crate::log;
use crate::mirror::Mirror;
use crate::options::CacheOptions;
use crate::pair::{Dropped, Pair, Place, new_header};
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
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::xxh3_128;

/// What a file to open is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) version: &'a [u8],
    pub(crate) pages: Pages,
}

impl Wanted<'_> {
    fn matches(&self, header: &Header) -> bool {
        self.key.is_none_or(|key| header.key == key) && header.version == self.version && header.size == self.pages.size
    }

    fn index_name(&self) -> Option<CString> {
        let key = xxh3_128(self.key?).to_be_bytes();
        let mut content = self.pages.size.to_be_bytes().to_vec();
        content.extend_from_slice(self.version);
        let name = format!("{}-{}.index", hex(&key), hex(&xxh3_128(&content).to_be_bytes()));
        CString::new(name).ok()
    }
}

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

/// What came of opening the files of a pair.
enum Found {
    Pair(Arc<Pair>),
    /// It changed meanwhile.
    Again,
    /// Damaged: to be replaced.
    Damaged(&'static str),
    /// Somebody else's, or out of order in a way that we must not touch.
    Unusable(String),
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
        let shared = if !stat.is_dir() || !stat.is_ours() {
            log::warn(|| {
                let path = path.display();
                format!(
                    "cache directory {path} belongs to another user or can be written by others: files are cached for this process alone; `chmod go-w` your own directory to share it"
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
        private(fd.as_fd(), wanted, self.account(true))
            .inspect_err(|error| log::warn(|| format!("{}: no private file there ({error}): nothing is kept", self.path.display())))
            .ok()
    }

    fn say_private(&self, name: &CStr, why: &str) {
        log::warn(|| format!("{}: {why}: the file is cached for this process alone", self.place_of(name).display()));
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
        finish(index, mirror, place, self.account(false))
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
        Some((Mirror::new(mirror.ok()?), self.account(true)))
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

    /// Removes the files of a pair that nobody has open; returns what it held, or `None` where somebody has.
    pub(crate) fn remove_closed(&self, listed: Listed) -> io::Result<Option<Dropped>> {
        let (Some(fd), Some(shared)) = (&self.fd, &self.shared) else { return Ok(None) };
        let dir = Some(fd.as_fd());
        // Whoever opens it meanwhile waits at the gate, and then finds a file without a name.
        let Some(_gate) = INDEX_SESSION.is_deserted(listed.index.as_fd(), Duration::ZERO)? else { return Ok(None) };
        if file::stat(listed.index.as_fd())?.links != 1 {
            return Ok(None);
        }
        let locked = file::reopen(listed.index.as_fd())?;
        let index = Index::map(locked, &listed.header, false)?;
        let gone = Dropped { pages: index.census().0, bytes: index.recount_held() };
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
            sweep_orphans(path, fd.as_fd());
            list(path, fd.as_fd())
                .filter_map(|listed| Index::map(listed.index, &listed.header, false).ok())
                .map(|index| index.recount_held())
                .sum()
        };
        let dir = Arc::clone(fd);
        let budget = Budget::open(Arc::clone(&control), dir, options.size_limit, options.min_free, wait, census)?;
        Ok(Shared { control, budget })
    }
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

/// Removes what a maker that was killed left behind: empty mirrors without an index, and indexes that never got their names. Anything
/// that has content of another kind, or is young enough to be in the making, is left alone.
fn sweep_orphans(path: &Path, dir: BorrowedFd<'_>) {
    let mirrors: Vec<CString> = list(path, dir).map(|pair| named(&pair.header.mirror, "data")).collect();
    let left_behind = |name: &CStr| {
        let file = file::open_at(Some(dir), name, Open::Existing).ok()?;
        let stat = file::stat(file.as_fd()).ok()?;
        let old = index::now().saturating_sub(stat.changed) > ORPHAN_AGE.as_nanos() as u64;
        let empty = stat.allocated == 0;
        let ours = empty || matches!(index::read_header(file.as_fd(), &stat), Ok(Ok(_)));
        Some(unfit(&stat).is_none() && old && if name.to_bytes().ends_with(b".data") { empty } else { ours })
    };
    for name in names(path) {
        let bytes = name.to_bytes();
        let named_so =
            bytes.len() > 32 && bytes[..32].iter().all(u8::is_ascii_hexdigit) && matches!(&bytes[32..], b".tmp" | b".data");
        if named_so && !mirrors.contains(&name) && left_behind(&name) == Some(true) {
            let _ = file::unlink_at(Some(dir), &name);
        }
    }
}

/// Nobody takes so long to make a pair.
const ORPHAN_AGE: Duration = Duration::from_secs(60);

/// Why a file must not be used; `None` where it may.
fn unfit(stat: &Stat) -> Option<&'static str> {
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
fn enter(
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
    drop(gate);
    if file::stat(index.file())?.links == 0 {
        return Ok(Found::Again);
    }
    finish(index, mirror, place, account)
}

fn finish(index: Index, mirror: OwnedFd, place: Place, account: Option<Account>) -> io::Result<Found> {
    let stat = file::stat(index.file())?;
    let pair = Pair::new(index, Mirror::new(mirror), place, account, (stat.device, stat.inode));
    Ok(Found::Pair(pair.enroll()))
}

/// Fills in a new index, in whose first session this process is alone.
fn begin_first(index: OwnedFd, mirror: &OwnedFd, header: &Header, lasting: bool) -> io::Result<Index> {
    index::write_new(index.as_fd(), header)?;
    // Nobody else can open it before it has its name.
    if !matches!(INDEX_SESSION.enter(index.as_fd(), Duration::ZERO)?, Some((Entry::First, _))) {
        return Err(io::Error::other("a new index is locked"));
    }
    let mut index = Index::map(index, header, lasting)?;
    index.begin_first_session(&file::stat(mirror.as_fd())?);
    Ok(index)
}

/// A pair without names, gone with the last process that has it.
fn private(dir: BorrowedFd<'_>, wanted: Wanted<'_>, account: Option<Account>) -> io::Result<Arc<Pair>> {
    let mirror = unnamed(dir)?;
    file::set_len(mirror.as_fd(), wanted.pages.size)?;
    let header = new_header(wanted.key.unwrap_or_default(), wanted.version, wanted.pages, [0; 16]);
    let index = begin_first(unnamed(dir)?, &mirror, &header, false)?;
    let path = |fd: BorrowedFd<'_>| PathBuf::from(OsStr::from_bytes(file::descriptor_path(fd.as_raw_fd()).as_bytes()));
    let place = Place { data: path(mirror.as_fd()), index: path(index.file()), parents: Vec::new() };
    let stat = file::stat(index.file())?;
    Ok(Pair::new(index, Mirror::new(mirror), place, account, (stat.device, stat.inode)))
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
            (Err(first), Err(second)) if missing(&first) && missing(&second) => names.make(None, data, index, wanted),
            (Ok(data_file), Err(error)) if missing(&error) => {
                // Another process may be between the two; or one died there, leaving an empty mirror.
                if is_empty_mirror(&data_file, wanted) && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                names.make(Some(data_file), data, index, wanted)
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
            Ok(Found::Pair(pair)) => return Ok(Some(pair)),
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
            let same = file::stat(mirror.as_fd())?.inode == file::stat(pair.mirror().file())?.inode;
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
        finish(index, mirror, place_at(data_path, index_path)?, None)
    }

    /// Makes the pair; of a mirror that is there already only one that holds nothing is taken.
    fn make(&self, there: Option<OwnedFd>, data_path: &Path, index_path: &Path, wanted: Wanted<'_>) -> io::Result<Found> {
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
            Ok(index) => finish(index, mirror, place_at(data_path, index_path)?, None),
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

fn c_path(path: &Path) -> Result<CString> {
    if path.as_os_str().is_empty() {
        return Err(Error::Argument("a path is empty".into()));
    }
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::Argument("a path has a zero byte in it".into()))
}
