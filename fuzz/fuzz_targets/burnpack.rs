//! The state of an optimizer. Reading copies what it compares, so that the size of the input bounds the memory.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    lowbit_train::fuzzing::optimizer(bytes);
});
