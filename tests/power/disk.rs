//! A disk whose power can be cut: an image behind a loop device, mounted for this test's thread and its children alone, so that
//! nothing of it is left whatever ends the test. The cut (`EXT4_IOC_SHUTDOWN`, which xfs has, too) loses what was not synced.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Disk {
    _dir: tempfile::TempDir,
    image: PathBuf,
    pub mount: PathBuf,
}

fn run(command: &str, arguments: &[&str]) {
    let output =
        Command::new(command).args(arguments).output().unwrap_or_else(|error| panic!("{command}: {error} (scripts/setup test)"));
    assert!(output.status.success(), "{command} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Disk {
    pub fn new(fs: &str) -> Disk {
        assert_eq!(unsafe { libc::geteuid() }, 0, "cutting the power needs root");
        unsafe {
            assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "mounts of its own");
            let none = std::ptr::null();
            assert_eq!(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()), 0);
        }
        let dir = tempfile::tempdir().unwrap();
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        std::fs::create_dir(&mount).unwrap();
        let len = if fs == "xfs" { 400 << 20 } else { 64 << 20 };
        File::create(&image).unwrap().set_len(len).unwrap();
        run(&format!("mkfs.{fs}"), &["-q", image.to_str().unwrap()]);
        let disk = Disk { _dir: dir, image, mount };
        disk.mount();
        disk
    }

    fn mount(&self) {
        run("mount", &["-o", "loop", self.image.to_str().unwrap(), self.mount.to_str().unwrap()]);
    }

    /// What was just killed may keep it busy a little longer.
    fn unmount(&self) {
        for _ in 0..1000 {
            match Command::new("umount").arg(&self.mount).output().unwrap() {
                output if output.status.success() => return,
                _ => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        }
        run("umount", &[self.mount.to_str().unwrap()]);
    }

    fn cut(&self) {
        let root = File::open(&self.mount).unwrap();
        let without_log_flush: u32 = 2;
        let request = 0x8004_587d_u64; // EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN: _IOR('X', 125, u32)
        assert_eq!(unsafe { libc::ioctl(root.as_raw_fd(), request, &without_log_flush) }, 0);
    }

    pub fn sync(&self) {
        let root = File::open(&self.mount).unwrap();
        assert_eq!(unsafe { libc::syncfs(root.as_raw_fd()) }, 0);
    }

    /// Cuts the power, with nobody on the disk, and comes up again.
    pub fn cut_and_mount(&self) {
        self.cut();
        self.unmount();
        self.mount();
    }

    /// Runs a session in a child, cuts the power while it, and what it forked, has everything open, kills them and comes up again.
    /// Returns what it says.
    pub fn cut_during(&self, session: impl FnOnce() -> u64) -> u64 {
        let said = killed(session, || self.cut());
        self.unmount();
        self.mount();
        said
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.mount).output();
    }
}

/// Runs a session in a child, does something while the child has everything open, and kills it.
pub fn killed(session: impl FnOnce() -> u64, meanwhile: impl FnOnce()) -> u64 {
    let mut pipe = [0; 2];
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    let child = in_child(true, || {
        let said = session();
        unsafe { libc::write(pipe[1], (&raw const said).cast(), 8) };
        loop {
            unsafe { libc::pause() };
        }
    });
    unsafe { libc::close(pipe[1]) };
    let mut said = u64::MAX;
    let came = unsafe { libc::read(pipe[0], (&raw mut said).cast(), 8) };
    meanwhile();
    unsafe {
        libc::kill(-child, libc::SIGKILL);
        while libc::waitpid(child, std::ptr::null_mut(), 0) == child {}
        // The write end is closed with the last of them.
        libc::read(pipe[0], (&raw mut said).cast(), 8);
        libc::close(pipe[0]);
    }
    assert!(came == 8, "the session failed, see above");
    said
}

/// Forks a child, with a process group of its own if wanted; it ends in failure when `run` panics.
pub fn in_child(group: bool, run: impl FnOnce()) -> libc::pid_t {
    let child = unsafe { libc::fork() };
    if child == 0 {
        if group {
            unsafe { libc::setpgid(0, 0) };
        }
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        unsafe { libc::_exit(i32::from(ran.is_err())) };
    }
    assert!(child > 0, "fork");
    child
}

/// Writes a part of a file back, without what the file system must note so that it is found.
pub fn write_back(path: &Path, offset: i64, len: i64) {
    let file = File::open(path).unwrap();
    let how = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    assert_eq!(unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, how) }, 0);
}

pub fn sync_data(path: &Path) {
    File::open(path).unwrap().sync_data().unwrap();
}
