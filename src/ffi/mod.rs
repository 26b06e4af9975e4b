//! The C ABI: check, convert, one call, write the output; no logic. `include/nearfile.h` is generated from here and is the manual.
//!
//! A function that may call back is `extern "C-unwind"` and has no `catch_unwind` below the callback, so that a C++ exception
//! passes through to the C++ caller while Rust's drops run; stretches of ours that cannot call back are shielded one by one.
#![allow(unsafe_code, reason = "raw pointers of C callers")]
#![allow(clippy::missing_safety_doc, reason = "the heading would leak into the header, which says what callers owe")]
#![allow(non_camel_case_types, reason = "C names")]

mod boundary;
pub mod cache;
pub mod file;
pub mod pin;
pub mod source;
pub mod status;
