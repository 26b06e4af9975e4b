//! The library's log: silent until a program asks for it. Says what was done about a fault; never who is to blame for a read.

use crate::sync::{AtomicPtr, Ordering};
use std::ptr;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Level {
    /// A defect of the library.
    Error = 1,
    /// The cache could not do its work; reads go on from the source.
    Warn = 2,
    /// Something worth knowing once.
    Info = 3,
    /// What the library is doing.
    Debug = 4,
}

/// A program's receiver of lines. Called on whatever thread has something to say; must not call back into the library.
pub type Sink = dyn Fn(Level, &str) + Send + Sync;

struct Receiver {
    least: Level,
    sink: Box<Sink>,
}

static RECEIVER: AtomicPtr<Receiver> = AtomicPtr::new(ptr::null_mut());

/// Sends lines of `level` and above to `sink`, or to nobody. The previous sink is kept alive for ever: another thread may be in it.
pub fn set_log(level: Level, sink: Option<Box<Sink>>) {
    let receiver = sink.map_or(ptr::null_mut(), |sink| Box::into_raw(Box::new(Receiver { least: level, sink })));
    RECEIVER.swap(receiver, Ordering::AcqRel);
}

pub(crate) fn say(level: Level, line: impl FnOnce() -> String) {
    let receiver = RECEIVER.load(Ordering::Acquire);
    #[expect(unsafe_code, reason = "one pointer that is leaked on purpose, so that a forked child never waits for a lock here")]
    // SAFETY: `set_log` made it from a box and never frees it.
    let Some(receiver) = (unsafe { receiver.as_ref() }) else { return };
    if level <= receiver.least {
        (receiver.sink)(level, &line());
    }
}

pub(crate) fn warn(line: impl FnOnce() -> String) {
    say(Level::Warn, line);
}
