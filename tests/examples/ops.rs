//! Single operations on request, for `cargo xtask bench ops`.
//!
//! The line `list` on stdin is answered with all cases as one JSON array; a case and a number of repetitions, as JSON, with
//! the median seconds of these.

use std::io::{BufRead, Write, stdin, stdout};
use std::time::Instant;

use lowbit_cpu::allocator::{Allocator, keep_memory};
use lowbit_cpu::on_compute_thread;
use lowbit_tests::default_device;
use lowbit_tests::ops::{Case, Work, cases};
use serde::{Deserialize, Serialize};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

#[derive(Deserialize)]
struct Request {
    case: Case,
    repetitions: u32,
}

/// A case as the list has it.
#[derive(Serialize)]
struct Listed {
    name: String,
    pass: &'static str,
    work: Work,
    case: Case,
    limit: Option<Limit>,
}

/// What a case is compared with.
#[derive(Serialize)]
struct Limit {
    work: Work,
    case: Case,
}

/// A case with its operands.
struct Prepared {
    case: Case,
    run: Box<dyn FnMut()>,
}

fn main() {
    lowbit_cpu::left_out().expect("instruction sets that are known");
    keep_memory();
    on_compute_thread(serve).expect("the threads start");
}

fn serve() {
    let device = default_device();
    let mut prepared: Option<Prepared> = None;
    for line in stdin().lock().lines() {
        let line = line.expect("stdin is text");
        if line.trim() == "list" {
            let list: Vec<Listed> = cases().into_iter().map(listed).collect();
            answer(&serde_json::to_string(&list).expect("a list is JSON"));
            continue;
        }
        let Request { case, repetitions } = serde_json::from_str(&line).expect("a request");
        // The operands of the last case go before those of the next one come.
        let mut current = match prepared.take().filter(|prepared| prepared.case == case) {
            Some(prepared) => prepared,
            None => Prepared { case, run: case.prepare(&device) },
        };
        let mut times: Vec<f64> = (0..repetitions).map(|_| seconds(&mut current.run)).collect();
        times.sort_by(f64::total_cmp);
        answer(&times[times.len() / 2].to_string());
        prepared = Some(current);
    }
}

fn listed(case: Case) -> Listed {
    let limit = case.limit().map(|case| Limit { work: case.work(), case });
    Listed { name: case.to_string(), pass: case.pass.name(), work: case.work(), case, limit }
}

fn seconds(run: &mut dyn FnMut()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

fn answer(line: &str) {
    println!("{line}");
    stdout().flush().expect("stdout is open");
}
