//! Locks and conditions as ThreadSanitizer sees them, for builds with `--cfg nearfile_tsan`: std comes prebuilt and without its marks, so
//! what its locks order in their slow paths is not seen. Here locks are only ever tried and conditions polled: that is inlined, and seen.

use std::sync::{MutexGuard, TryLockError};
use std::thread::yield_now;
use std::time::Duration;

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

#[derive(Debug)]
pub(crate) struct Guard<'a, T> {
    mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
}

impl<T> Mutex<T> {
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        loop {
            match self.0.try_lock() {
                Ok(guard) => return Guard { mutex: self, guard },
                Err(TryLockError::Poisoned(poisoned)) => return Guard { mutex: self, guard: poisoned.into_inner() },
                Err(TryLockError::WouldBlock) => yield_now(),
            }
        }
    }
}

impl<T> std::ops::Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> std::ops::DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar;

impl Condvar {
    pub(crate) fn wait<'a, T>(&self, guard: Guard<'a, T>) -> Guard<'a, T> {
        self.wait_for(guard, Duration::ZERO)
    }

    pub(crate) fn wait_for<'a, T>(&self, guard: Guard<'a, T>, time: Duration) -> Guard<'a, T> {
        let mutex = guard.mutex;
        drop(guard);
        std::thread::sleep(time.min(Duration::from_micros(100)));
        mutex.lock()
    }

    pub(crate) fn notify_one(&self) {}

    pub(crate) fn notify_all(&self) {}
}
