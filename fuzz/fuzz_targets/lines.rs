//! The files of a run that are appended to, line by line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowbit_fuzz::{run_with, write};
use lowbit_strategies::fuzzing::timing_bytes;

fuzz_target!(|bytes: &[u8]| {
    write("warnings.jsonl", bytes);
    write("processes.jsonl", bytes);
    let run = run_with("timing.jsonl", bytes);
    let kept = timing_bytes(&run, 3).expect("it can be read") as usize;
    assert!(kept == 0 || bytes[kept - 1] == b'\n', "a line is cut");
    let _ = (run.warnings(), run.processes());
});
