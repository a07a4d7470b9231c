//! Single operations without a peer: `cargo bench -p lowbit-tests --profile dev`, with a text after `--` those whose line
//! has it.

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, Divan};
use lowbit_cpu::allocator::{Allocator, keep_memory};
use lowbit_tests::default_device;
use lowbit_tests::ops::{Case, Work, cases};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() {
    keep_memory();
    Divan::from_args().main();
}

/// A case as a line of the report.
struct Line(Case);

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}", self.0, self.0.pass.name())
    }
}

/// An item is a floating-point operation.
#[divan::bench(args = cases().into_iter().map(Line), max_time = 0.5)]
fn ops(bencher: Bencher<'_, '_>, Line(case): &Line) {
    let mut run = case.prepare(&default_device());
    match case.work() {
        Work::Flops(n) => bencher.counter(ItemsCount::new(n as u64)).bench_local(&mut run),
        Work::Bytes(n) => bencher.counter(BytesCount::new(n as u64)).bench_local(&mut run),
    }
}
