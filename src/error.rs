//! What can go wrong for a caller. A fault of the cache itself is never an [`Error`]: the read goes to the source instead.

use std::io;

/// Why a call failed. Each variant has one C status (`include/nearfile.h`).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is out of its range; the sentence names it and says what would do.
    #[error("{0}")]
    Argument(String),
    /// The operating system refused something that has no way around it.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried, with the file's name.
        what: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The source said that it failed, or returned what cannot be.
    #[error("{0}")]
    Source(SourceError),
    /// The source ended before the size that it was said to have.
    #[error(
        "the source ended at byte {at} of {size}: the object is shorter than the size given at open (has it changed? pass its version)"
    )]
    ShortSource {
        /// The first byte that the source did not have.
        at: u64,
        /// The size given, or told by the source, at open.
        size: u64,
    },
    /// A frozen file misses the bytes.
    #[error("{0}")]
    Frozen(String),
    /// A forked child needs a connection, and the source has no way to open one there.
    #[error(
        "a forked child cannot use the parent's connection: give the source an `open`, or NEARFILE_SOURCE_FORK_SAFE if its read_at keeps no state"
    )]
    Forked,
    /// The path is taken.
    #[error("{0}")]
    Exists(String),
    /// The program's progress callback ended it.
    #[error("cancelled by the progress callback")]
    Cancelled,
    /// This version does not have it yet.
    #[error("{0}")]
    Unsupported(String),
    /// No memory for the operation.
    #[error("not enough memory for {0}")]
    NoMemory(String),
    /// A defect in nearfile.
    #[error("a defect in nearfile, please report it: {0}")]
    Internal(String),
}

/// The result of most calls.
pub type Result<T> = std::result::Result<T, Error>;

/// What a source says of its failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// The source's own code, passed on unchanged; 0 where it gave none.
    pub code: i64,
    /// A sentence.
    pub message: String,
}

impl SourceError {
    /// A failure with the source's own code.
    pub fn new(code: i64, message: impl Into<String>) -> SourceError {
        SourceError { code, message: message.into() }
    }
}

impl From<SourceError> for Error {
    fn from(error: SourceError) -> Error {
        Error::Source(error)
    }
}

impl Error {
    pub(crate) fn io(what: impl Into<String>, cause: io::Error) -> Error {
        Error::Io { what: what.into(), cause }
    }
}

/// Runs a stretch that calls no callback of the user's; a panic in it, a defect of ours, becomes an error.
///
/// Never put around a callback: a C++ exception that meets a `catch_unwind` aborts the process.
pub(crate) fn shield<T>(stretch: impl FnOnce() -> Result<T>) -> Result<T> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(stretch)) {
        Ok(result) => result,
        Err(payload) => {
            let said = payload
                .downcast_ref::<&str>()
                .map(|said| (*said).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "a panic without a message".to_owned());
            Err(Error::Internal(said))
        }
    }
}
