#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    lowbit_train::fuzzing::sums(bytes);
});
