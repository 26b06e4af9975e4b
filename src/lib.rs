//! nearfile keeps the near copy of a far file: what was read once is served from a sparse file on the local disk, shared by the
//! threads, processes and forked children of a machine, and kept for the next run.
//!
//! One read, from above:
//!
//! ```text
//! ffi ─ File::read_at ─ Pair::hit: word, copy, word again ── same: a hit, one system call, no lock
//!                            │ something absent, changed, or to be compared first
//!                       Fetcher::read: Miss::step: claim a run of absent pages ─ Pool::read: the source, into a buffer of ours
//!                            │                                         │
//!                            │                       Miss::accept: the caller's bytes; Store::keep: taken ─ pwrite ─ filled, unlock, wake
//!                            ├ held by another: wait for its beat, and after `wait` read the source around the pair
//!                            └ more is missing, or will be, and the source is slow: workers fetch beside it (Ticket, Fill)
//! ```
//!
//! A local fault (a full disk, a broken index, a stuck process) never fails a read: it becomes a read of the source and a count.
//!
//! The order of the modules is the architecture: each imports only those declared above it (`tests/layers.rs`).

// floor 0: knows nothing
mod sync;
mod hook;
mod error;
mod log;
mod range;
// floor 1: bytes and system calls
mod format;
mod options;
mod sys;
// floor 2: one thing each
mod stats;
mod ledger;
mod control;
mod session;
mod word;
mod index;
mod breaker;
mod mirror;
mod lock;
mod source;
mod bypass;
mod budget;
// floor 3: the protocol
mod pair;
mod dropping;
mod clock;
mod store;
mod fetch;
mod fill;
mod workers;
mod fetcher;
mod ahead;
mod small;
mod exact;
mod pin;
mod keep;
// floor 4: the Rust API
mod making;
mod paths;
mod directory;
mod evict;
mod cache;
mod inspect;
mod opened;
mod file;
mod prefetch;
// floor 5: the C ABI
pub mod ffi;
// above the house
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod hostile;
#[cfg(test)]
mod trials;

pub use cache::{Cache, Entry};
pub use error::{Error, Result, SourceError};
pub use file::{File, RangeRead};
pub use format::{MAX_KEY, MAX_PAGE, MAX_PAGES, MAX_VERSION};
pub use inspect::{Map, Page, PageState, Verified};
pub use log::{Level, Sink, set_log};
pub use options::{CacheOptions, DEFAULT_MAX_FETCH, DEFAULT_PAGE_SIZE, DEFAULT_WAIT, DEFAULT_WORKERS, Options, WhenFull};
pub use pin::Pin;
pub use source::{Connection, DEFAULT_CONNECTIONS, Source};
pub use stats::Stats;
