//! `cargo xtask reproduce`: trains every cell of a table, methods x bit widths x seeds, and reports it.
//!
//! Each cell is a run of `lowbit train` in a directory of its own, so that a table that was stopped goes on where it
//! was, cell by cell and inside a cell.

mod cell;
mod plot;
mod report;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use cell::{Cell, CellState, Lowbit};
use table::Table;

/// What `cargo xtask reproduce` is asked for.
#[derive(Args)]
pub struct ReproduceArgs {
    /// digits (minutes), fashion-mnist (CPU hours), cifar10, cifar100 (for a GPU)
    #[arg(value_parser = table::NAMES)]
    table: String,

    /// Train the seeds 0 to N-1 of every cell [default: the table's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: Option<u64>,

    /// Device: flex, ndarray, wgpu or wgpu:INDEX
    #[arg(long, default_value = "flex")]
    device: String,

    /// Stop after this time, as in 45m or 8h; the same command goes on later
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    budget: Option<Duration>,

    /// Show what would be trained, with the hours it would take by a short timing
    #[arg(long)]
    dry_run: bool,

    /// Train this many cells at a time, each on its share of the cores
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,

    /// Use this lowbit instead of building it
    #[arg(long, value_name = "PROGRAM")]
    program: Option<PathBuf>,

    /// Where data sets are, as for `lowbit train`
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Directory of the runs and the report [default: runs/reproduce/TABLE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Change a setting of every cell, as for `lowbit train`; needs an --out of its own
    #[arg(long, value_name = "KEY=VALUE", requires = "out")]
    set: Vec<String>,

    /// End with the table as one JSON object on stdout
    #[arg(long)]
    json: bool,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let seconds = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("expected a number with s, m or h, as in 45m".into()),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 && number < 1e6 => Ok(Duration::from_secs_f64(number * seconds)),
        _ => Err("expected a number with s, m or h, as in 45m".into()),
    }
}

/// What decides the outcome of all cells; stored beside them, so that no report mixes two kinds.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Plan {
    table: String,
    device: String,
    set: Vec<String>,
}

pub fn run(args: &ReproduceArgs) -> anyhow::Result<()> {
    let table = Table::named(&args.table)?;
    if args.set.iter().any(|change| change.trim_start().starts_with("seed")) {
        bail!("--set seed=... would give all cells the same seed: choose how many with --seeds");
    }
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs/reproduce").join(&args.table));
    let program = match &args.program {
        Some(program) => program.clone(),
        None => cell::build(&args.device)?,
    };
    let lowbit = Lowbit { program, device: args.device.clone(), data_dir: args.data_dir.clone() };
    if let Some(how) = lowbit.missing_data(&table.dataset)? {
        bail!("{how}");
    }
    let cells = table.cells(args.seeds.unwrap_or(table.seeds), &args.set, &out);
    if args.dry_run {
        return dry_run(&lowbit, &table, &cells);
    }
    check_plan(&out, args)?;
    let outcome = train(&lowbit, &cells, args)?;
    let report = report::Report::collect(&table, &args.device, &cells)?;
    report.write(&out)?;
    eprintln!("\n{}", report.markdown());
    eprintln!("report  {}", out.join("table.md").display());
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    match outcome {
        Outcome::Done => Ok(()),
        Outcome::Failed(failed) => {
            bail!("{} failed: {}; the same command tries them again", count(failed.len()), failed.join(", "))
        }
        Outcome::Stopped(why) => {
            eprintln!("{why}: the same command goes on with what is left");
            Ok(())
        }
    }
}

fn count(n: usize) -> String {
    if n == 1 { "a cell".into() } else { format!("{n} cells") }
}

/// Makes `out` or checks that what is in it was made by the same plan.
fn check_plan(out: &Path, args: &ReproduceArgs) -> anyhow::Result<()> {
    let plan = Plan { table: args.table.clone(), device: args.device.clone(), set: args.set.clone() };
    let path = out.join("plan.json");
    if let Ok(text) = fs::read_to_string(&path) {
        let earlier: Plan = serde_json::from_str(&text).context("plan.json is damaged")?;
        if earlier != plan {
            bail!(
                "{} holds cells of table {} on {} with settings {:?}: choose another --out",
                out.display(),
                earlier.table,
                earlier.device,
                earlier.set
            );
        }
        return Ok(());
    }
    fs::create_dir_all(out).with_context(|| format!("failed to create {}", out.display()))?;
    fs::write(&path, serde_json::to_string_pretty(&plan)?).context("failed to write plan.json")
}

/// How the training of a table ended.
enum Outcome {
    Done,
    /// These cells failed; all others are done.
    Failed(Vec<String>),
    /// Before the end, and why.
    Stopped(&'static str),
}

/// Trains all cells that are not complete, in order, `args.parallel` at a time.
fn train(lowbit: &Lowbit, cells: &[Cell], args: &ReproduceArgs) -> anyhow::Result<Outcome> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    // The cells' processes get the signal too and save.
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
    let started = Instant::now();
    let out_of_time = || args.budget.is_some_and(|budget| started.elapsed() >= budget);
    let next = AtomicUsize::new(0);
    let failed = std::sync::Mutex::new(Vec::new());
    let was_cut = AtomicBool::new(false);
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from) / usize::from(args.parallel);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(cell) = cells.get(index) else { return };
            if matches!(cell.state(), CellState::Complete) {
                continue;
            }
            if interrupted.load(Ordering::Relaxed) || out_of_time() {
                was_cut.store(true, Ordering::Relaxed);
                return;
            }
            eprintln!("cell {}/{}  {}  ({})", index + 1, cells.len(), cell.name(), clock(started.elapsed()));
            let stop = || interrupted.load(Ordering::Relaxed) || out_of_time();
            match lowbit.train(cell, n_threads.max(1), stop) {
                Ok(CellState::Complete) => {}
                Ok(_) => was_cut.store(true, Ordering::Relaxed),
                Err(error) => {
                    eprintln!("cell {} failed: {error:#}", cell.name());
                    failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(cell.name());
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..args.parallel {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    Ok(match (was_cut.into_inner(), failed.is_empty()) {
        (true, _) if interrupted.load(Ordering::Relaxed) => Outcome::Stopped("stopped"),
        (true, _) => Outcome::Stopped("the budget is spent"),
        (false, true) => Outcome::Done,
        (false, false) => Outcome::Failed(failed),
    })
}

/// Times a few steps of every recipe and shows what all cells would take.
fn dry_run(lowbit: &Lowbit, table: &Table, cells: &[Cell]) -> anyhow::Result<()> {
    println!("{}: {} cells on {}", table.title, cells.len(), lowbit.device);
    println!(
        "{:<42} {:>5} {:>6} {:>8} {:>7} {:>7}",
        "recipe", "seeds", "epochs", "images/s", "a cell", "all"
    );
    let mut total = Duration::ZERO;
    for recipe in cells.chunk_by(|a, b| a.recipe == b.recipe) {
        let estimate = lowbit.estimate(&recipe[0], &table.dataset)?;
        let left = recipe.iter().filter(|cell| !matches!(cell.state(), CellState::Complete)).count();
        let all = estimate.duration * left as u32;
        total += all;
        println!(
            "{:<42} {:>5} {:>6} {:>8.0} {:>7} {:>7}",
            recipe[0].recipe,
            recipe.len(),
            estimate.epochs,
            estimate.images_per_second,
            clock(estimate.duration),
            clock(all),
        );
    }
    println!("what is left: {} one after the other", clock(total));
    Ok(())
}

/// "1:23:45" or "3:45".
fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round_ties_even() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}
