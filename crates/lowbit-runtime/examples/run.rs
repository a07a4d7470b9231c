//! Runs a packed model on request, for `cargo xtask bench runtime`.
//!
//! Arguments are a packed file and the number of threads. For every line on stdin so many images are run, one by one, and the seconds of all are
//! answered; at the end of stdin, the peak memory in bytes.

use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};
use std::time::Instant;

use lowbit_cpu::allocator::{Allocator, keep_memory};
use lowbit_runtime::Model;

/// As the program has it.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> Result<(), Box<dyn Error>> {
    lowbit_cpu::left_out()?;
    keep_memory();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, threads] = arguments.as_slice() else { return Err("usage: run MODEL THREADS".into()) };
    rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build_global()?;
    let model = Model::load(file)?;
    let n: usize = model.input_shape().iter().product();
    let image: Vec<f32> = (0..n).map(|i| (i * 7919 % 255) as f32 / 64.0 - 2.0).collect();
    for line in stdin().lock().lines() {
        let n_images: usize = line?.trim().parse()?;
        // On a thread that computes, as in a program that does nothing else.
        let seconds = rayon::scope(|_| {
            let start = Instant::now();
            (0..n_images)
                .try_for_each(|_| model.run(&image).map(drop))
                .map(|()| start.elapsed().as_secs_f64())
        })?;
        writeln!(stdout(), "{seconds}")?;
        stdout().flush()?;
    }
    println!("{}", peak_memory());
    Ok(())
}

/// The most memory that the process has had at a time, in bytes; 0 where the system does not tell.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0u64) * 1024
}
