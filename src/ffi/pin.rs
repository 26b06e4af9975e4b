//! `nearfile_pin`: bytes without a copy.

use super::boundary::{given, put, quiet_panics, shielded, status};
use super::file::nearfile_file;
use crate::pin::Pin;
use std::ffi::c_void;
use std::ptr;

/// A range of a file, held in memory. Used from any thread. A forked child holds its parent's pins for itself, until it releases them or
/// ends: one that lives long releases those that it does not need.
pub struct nearfile_pin {
    pin: Pin,
}

/// Holds len bytes from offset in memory, as far as the file goes, and sets *out_pin; on failure to NULL. What is absent is read first.
///
/// The bytes are the near copy's own, mapped, and no process gives them up before nearfile_pin_release, or the end of this process
/// (and of its children that inherited the pin). Where that cannot be (tmpfs, exact mode, no near copy) they are a copy. Pins may overlap; each is released by itself, also
/// after the file was closed. Threads: any. Calls the source for what is not present.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn nearfile_pin_range(
    file: Option<&nearfile_file>,
    offset: u64,
    len: usize,
    out_pin: *mut *mut nearfile_pin,
) -> i32 {
    quiet_panics();
    let pin = || {
        // SAFETY: the caller's pointer.
        unsafe { put(out_pin, ptr::null_mut(), "out_pin")? };
        let pin = given(file, "file")?.file.pin(offset, len)?;
        // SAFETY: as above.
        unsafe { put(out_pin, Box::into_raw(Box::new(nearfile_pin { pin })), "out_pin") }
    };
    status(pin())
}

/// The bytes of a pin, read only, valid until it is released; NULL for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_pin_data(pin: Option<&nearfile_pin>) -> *const c_void {
    pin.map_or(ptr::null(), |pin| pin.pin.bytes().as_ptr().cast())
}

/// How many bytes a pin holds: as many as were asked for, less only at the end of the file; 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_pin_size(pin: Option<&nearfile_pin>) -> usize {
    pin.map_or(0, |pin| pin.pin.bytes().len())
}

/// Releases a pin; NULL does nothing. Its bytes must not be used any more.
#[unsafe(no_mangle)]
pub extern "C" fn nearfile_pin_release(pin: Option<Box<nearfile_pin>>) {
    let _ = shielded(|| {
        drop(pin);
        Ok(())
    });
}
