#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    lowbit_fuzz::write("weights", bytes);
    lowbit_train::fuzzing::weights(&lowbit_fuzz::directory().join("weights"));
});
