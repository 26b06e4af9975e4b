//! Sleeping on a word that several processes map. Only ever a hint: who sleeps here also wakes by time.

use crate::sync::AtomicU32;
use std::time::Duration;

/// Sleeps while the word still holds `seen`, at most for `time`.
pub(crate) fn wait(word: &AtomicU32, seen: u32, time: Duration) {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    // SAFETY: a mapped, aligned word and a valid time. Every failure (EAGAIN, EINTR, ETIMEDOUT) means: look again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, seen, &raw const time) };
}

/// Wakes everyone who sleeps on the word, in any process.
pub(crate) fn wake_all(word: &AtomicU32) {
    // SAFETY: a mapped, aligned word.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
