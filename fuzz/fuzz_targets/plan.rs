//! The plan of a run, which is printed too.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(plan) = lowbit_fuzz::run_with("plan.json", bytes).plan() {
        let _ = plan.to_string();
    }
});
