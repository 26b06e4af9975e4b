//! Threads of the library: on a small stack, with every signal blocked, so that a program's handlers never run on them, and with nothing
//! below a callback that would catch what unwinds through it (`pthread_exit`, as an interpreter that ends does).

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

const STACK: usize = 512 << 10;

/// Starts a thread that runs `entry` once.
pub(crate) fn start(entry: fn()) -> io::Result<()> {
    extern "C-unwind" fn run(entry: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: given below.
        let entry: fn() = unsafe { std::mem::transmute(entry) };
        entry();
        ptr::null_mut()
    }
    type Run = extern "C" fn(*mut libc::c_void) -> *mut libc::c_void;
    let run: extern "C-unwind" fn(*mut libc::c_void) -> *mut libc::c_void = run;
    // SAFETY: the same function; libc does not care whether it may unwind.
    let run: Run = unsafe { std::mem::transmute(run) };
    let (mut attributes, mut thread) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: each value is made by the call before it is used; the thread inherits the mask that is in force here.
    unsafe {
        libc::pthread_attr_init(attributes.as_mut_ptr());
        libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK);
        libc::pthread_attr_setdetachstate(attributes.as_mut_ptr(), libc::PTHREAD_CREATE_DETACHED);
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        let failed = libc::pthread_create(thread.as_mut_ptr(), attributes.as_ptr(), run, entry as *mut libc::c_void);
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
    }
}
