//! System calls that fail when a test says so: by name and count, for good from some count on, or at random. A plan holds for the
//! thread that made it and the children that thread forks, so tests beside it are not disturbed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

/// What happens instead of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails with this errno.
    Errno(libc::c_int),
    /// It moves half of the bytes.
    Half,
    /// It moves none, and says so: the end of the file, where it reads.
    Nothing,
    /// The process is killed before it.
    Kill,
}

use Fault::{Errno, Half, Kill, Nothing};

/// What can happen to a call.
pub(crate) fn faults_of(name: &str) -> &'static [Fault] {
    const NO_DESCRIPTOR: &[Fault] =
        &[Errno(libc::EMFILE), Errno(libc::ENOMEM), Errno(libc::EIO), Errno(libc::EINTR), Errno(libc::EROFS), Errno(libc::ENOSPC)];
    const NO_SPACE: &[Fault] = &[
        Errno(libc::ENOSPC),
        Errno(libc::EDQUOT),
        Errno(libc::EIO),
        Errno(libc::EINTR),
        Errno(libc::EFBIG),
        Errno(libc::EOPNOTSUPP),
    ];
    match name {
        "pread" => &[Errno(libc::EIO), Errno(libc::EINTR), Errno(libc::ENOMEM), Half, Nothing],
        "pwrite" => {
            &[Errno(libc::ENOSPC), Errno(libc::EDQUOT), Errno(libc::EIO), Errno(libc::EINTR), Errno(libc::EROFS), Half, Nothing]
        }
        "getrandom" => &[Errno(libc::ENOSYS), Errno(libc::EINTR), Half],
        "open" | "openat" | "fcntl dup" => NO_DESCRIPTOR,
        "fallocate" | "fallocate punch" | "ftruncate" => NO_SPACE,
        "fcntl lock" => &[Errno(libc::ENOLCK), Errno(libc::EINVAL), Errno(libc::EIO), Errno(libc::EINTR), Errno(libc::EAGAIN)],
        "fcntl unlock" | "fcntl getlk" => &[Errno(libc::ENOLCK), Errno(libc::EINVAL), Errno(libc::EIO), Errno(libc::EINTR)],
        "mmap" | "mmap of memory" => &[Errno(libc::ENOMEM), Errno(libc::EACCES), Errno(libc::ENODEV)],
        "renameat2" | "linkat" | "unlinkat" => {
            &[Errno(libc::EIO), Errno(libc::ENOSPC), Errno(libc::EROFS), Errno(libc::EINVAL), Errno(libc::ENOENT)]
        }
        _ => &[Errno(libc::EIO), Errno(libc::ENOMEM), Errno(libc::EINTR), Errno(libc::EINVAL)],
    }
}

#[derive(Debug, Clone, Copy)]
enum Rule {
    /// Calls are counted, and none fails.
    Count,
    /// The n-th call of a name fails (from 0), and all after it if it lasts.
    At { name: &'static str, nth: u32, fault: Fault, lasting: bool },
    /// One call in so many fails.
    Random { state: u64, one_in: u64 },
    /// The process is killed before its n-th call of any name.
    KillAt(u64),
}

#[derive(Debug, Default)]
struct Plan {
    rule: Option<Rule>,
    calls: BTreeMap<&'static str, u32>,
    injected: BTreeMap<(&'static str, String), u32>,
    all: u64,
}

thread_local! {
    static PLAN: RefCell<Plan> = const { RefCell::new(Plan { rule: None, calls: BTreeMap::new(), injected: BTreeMap::new(), all: 0 }) };
    /// What is left of the length of the call under way.
    static CUT: Cell<Option<Fault>> = const { Cell::new(None) };
    /// How long this thread stands still after a call.
    static PAUSE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Widens the races of this thread with others: what it does between two calls is far from either.
pub(crate) fn pausing<T>(pause: Duration, run: impl FnOnce() -> T) -> T {
    PAUSE.set(pause);
    let value = run();
    PAUSE.set(Duration::ZERO);
    value
}

/// Makes calls of this thread fail until it is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Faults(());

impl Faults {
    fn begin(rule: Rule) -> Faults {
        super::fork::generation(); // made once a process, not within a plan
        PLAN.set(Plan { rule: Some(rule), ..Plan::default() });
        Faults(())
    }

    pub(crate) fn none() -> Faults {
        Faults::begin(Rule::Count)
    }

    pub(crate) fn at(name: &'static str, nth: u32, fault: Fault, lasting: bool) -> Faults {
        Faults::begin(Rule::At { name, nth, fault, lasting })
    }

    pub(crate) fn random(seed: u64, one_in: u64) -> Faults {
        Faults::begin(Rule::Random { state: seed, one_in })
    }

    pub(crate) fn kill_at(nth: u64) -> Faults {
        Faults::begin(Rule::KillAt(nth))
    }

    /// How often each call was made.
    pub(crate) fn calls(&self) -> BTreeMap<&'static str, u32> {
        PLAN.with_borrow(|plan| plan.calls.clone())
    }

    /// How often each fault happened.
    pub(crate) fn injected(&self) -> BTreeMap<(&'static str, String), u32> {
        PLAN.with_borrow(|plan| plan.injected.clone())
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        PLAN.set(Plan::default());
    }
}

impl Plan {
    fn due(&mut self, name: &'static str) -> Option<Fault> {
        let rule = self.rule.as_mut()?;
        let count = self.calls.entry(name).or_default();
        let this = *count;
        *count += 1;
        self.all += 1;
        let fault = match rule {
            Rule::Count => None,
            Rule::At { name: at, nth, fault, lasting } => {
                // A signal that comes again and again for ever would be a hang of the test's making.
                let lasts = *lasting && *fault != Errno(libc::EINTR);
                (*at == name && (this == *nth || (lasts && this > *nth))).then_some(*fault)
            }
            Rule::Random { state, one_in } => {
                let random = splitmix(state);
                let faults = faults_of(name);
                (random % *one_in == 0).then(|| faults[(random >> 32) as usize % faults.len()])
            }
            Rule::KillAt(nth) => (self.all > *nth).then_some(Kill),
        }?;
        *self.injected.entry((name, format!("{fault:?}"))).or_default() += 1;
        Some(fault)
    }
}

/// splitmix64, by Sebastiano Vigna: a stream of numbers from a seed.
pub(crate) fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(super) fn attempt<T: super::Value>(name: &'static str, call: impl FnOnce() -> T) -> T {
    let value = fail_or(name, call);
    let pause = PAUSE.get();
    if !pause.is_zero() {
        let error = std::io::Error::last_os_error();
        std::thread::sleep(pause);
        // SAFETY: the address of this thread's errno, which the sleep may have changed.
        unsafe { *libc::__errno_location() = error.raw_os_error().unwrap_or(0) };
    }
    value
}

fn fail_or<T: super::Value>(name: &'static str, call: impl FnOnce() -> T) -> T {
    let due = PLAN.try_with(|plan| plan.try_borrow_mut().ok().and_then(|mut plan| plan.due(name)));
    match due.ok().flatten() {
        None => call(),
        Some(Errno(errno)) => {
            // SAFETY: the address of this thread's errno.
            unsafe { *libc::__errno_location() = errno };
            T::FAILED
        }
        Some(Kill) => {
            // SAFETY: ends this process.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            call()
        }
        Some(short) => {
            CUT.set(Some(short));
            call()
        }
    }
}

pub(super) fn cut(len: usize) -> usize {
    match CUT.take() {
        Some(Half) => len.div_ceil(2),
        Some(Nothing) => 0,
        _ => len,
    }
}

/// Runs something in a forked child, and says how that ended: its exit status or, as 128 + n, the signal.
pub(crate) fn in_child(run: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child runs what forked children of programs do, and ends without the destructors of its parent's values.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: a child that hangs is killed.
        unsafe { libc::alarm(30) };
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        // SAFETY: ends this process.
        unsafe {
            libc::_exit(match ran {
                Ok(true) => 0,
                Ok(false) => 1,
                Err(_) => 2,
            })
        };
    }
    assert!(child > 0, "fork");
    let mut status = 0;
    // SAFETY: a child of ours.
    while unsafe { libc::waitpid(child, &mut status, 0) } < 0 {}
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) }
}
