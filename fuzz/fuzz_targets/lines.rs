//! The files of a run that are appended to, line by line. The first byte says how long the metrics were when a checkpoint
//! was made.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowbit_fuzz::{run_with, write};
use lowbit_train::fuzzing::{records, timing_bytes};

fuzz_target!(|data: &[u8]| {
    let Some((&choice, bytes)) = data.split_first() else { return };
    write("warnings.jsonl", bytes);
    write("processes.jsonl", bytes);
    write("metrics.jsonl", bytes);
    let run = run_with("timing.jsonl", bytes);
    let kept = timing_bytes(&run, 3).expect("it can be read") as usize;
    assert!(kept == 0 || bytes[kept - 1] == b'\n', "a line is cut");
    let _ = (run.warnings(), run.processes());
    let metrics_bytes = bytes.len() * usize::from(choice) / 128;
    let ends_a_line = |n_bytes| n_bytes == 0 || bytes.get(n_bytes - 1) == Some(&b'\n');
    assert_eq!(records(&run, metrics_bytes as u64), ends_a_line(metrics_bytes), "{metrics_bytes} bytes");
});
