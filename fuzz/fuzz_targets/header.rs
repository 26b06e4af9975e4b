//! Any bytes as a header.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nearfile::hostile::header(input));
