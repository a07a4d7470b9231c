//! `lowbit bench`: how fast a packed model is, beside the same network in full precision.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use lowbit_runtime::Model;
use lowbit_train::Origin;
use serde::Serialize;

use crate::cli::BenchArgs;
use crate::exit_code::{Code, ModelError};
use crate::output::{self, counted};
use crate::packed;

#[derive(Serialize)]
struct Report<'a> {
    model: &'a Path,
    threads: usize,
    batch: usize,
    rounds: usize,
    /// From the file to a model that is ready.
    load_ms: f64,
    latency_ms: Times,
    fp32_latency_ms: Times,
    /// Of the medians: how many times as long full precision takes.
    ratio: f64,
    images_per_second: f64,
    layers: Vec<LayerTime>,
    origin: Origin,
}

/// Milliseconds of a batch.
#[derive(Serialize)]
struct Times {
    median: f64,
    min: f64,
    max: f64,
}

#[derive(Serialize)]
struct LayerTime {
    path: String,
    operation: &'static str,
    milliseconds: f64,
}

impl Times {
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self { median: median(&times), min: times[0], max: times[times.len() - 1] }
    }
}

/// Of times in order.
fn median(times: &[f64]) -> f64 {
    let (low, high) = ((times.len() - 1) / 2, times.len() / 2);
    (times[low] + times[high]) / 2.0
}

pub fn run(args: &BenchArgs) -> anyhow::Result<Code> {
    let threads = args.threads.map_or(0, |n| n as usize);
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("failed to start threads")?;
    pool.install(|| timed(args))
}

fn timed(args: &BenchArgs) -> anyhow::Result<Code> {
    let start = Instant::now();
    let model = packed::load(&args.model)?;
    let load_ms = 1e3 * start.elapsed().as_secs_f64();
    let full = Model::new(model.network().in_full_precision())
        .map_err(|error| ModelError { path: args.model.clone(), problem: error.to_string() })?;
    let [batch, rounds] = [args.batch as usize, args.rounds as usize];
    let n_values = batch * model.input_shape().iter().product::<usize>();
    // Any values: what is computed takes as long for all.
    let images: Vec<f32> = (0..n_values).map(|i| (i * 7919 % 255) as f32 / 64.0 - 2.0).collect();
    let once = |model: &Model| -> anyhow::Result<f64> {
        let start = Instant::now();
        model.run(&images)?;
        Ok(1e3 * start.elapsed().as_secs_f64())
    };
    // Buffers and caches.
    once(&model)?;
    once(&full)?;
    let (mut packed_ms, mut full_ms) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    let mut layers: Vec<(String, &'static str, Vec<f64>)> = Vec::new();
    for round in 0..rounds {
        packed_ms.push(once(&model)?);
        full_ms.push(once(&full)?);
        let (_, times) = model.run_timed(&images)?;
        for (place, time) in times.into_iter().enumerate() {
            if round == 0 {
                layers.push((time.path, time.operation, Vec::with_capacity(rounds)));
            }
            layers[place].2.push(1e3 * time.seconds);
        }
    }
    let layers = layers.into_iter().map(|(path, operation, mut times)| {
        times.sort_by(f64::total_cmp);
        LayerTime { path, operation, milliseconds: median(&times) }
    });
    let (latency_ms, fp32_latency_ms) = (Times::of(packed_ms), Times::of(full_ms));
    let report = Report {
        model: &args.model,
        threads: rayon::current_num_threads(),
        batch,
        rounds,
        load_ms,
        ratio: fp32_latency_ms.median / latency_ms.median,
        images_per_second: 1e3 * batch as f64 / latency_ms.median,
        latency_ms,
        fp32_latency_ms,
        layers: layers.collect(),
        origin: crate::origin::here(),
    };
    match args.json.json {
        true => output::print_json(&report)?,
        false => output::print(&describe(&report))?,
    }
    Ok(Code::Success)
}

fn describe(report: &Report<'_>) -> String {
    let times = |Times { median, min, max }: &Times| format!("{median:.3} ms ({min:.3} to {max:.3})");
    let mut lines = vec![
        format!("packed          {}", times(&report.latency_ms)),
        format!("full precision  {}, {:.2} times as long", times(&report.fp32_latency_ms), report.ratio),
        format!(
            "{} images/s with {}, {} at a time; loaded in {:.1} ms",
            report.images_per_second.round_ties_even(),
            counted(report.threads as u64, "thread"),
            counted(report.batch as u64, "image"),
            report.load_ms
        ),
        String::new(),
    ];
    let width = report.layers.iter().map(|layer| layer.path.len()).max().unwrap_or_default();
    lines.extend(report.layers.iter().map(|LayerTime { path, operation, milliseconds }| {
        format!("{milliseconds:>9.3} ms  {path:width$}  {operation}")
    }));
    lines.join("\n")
}
