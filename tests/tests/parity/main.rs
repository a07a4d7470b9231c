//! The same cases on every backend: what one computes, the others compute, bit for bit where it is integers and within a
//! stated tolerance where it is not.
//!
//! Cases are data, in `quantizers`, `layers`, `models` and `runs`; what is run here is the same for all. Every backend is
//! compared with the first that is compiled in, which is itself held by `golden` to PyTorch's numbers, and here to give
//! the same bits twice.

mod layers;
mod models;
mod outcome;
mod quantizers;
mod runs;

use std::path::Path;
use std::time::Instant;
use std::{fmt, fs};

use burn::tensor::{Device, Tensor};
use lowbit_kernels::quotient;
use lowbit_tests::{Backend, Skip, backends, normal, rng, skip, tensor, values};
use outcome::Outcome;

/// A case as data.
trait Case: fmt::Debug + Sized {
    /// What it yields on a backend.
    fn run(&self, backend: &Backend) -> Outcome;

    /// Cases so close to this one that their results are as good.
    fn neighbors(&self) -> Vec<Self> {
        Vec::new()
    }

    /// The same case with other random values, for one whose results jump: where a value lies within the last digit of a
    /// tie, two backends differ by a whole code. It is then enough if they agree on three quarters of these: what computes something
    /// else agrees on none.
    fn other_draws(&self) -> Vec<Self> {
        Vec::new()
    }
}

/// One case in so many of a group may be drawn again: a training of 16 has been, on ndarray and on wgpu.
const MOST_REDRAWN: usize = 8;

/// Runs the cases of a group on the backend `name`, and says how many it ran.
fn check<C: Case>(name: &str, group: &str, cases: &[C]) {
    let Some(backend) = Backend::find_or_skip(name) else { return };
    let reference = backends().swap_remove(0);
    let (started, mut largest, mut failures) = (Instant::now(), 0.0f64, Vec::new());
    let mut n_redrawn = 0;
    for case in cases {
        let what = format!("{case:?}");
        let differences = match difference(case, &backend, &reference) {
            Err(first) if !case.other_draws().is_empty() => {
                eprintln!("parity: {name} draws {what} again: {first}");
                n_redrawn += 1;
                let draws = case.other_draws();
                let results = draws.iter().map(|case| difference(case, &backend, &reference));
                let (agreeing, differing): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
                let is_enough = 4 * agreeing.len() >= 3 * draws.len();
                if is_enough { agreeing } else { differing }
            }
            result => vec![result],
        };
        for difference in differences {
            match difference {
                Ok(share) => largest = largest.max(share),
                Err(difference) => failures.push(format!("{what}: {difference}")),
            }
        }
    }
    eprintln!(
        "parity: {name}, {group}: {} cases in {:.1} s, {n_redrawn} drawn again, {} differences, the largest allowed one \
         {largest:.2} of the tolerance",
        cases.len(),
        started.elapsed().as_secs_f64(),
        failures.len(),
    );
    assert!(failures.is_empty(), "{name} differs from {}:\n{}", reference.name, failures.join("\n"));
    assert!(
        n_redrawn <= cases.len() / MOST_REDRAWN,
        "{name}: {n_redrawn} of {} cases were drawn again",
        cases.len()
    );
    // `cargo xtask parity` looks whether they were run.
    let done = Path::new(env!("CARGO_TARGET_TMPDIR")).join("parity/cases");
    fs::create_dir_all(&done).expect("the folder is made");
    fs::write(done.join(format!("{name}-{group}")), cases.len().to_string()).expect("the file is written");
}

/// The difference of a case from the reference, or from that of a neighbor.
fn difference<C: Case>(case: &C, backend: &Backend, reference: &Backend) -> Result<f64, String> {
    let got = case.run(backend);
    let expected = case.run(reference);
    if backend.name == reference.name {
        // The same operations in the same order: no tolerance.
        return match got.compare(&expected)? {
            0.0 => Ok(0.0),
            share => {
                Err(format!("the second run differs from the first by {share:.2} times what is allowed"))
            }
        };
    }
    let first = got.compare(&expected);
    let of_neighbors = || case.neighbors().iter().find_map(|next| got.compare(&next.run(reference)).ok());
    first.or_else(|difference| of_neighbors().ok_or(difference))
}

/// Quotients are those of the host, which are the floats nearest to the exact ones, beside powers of two, too: a device's own may be
/// off by 2.5 ulp, and codes depend on them.
fn check_quotients(name: &str) {
    const N: usize = 1 << 14;
    let Some(backend) = Backend::find_or_skip(name) else { return };
    let [mut x, y] = [(0.0, 11), (3.0, 12)].map(|(mean, seed)| normal(N, mean, 1.0, &mut rng(seed)));
    for (i, (x, y)) in x.iter_mut().zip(&y).enumerate().filter(|(i, _)| i.is_multiple_of(2)) {
        // Halves of integers and powers of two times the divisor, and the floats on both sides.
        let factor =
            if i.is_multiple_of(4) { (i % 600) as f32 * 0.5 } else { 2.0f32.powi(i as i32 % 17 - 8) };
        let product = y * factor;
        *x = [product, product.next_up(), product.next_down()][i / 4 % 3];
        if x.is_subnormal() {
            *x = 0.0;
        }
    }
    let on_device = |values: &[f32]| -> Tensor<1> { tensor(values, [N], &backend.device) };
    let quotients = values(quotient(on_device(&x), on_device(&y)));
    for (quotient, (x, y)) in quotients.iter().zip(x.iter().zip(&y)) {
        assert_eq!(*quotient, x / y, "{x} / {y} on {name}");
    }
}

/// The runners of a backend.
macro_rules! runners {
    ($backend:ident, $feature:literal, $needs:literal) => {
        mod $backend {
            const NAME: &str = stringify!($backend);

            #[test]
            #[cfg_attr(not(feature = $feature), ignore = $needs)]
            fn quotients() {
                crate::check_quotients(NAME);
            }

            #[test]
            #[cfg_attr(not(feature = $feature), ignore = $needs)]
            fn quantizers() {
                crate::check(NAME, "quantizers", &crate::quantizers::cases());
            }

            #[test]
            #[cfg_attr(not(feature = $feature), ignore = $needs)]
            fn layers() {
                crate::check(NAME, "layers", &crate::layers::cases());
            }

            #[test]
            #[cfg_attr(not(feature = $feature), ignore = $needs)]
            fn models() {
                crate::check(NAME, "models", &crate::models::cases());
            }

            #[test]
            #[cfg_attr(not(feature = $feature), ignore = $needs)]
            fn strategies() {
                crate::check(NAME, "strategies", &crate::runs::STRATEGIES);
            }
        }
    };
}

runners!(flex, "flex", "needs --features flex");
runners!(ndarray, "ndarray", "needs --features ndarray");
runners!(wgpu, "wgpu", "needs --features wgpu");

#[test]
fn every_backend_has_its_runners() {
    // A new name needs a line above.
    assert_eq!(Backend::NAMES, ["flex", "ndarray", "wgpu"]);
}

/// No case may get lost.
#[test]
fn cases_are_complete() {
    let count = [
        quantizers::cases().len(),
        layers::cases().len(),
        models::cases().len(),
        runs::STRATEGIES.len(),
        runs::ROUND_TRIPS.len(),
    ];
    assert_eq!(count, [767, 141, 77, 16, 6]);
}

/// Begun on one backend, ended on another, evaluated on all: the same images are classified correctly.
#[test]
fn checkpoints_move_between_backends() {
    let backends = backends();
    for case in &runs::ROUND_TRIPS {
        let from = Backend::find(case.train).map(|backend| case.begin(&backend));
        let to = match (from, Backend::find(case.go_on)) {
            (Ok(()), Ok(to)) => to,
            // Another build's tests may have left the beginning.
            (Err(_), Ok(to)) if case.is_begun() => to,
            // What this build lacks, another's tests do: `cargo xtask parity` looks whether all were done.
            (Err(Skip::NotCompiledIn), _) | (_, Err(Skip::NotCompiledIn)) => continue,
            (Err(reason), _) | (_, Err(reason)) => {
                skip(&format!("round trip {} to {}: {reason}", case.train, case.go_on));
                continue;
            }
        };
        let evaluations = case.evaluations(&to, &backends);
        let found: Vec<String> = backends
            .iter()
            .zip(&evaluations)
            .map(|(backend, evaluation)| format!("{} {:.4}", backend.name, evaluation.scores.top1))
            .collect();
        eprintln!(
            "parity: {} on {}, then {}; top-1 on {}",
            case.recipe,
            case.train,
            case.go_on,
            found.join(", ")
        );
        for (backend, evaluation) in backends.iter().zip(&evaluations) {
            let (got, expected) = (evaluation.scores, evaluations[0].scores);
            let what = format!("{case:?} evaluated on {}", backend.name);
            assert_eq!((got.top1, got.top5), (expected.top1, expected.top5), "{what}");
            assert!((got.loss / expected.loss - 1.0).abs() < 1e-5, "{what}: {} {}", got.loss, expected.loss);
        }
    }
}

/// Means over three seeds differ by no more than twice the standard error of their difference, and an image.
#[test]
#[ignore = "trains for many minutes on a software driver: cargo xtask parity --slow"]
fn slow_accuracy_on_wgpu_is_that_of_the_cpu() {
    let (Some(gpu), Some(cpu)) = (Backend::find_or_skip("wgpu"), Backend::find_or_skip("flex")) else {
        return;
    };
    let [gpu, cpu] = [gpu, cpu].map(|backend| runs::accuracies(&backend));
    let mean = |values: [f64; 3]| values.iter().sum::<f64>() / 3.0;
    let variance =
        |values: [f64; 3]| values.iter().map(|value| (value - mean(values)).powi(2)).sum::<f64>() / 2.0;
    let error = ((variance(gpu) + variance(cpu)) / 3.0).sqrt();
    let (difference, allowed) = ((mean(gpu) - mean(cpu)).abs(), 2.0 * error + 1.0 / 359.0);
    eprintln!("parity: mean top-1 on wgpu {:.4}, on flex {:.4}, allowed {allowed:.4}", mean(gpu), mean(cpu));
    assert!(difference <= allowed, "{gpu:?} on wgpu, {cpu:?} on flex");
    assert!(mean(cpu) > 0.9, "nothing is learned: {cpu:?}");
}
