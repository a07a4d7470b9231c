#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = lowbit_fuzz::run_with("result.json", bytes).result();
});
