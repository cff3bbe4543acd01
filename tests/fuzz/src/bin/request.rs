#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| thermocline_fuzz::request::run(input));
