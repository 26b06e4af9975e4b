//! What only tests can do from within: system calls are made to fail through `sys::fault` under a whole library, from its Rust API
//! down. Here is what they share: a far file of which every byte is known.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod faults;
mod model;

use crate::sys::fault::splitmix;
use crate::{Connection, Source, SourceError};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A stream of numbers from a seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        splitmix(&mut self.0)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Random bytes, none of them 0: a hole is never right by chance.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random(1);
    (0..600_000).flat_map(|_| random.next().to_le_bytes()).map(|byte| byte.max(1)).collect()
});

/// What a version of a file holds. No two begin with the same bytes.
pub(crate) fn content(file: u64, version: u64, size: u64) -> &'static [u8] {
    let from = (file * 7919 + version * 104_729) as usize;
    &BYTES[from..from + size as usize]
}

/// The code of the failures that sources here have.
pub(crate) const SOURCE_CODE: i64 = 42;

/// Every so many reads of all sources fail; 0: none.
pub(crate) struct Far {
    pub(crate) content: &'static [u8],
    pub(crate) failing: u64,
}

struct Near(&'static [u8], u64);

impl Source for Far {
    fn connect(&self) -> Result<Box<dyn Connection>, SourceError> {
        Ok(Box::new(Near(self.content, self.failing)))
    }
}

thread_local! {
    static CALLS: AtomicU64 = const { AtomicU64::new(0) };
}

impl Connection for Near {
    /// Gives half now and then, and garbage with its failures.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<usize, SourceError> {
        let call = CALLS.with(|calls| calls.fetch_add(1, Ordering::Relaxed));
        assert!(offset + buf.len() as u64 <= self.0.len() as u64, "nothing is asked past the end");
        if self.1 != 0 && call % self.1 == self.1 - 1 {
            buf.fill(0xee);
            return Err(SourceError::new(SOURCE_CODE, "now and then"));
        }
        let len = if call % 3 == 0 { buf.len().div_ceil(2) } else { buf.len() };
        buf[..len].copy_from_slice(&self.0[offset as usize..][..len]);
        Ok(len)
    }

    fn size(&mut self) -> Result<u64, SourceError> {
        Ok(self.0.len() as u64)
    }
}
