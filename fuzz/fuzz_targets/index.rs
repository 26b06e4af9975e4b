//! Any bytes as an index.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nearfile::hostile::index(input));
