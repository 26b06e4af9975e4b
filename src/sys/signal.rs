//! Writing past `RLIMIT_FSIZE` raises SIGXFSZ, which kills a program that did not ask for it. It is blocked around the calls that can
//! raise it, taken off the thread's queue, and the mask put back: the call itself reports `EFBIG`.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

fn only_file_size() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset fills the set; the signal's number is valid.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGXFSZ);
        set.assume_init()
    }
}

/// Runs a call of which SIGXFSZ does not reach this thread.
pub(super) fn without_file_size<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let ours = only_file_size();
    let mut before = ours;
    // SAFETY: valid sets; the call changes this thread's mask only.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &ours, &mut before) };
    let result = call();
    // SAFETY: a valid set. Where the program had it blocked itself, a pending one is the program's, too.
    if unsafe { libc::sigismember(&before, libc::SIGXFSZ) } == 1 {
        return result;
    }
    // SAFETY: valid sets and a time of zero: takes off what the call raised, if it did, and puts the mask back.
    unsafe {
        if result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EFBIG)) {
            libc::sigtimedwait(&ours, ptr::null_mut(), &libc::timespec { tv_sec: 0, tv_nsec: 0 });
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
    }
    result
}
