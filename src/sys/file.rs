//! Files, by descriptor and relative to a directory's descriptor. Opening never follows a link and never yields 0, 1 or 2.

use super::spare::with_relief;
use super::{check, check_len, offset, signal};
use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// What `fstat` tells, as far as anyone here asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) allocated: u64,
    pub(crate) links: u64,
    pub(crate) owner: u32,
    pub(crate) mode: u32,
    /// Nanoseconds since 1970.
    pub(crate) changed: u64,
}

impl Stat {
    #[allow(clippy::useless_conversion, reason = "st_nlink is 32 bits wide on other machines")]
    fn of(raw: &libc::stat) -> Stat {
        Stat {
            device: raw.st_dev,
            inode: raw.st_ino,
            size: u64::try_from(raw.st_size).unwrap_or(0),
            allocated: u64::try_from(raw.st_blocks).unwrap_or(0) * 512,
            links: u64::try_from(raw.st_nlink).unwrap_or(0),
            owner: raw.st_uid,
            mode: raw.st_mode,
            changed: u64::try_from(raw.st_ctime).unwrap_or(0).saturating_mul(1_000_000_000),
        }
    }

    pub(crate) fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    /// By its count of blocks.
    pub(crate) fn has_no_hole(&self) -> bool {
        self.allocated >= self.size
    }

    /// Ours, and nobody else may write it.
    pub(crate) fn is_ours(&self) -> bool {
        self.owner == effective_user() && self.mode & 0o022 == 0
    }
}

pub(crate) fn effective_user() -> u32 {
    // SAFETY: no argument, no failure.
    unsafe { libc::geteuid() }
}

/// How to open a file inside a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Open {
    /// What is there, for reading and writing.
    Existing,
    /// What is there, for reading only.
    ReadOnly,
    /// A new file, 0600, or `AlreadyExists`.
    New,
    /// A new file without a name, 0600; the name given is the directory's.
    Unnamed,
    /// A directory.
    Directory,
}

impl Open {
    fn flags(self) -> libc::c_int {
        let always = libc::O_CLOEXEC | libc::O_NOFOLLOW;
        match self {
            // O_NONBLOCK: opening a FIFO that someone planted does not wait.
            Open::Existing => always | libc::O_RDWR | libc::O_NONBLOCK | libc::O_NOCTTY,
            Open::ReadOnly => always | libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY,
            Open::New => always | libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
            Open::Unnamed => libc::O_CLOEXEC | libc::O_RDWR | libc::O_TMPFILE,
            Open::Directory => libc::O_CLOEXEC | libc::O_RDONLY | libc::O_DIRECTORY,
        }
    }
}

/// Opens `name` relative to a directory, or to the working directory.
pub(crate) fn open_at(dir: Option<BorrowedFd<'_>>, name: &CStr, how: Open) -> io::Result<OwnedFd> {
    let dir = dir.map_or(libc::AT_FDCWD, |dir| dir.as_raw_fd());
    with_relief(|| {
        // SAFETY: a terminated name; the mode is given wherever a file may be made.
        let fd = check("openat", || unsafe { libc::openat(dir, name.as_ptr(), how.flags(), 0o600) })?;
        above_standard(fd)
    })
}

/// A description of its own of an open file: locks on it exclude those of every other description. For reading only where the file
/// system is, which shared locks can do with.
pub(crate) fn reopen(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = descriptor_path(file.as_raw_fd());
    let open = |access: libc::c_int| {
        // SAFETY: a terminated path.
        check("open", || unsafe { libc::open(path.as_ptr(), access | libc::O_CLOEXEC) })
    };
    with_relief(|| {
        let fd = open(libc::O_RDWR).or_else(|error| match error.raw_os_error() {
            Some(libc::EROFS | libc::EACCES) => open(libc::O_RDONLY),
            _ => Err(error),
        })?;
        above_standard(fd)
    })
}

/// `/proc/self/fd/N`, made without allocating.
pub(crate) fn descriptor_path(fd: RawFd) -> PathBuffer {
    use std::io::Write;
    let mut path = PathBuffer([0; 40]);
    let mut rest = &mut path.0[..39];
    // 39 bytes hold the prefix and any 32-bit number.
    let _ = write!(rest, "/proc/self/fd/{fd}");
    path
}

/// A short terminated path on the stack.
pub(crate) struct PathBuffer([u8; 40]);

impl PathBuffer {
    pub(crate) fn as_ptr(&self) -> *const libc::c_char {
        self.0.as_ptr().cast()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.split(|&byte| byte == 0).next().unwrap_or(&[])
    }
}

/// A program may have closed its standard descriptors; a cache file there would receive what it prints.
fn above_standard(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: just opened, owned by nobody else.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    if fd > 2 {
        return Ok(owned);
    }
    // SAFETY: an open descriptor.
    let moved = check("fcntl dup", || unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// Whether a descriptor was opened for reading only.
pub(crate) fn is_read_only(file: BorrowedFd<'_>) -> bool {
    // SAFETY: an open descriptor.
    let flags = check("fcntl getfl", || unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) });
    flags.is_ok_and(|flags| flags & libc::O_ACCMODE == libc::O_RDONLY)
}

pub(crate) fn stat(file: BorrowedFd<'_>) -> io::Result<Stat> {
    let mut raw = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: room for one stat.
    check("fstat", || unsafe { libc::fstat(file.as_raw_fd(), raw.as_mut_ptr()) })?;
    // SAFETY: filled by the call, which did not fail.
    Ok(Stat::of(unsafe { raw.assume_init_ref() }))
}

/// What tells a file from every other one, also from a later one that got its inode; `None` where the file system does not say when files
/// were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: (u32, u32),
    inode: u64,
    made: (i64, u32),
}

pub(crate) fn identity(file: BorrowedFd<'_>) -> io::Result<Option<Identity>> {
    let mut raw = std::mem::MaybeUninit::<libc::statx>::uninit();
    let (fd, wanted) = (file.as_raw_fd(), libc::STATX_INO | libc::STATX_BTIME);
    // SAFETY: an empty terminated name and room for one statx.
    check("statx", || unsafe { libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, wanted, raw.as_mut_ptr()) })?;
    // SAFETY: filled by the call, which did not fail.
    let raw = unsafe { raw.assume_init_ref() };
    let known = raw.stx_mask & wanted == wanted;
    Ok(known.then_some(Identity {
        device: (raw.stx_dev_major, raw.stx_dev_minor),
        inode: raw.stx_ino,
        made: (raw.stx_btime.tv_sec, raw.stx_btime.tv_nsec),
    }))
}

/// What a name stands for now, links not followed.
pub(crate) fn stat_at(dir: Option<BorrowedFd<'_>>, name: &CStr) -> io::Result<Stat> {
    let dir = dir.map_or(libc::AT_FDCWD, |dir| dir.as_raw_fd());
    let mut raw = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: a terminated name and room for one stat.
    check("fstatat", || unsafe { libc::fstatat(dir, name.as_ptr(), raw.as_mut_ptr(), libc::AT_SYMLINK_NOFOLLOW) })?;
    // SAFETY: filled by the call, which did not fail.
    Ok(Stat::of(unsafe { raw.assume_init_ref() }))
}

fn kind_of_file_system(file: BorrowedFd<'_>) -> io::Result<i64> {
    let mut raw = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: room for one statfs.
    check("fstatfs", || unsafe { libc::fstatfs(file.as_raw_fd(), raw.as_mut_ptr()) })?;
    // SAFETY: filled by the call, which did not fail.
    #[allow(clippy::unnecessary_cast, reason = "f_type is of other types on other machines")]
    Ok(unsafe { raw.assume_init_ref() }.f_type as i64 & 0xffff_ffff)
}

/// Whether the file lies in memory, where reading a hole of a map takes space and may raise SIGBUS.
pub(crate) fn is_in_memory(file: BorrowedFd<'_>) -> bool {
    // An error: the careful answer. (tmpfs, ramfs)
    kind_of_file_system(file).map_or(true, |kind| matches!(kind, 0x0102_1994 | 0x8584_58f6))
}

/// The name of a file system on which locks and maps are not what other machines or processes see, so that no directory can be shared
/// there; `None` on a local one. Numbers: statfs(2) and linux/magic.h.
pub(crate) fn unshareable(file: BorrowedFd<'_>) -> Option<&'static str> {
    match kind_of_file_system(file).ok()? {
        0x6969 => Some("NFS"),
        0x6573_5546 => Some("FUSE"),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => Some("SMB"),
        0x0102_1997 => Some("9p"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        0x00c3_6400 => Some("Ceph"),
        0x0bd0_0bd0 => Some("Lustre"),
        0x4750_4653 => Some("GPFS"),
        _ => None,
    }
}

/// Bytes of the file system that this user may still take.
pub(crate) fn free_bytes(file: BorrowedFd<'_>) -> io::Result<u64> {
    let mut raw = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: room for one statvfs.
    check("fstatvfs", || unsafe { libc::fstatvfs(file.as_raw_fd(), raw.as_mut_ptr()) })?;
    // SAFETY: filled by the call, which did not fail.
    let raw = unsafe { raw.assume_init_ref() };
    Ok(raw.f_bavail.saturating_mul(raw.f_frsize))
}

/// Makes an empty file share all blocks of another, holes and all; an error where the file system cannot.
pub(crate) fn clone_whole(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: two open descriptors.
    check("ioctl clone", || unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) }).map(drop)
}

/// Reads at an offset; fewer bytes than asked only at the end of the file.
pub(crate) fn read_at(file: BorrowedFd<'_>, buf: &mut [u8], from: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        let rest = &mut buf[done..];
        let at = offset(from + done as u64)?;
        // SAFETY: `rest` is ours for the call.
        let n = check_len("pread", rest.len(), |len| unsafe { libc::pread(file.as_raw_fd(), rest.as_mut_ptr().cast(), len, at) })?;
        if n == 0 {
            break;
        }
        done += n;
    }
    Ok(done)
}

/// Fills the buffer by one call; false where that gave less, or an error.
#[inline(always)]
pub(crate) fn read_once(file: BorrowedFd<'_>, buf: &mut [u8], from: u64) -> bool {
    let Ok(at) = offset(from) else { return false };
    let (into, fd) = (buf.as_mut_ptr().cast(), file.as_raw_fd());
    // SAFETY: `buf` is ours for the call.
    matches!(check_len("pread", buf.len(), |len| unsafe { libc::pread(fd, into, len, at) }), Ok(n) if n == buf.len())
}

/// Writes all of it, or an error; then some of it may have been written.
pub(crate) fn write_at(file: BorrowedFd<'_>, buf: &[u8], to: u64) -> io::Result<()> {
    signal::without_file_size(|| {
        let mut done = 0;
        while done < buf.len() {
            let rest = &buf[done..];
            let at = offset(to + done as u64)?;
            // SAFETY: `rest` is valid for the call.
            let n =
                check_len("pwrite", rest.len(), |len| unsafe { libc::pwrite(file.as_raw_fd(), rest.as_ptr().cast(), len, at) })?;
            if n == 0 {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            done += n;
        }
        Ok(())
    })
}

/// Gives a new file its length, as one hole.
pub(crate) fn set_len(file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
    let len = offset(len)?;
    // SAFETY: an open descriptor.
    signal::without_file_size(|| check("ftruncate", || unsafe { libc::ftruncate(file.as_raw_fd(), len) }).map(drop))
}

/// Gives a stretch inside the file its blocks, so that a store into its map cannot raise SIGBUS.
pub(crate) fn allocate(file: BorrowedFd<'_>, stretch: Range<u64>) -> io::Result<()> {
    let (from, len) = (offset(stretch.start)?, offset(stretch.end - stretch.start)?);
    let how = libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: an open descriptor.
    signal::without_file_size(|| check("fallocate", || unsafe { libc::fallocate(file.as_raw_fd(), how, from, len) }).map(drop))
}

/// Whether a file system does not know how to do what it was asked for.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

/// Gives a stretch's blocks back; it reads as zeros from then on.
pub(crate) fn punch(file: BorrowedFd<'_>, stretch: Range<u64>) -> io::Result<()> {
    // A hole that is rounded up to whole blocks may end past the largest offset.
    let end = stretch.end.min(i64::MAX.unsigned_abs());
    let (from, len) = (offset(stretch.start)?, offset(end.saturating_sub(stretch.start))?);
    if len == 0 {
        return Ok(());
    }
    let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: an open descriptor.
    check("fallocate punch", || unsafe { libc::fallocate(file.as_raw_fd(), how, from, len) }).map(drop)
}

/// The first offset at or after `from` where the file has data; `None` where only a hole is left.
pub(crate) fn next_data(file: BorrowedFd<'_>, from: u64) -> io::Result<Option<u64>> {
    let from = offset(from)?;
    // SAFETY: an open descriptor; nobody uses its position.
    match check("lseek", || unsafe { libc::lseek(file.as_raw_fd(), from, libc::SEEK_DATA) }) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Data and what is needed to find it again reach the disk.
pub(crate) fn sync_data(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an open descriptor.
    check("fdatasync", || unsafe { libc::fdatasync(file.as_raw_fd()) }).map(drop)
}

/// Everything reaches the disk; of a directory, its names.
pub(crate) fn sync(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an open descriptor.
    check("fsync", || unsafe { libc::fsync(file.as_raw_fd()) }).map(drop)
}

/// Gives a file that was filled in its final name, never over another; both relative to the same directory. In one step: a file with
/// two names for a moment would look like a planted hard link to whoever opens it then.
pub(crate) fn publish_at(dir: Option<BorrowedFd<'_>>, from: &CStr, to: &CStr) -> io::Result<()> {
    let dir = dir.map_or(libc::AT_FDCWD, |dir| dir.as_raw_fd());
    // SAFETY: terminated names.
    let renamed = check("renameat2", || unsafe {
        libc::syscall(libc::SYS_renameat2, dir, from.as_ptr(), dir, to.as_ptr(), libc::RENAME_NOREPLACE) as libc::c_int
    });
    match renamed {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
            // A file system that cannot: two steps.
            // SAFETY: terminated names.
            check("linkat", || unsafe { libc::linkat(dir, from.as_ptr(), dir, to.as_ptr(), 0) })?;
            // SAFETY: a terminated name.
            check("unlinkat", || unsafe { libc::unlinkat(dir, from.as_ptr(), 0) }).map(drop)
        }
        renamed => renamed.map(drop),
    }
}

pub(crate) fn unlink_at(dir: Option<BorrowedFd<'_>>, name: &CStr) -> io::Result<()> {
    let dir = dir.map_or(libc::AT_FDCWD, |dir| dir.as_raw_fd());
    // SAFETY: a terminated name.
    check("unlinkat", || unsafe { libc::unlinkat(dir, name.as_ptr(), 0) }).map(drop)
}

/// 16 bytes that nobody else has.
pub(crate) fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0_u8; 16];
    // SAFETY: 16 bytes of room; requests up to 256 bytes come whole.
    let n = check_len("getrandom", bytes.len(), |len| unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), len, 0) })?;
    if n == bytes.len() { Ok(bytes) } else { Err(io::Error::from_raw_os_error(libc::EIO)) }
}
