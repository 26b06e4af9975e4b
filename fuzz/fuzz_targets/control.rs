//! Any bytes as `control`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nearfile::hostile::control(input));
