//! Which process this is, told by memory that the kernel wipes in a child (`MADV_WIPEONFORK`): it catches `fork`, `_Fork`, raw
//! `clone` and a repeated pid for the price of one load. On it stand [`PerProcess`] values, which a child never shares with its
//! parent, and [`ChildCloses`], the descriptors that a forked child must not keep.

use super::check;
use crate::sync::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use crate::sys::lineage::{self, Made};
use crate::sys::lock::unlock_all;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

/// The wiped word: 0 in a process that nobody has numbered yet, else its generation.
static WORD: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());
/// The last generation given in this line of processes.
static LAST: AtomicU32 = AtomicU32::new(0);
/// `pid << 32 | generation`, where the kernel has no `MADV_WIPEONFORK`: fooled by a repeated pid, and slower.
static BY_PID: AtomicU64 = AtomicU64::new(0);

/// The number of this process in its line of forks; never 0.
#[inline(always)]
pub(crate) fn generation() -> u32 {
    let word = WORD.load(Ordering::Acquire);
    // SAFETY: null, or the page that `wiped_page` mapped and never unmaps.
    if let Some(word) = unsafe { word.as_ref() } {
        if let Some(generation) = lineage::known(word) {
            return generation;
        }
    }
    number_this_process()
}

#[cold]
fn number_this_process() -> u32 {
    match wiped_page() {
        Some(word) => lineage::number(word, &LAST),
        // SAFETY: no argument, no failure.
        None => lineage::number_by_pid(&BY_PID, &LAST, unsafe { libc::getpid() }.unsigned_abs()),
    }
}

/// The page that the kernel wipes at a fork, mapped once; `None` where it does not know how.
fn wiped_page() -> Option<&'static AtomicU32> {
    static REFUSED: AtomicBool = AtomicBool::new(false);
    let known = WORD.load(Ordering::Acquire);
    // SAFETY: as in `generation`.
    if let Some(word) = unsafe { known.as_ref() } {
        return Some(word);
    }
    if REFUSED.load(Ordering::Acquire) {
        return None;
    }
    let made = map_private(size_of::<AtomicU32>());
    if made.is_null() {
        // For good: a process that is told now by one way and now by the other would look like two.
        REFUSED.store(true, Ordering::Release);
        return None;
    }
    // SAFETY: a mapping of one page that was just made.
    if unsafe { libc::madvise(made.cast(), PAGE, libc::MADV_WIPEONFORK) } != 0 {
        REFUSED.store(true, Ordering::Release);
        // SAFETY: nobody has seen it.
        unsafe { libc::munmap(made.cast(), PAGE) };
        crate::log::warn(|| {
            "this kernel has no MADV_WIPEONFORK: forks are told by process id, which `clone` into a new pid namespace can fool"
                .into()
        });
        return None;
    }
    match WORD.compare_exchange(ptr::null_mut(), made.cast(), Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: zeros are a valid atomic; the page stays mapped for ever.
        Ok(_) => Some(unsafe { &*made.cast::<AtomicU32>() }),
        Err(theirs) => {
            // SAFETY: nobody has seen ours; theirs stays mapped for ever.
            unsafe {
                libc::munmap(made.cast(), PAGE);
                Some(&*theirs)
            }
        }
    }
}

/// The smallest page of any machine; maps are rounded up to the real one by the kernel.
const PAGE: usize = 4096;

/// Zeroed private memory straight from the kernel: in a child made by `_Fork` or `clone`, `malloc` may hang.
fn map_private(len: usize) -> *mut u8 {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, placed by the kernel.
    let map = || unsafe { libc::mmap(ptr::null_mut(), len.max(PAGE), access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    check("mmap of memory", map).map_or(ptr::null_mut(), <*mut libc::c_void>::cast)
}

/// A value that each process has for itself: locks, pools, counters. A child that asks gets a new one; the inherited one is never
/// touched (another thread of the parent may have been inside it) and is leaked on purpose.
#[derive(Debug)]
pub(crate) struct PerProcess<T> {
    current: AtomicPtr<Made<T>>,
}

impl<T: Default> PerProcess<T> {
    pub(crate) const fn new() -> PerProcess<T> {
        PerProcess { current: AtomicPtr::new(ptr::null_mut()) }
    }

    /// This process's value; made here if this is its first use. `T::default` must not allocate.
    #[inline(always)]
    pub(crate) fn get(&self) -> &T {
        let generation = generation();
        // SAFETY: `current` is null or came from `make`; it is freed only by `drop`, which has `&mut self`.
        unsafe { lineage::value(&self.current, generation, || Self::make(generation), |made| Self::free(made)) }
    }

    fn make(generation: u32) -> *mut Made<T> {
        let mut room = map_private(size_of::<Made<T>>()).cast::<Made<T>>();
        let on_heap = room.is_null();
        if on_heap {
            room = Box::into_raw(Box::<Made<T>>::new_uninit()).cast();
        }
        // SAFETY: room for one, aligned for anything here (a whole page, or a box of it), owned by nobody else.
        unsafe { room.write(Made { generation, on_heap, value: T::default() }) };
        room
    }

    /// This process's value if it was made already.
    pub(crate) fn peek(&self) -> Option<&T> {
        // SAFETY: as in `get`.
        let made = unsafe { self.current.load(Ordering::Acquire).as_ref() }?;
        (made.generation == generation()).then_some(&made.value)
    }
}

impl<T> PerProcess<T> {
    /// # Safety
    /// `made` came from `get` of this type and nobody uses it any more.
    unsafe fn free(made: *mut Made<T>) {
        // SAFETY: by the caller.
        unsafe {
            if (*made).on_heap {
                drop(Box::from_raw(made));
                return;
            }
            made.drop_in_place();
            libc::munmap(made.cast(), size_of::<Made<T>>().max(PAGE));
        }
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let current = *self.current.get_mut();
        // SAFETY: null, or made by `get`; an inherited value is left alone.
        unsafe {
            if current.as_ref().is_some_and(|made| made.generation == generation()) {
                Self::free(current);
            }
        }
    }
}

const SLOTS: usize = 256;

/// Descriptors that a forked child closes at once, in chunks that are never freed.
struct Table {
    slots: [AtomicI32; SLOTS],
    next: AtomicPtr<Table>,
}

impl Table {
    const fn new() -> Table {
        Table { slots: [const { AtomicI32::new(-1) }; SLOTS], next: AtomicPtr::new(ptr::null_mut()) }
    }
}

static TABLE: Table = Table::new();
static FORKS_BEGUN: AtomicU32 = AtomicU32::new(0);
static FORKS_ENDED: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn before_fork() {
    FORKS_BEGUN.fetch_add(1, Ordering::SeqCst);
}

unsafe extern "C" fn after_fork_in_parent() {
    FORKS_ENDED.fetch_add(1, Ordering::SeqCst);
}

unsafe extern "C" fn after_fork_in_child() {
    FORKS_ENDED.store(FORKS_BEGUN.load(Ordering::SeqCst), Ordering::SeqCst);
    let mut table = Some(&TABLE);
    while let Some(here) = table {
        for slot in &here.slots {
            let fd = slot.swap(-1, Ordering::AcqRel);
            if fd >= 0 && !crate::hook::NO_CHILD_CLOSES {
                // SAFETY: registered by the parent and not yet unregistered, so still that description.
                unsafe { libc::close(fd) };
            }
        }
        // SAFETY: null, or a leaked chunk.
        table = unsafe { here.next.load(Ordering::Acquire).as_ref() };
    }
}

/// A descriptor whose copy in a forked child is closed there before the child runs anything else: a lock that its description
/// holds would outlive a killed parent otherwise.
#[derive(Debug)]
pub(crate) struct ChildCloses {
    fd: Option<OwnedFd>,
    slot: &'static AtomicI32,
    generation: u32,
}

impl ChildCloses {
    /// Opens and registers a descriptor so that no fork falls between the two.
    pub(crate) fn open(mut open: impl FnMut() -> std::io::Result<OwnedFd>) -> std::io::Result<ChildCloses> {
        watch_forks();
        for _ in 0..100 {
            let begun = FORKS_BEGUN.load(Ordering::SeqCst);
            let quiet = FORKS_ENDED.load(Ordering::SeqCst) == begun;
            let fd = open()?;
            let slot = register(fd.as_raw_fd());
            let kept = ChildCloses { fd: Some(fd), slot, generation: generation() };
            if quiet && FORKS_BEGUN.load(Ordering::SeqCst) == begun {
                return Ok(kept);
            }
            drop(kept);
            std::thread::yield_now();
        }
        // Forks without a pause: a child may keep a copy; waits for what it locks are bounded.
        let fd = open()?;
        let slot = register(fd.as_raw_fd());
        Ok(ChildCloses { fd: Some(fd), slot, generation: generation() })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Some(fd) => fd.as_fd(),
            None => unreachable!("taken only by drop"),
        }
    }
}

impl Drop for ChildCloses {
    fn drop(&mut self) {
        if self.generation == generation() {
            // Unlocked before it leaves the table: a child forked between that and the close would keep what is locked on it.
            let _ = unlock_all(self.as_fd());
            self.slot.store(-1, Ordering::Release);
        } else {
            // Inherited: closed by the handler, and the number may be someone else's by now.
            mem::forget(self.fd.take());
        }
    }
}

fn watch_forks() {
    static WATCHING: AtomicBool = AtomicBool::new(false);
    if !WATCHING.load(Ordering::Acquire) && !WATCHING.swap(true, Ordering::AcqRel) {
        // SAFETY: three functions without arguments, in a library that is never unloaded.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child)) };
    }
}

fn register(fd: RawFd) -> &'static AtomicI32 {
    let mut table = &TABLE;
    loop {
        for slot in &table.slots {
            if slot.load(Ordering::Relaxed) == -1 && slot.compare_exchange(-1, fd, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return slot;
            }
        }
        let next = table.next.load(Ordering::Acquire);
        // SAFETY: null, or a leaked chunk.
        if let Some(next) = unsafe { next.as_ref() } {
            table = next;
            continue;
        }
        let fresh = Box::into_raw(Box::new(Table::new()));
        if table.next.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: nobody has seen it.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}
