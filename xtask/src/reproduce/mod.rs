//! `cargo xtask reproduce`: trains every cell of a table, methods x bit widths x seeds, and reports it.
//!
//! Each cell is a run of `lowbit train` in a directory of its own, so that a table that was stopped goes on where it
//! was, cell by cell and inside a cell.

mod cell;
mod origin;
mod plan;
mod plot;
mod report;
mod stand_in;
mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::output::print;
use crate::workspace;
use cell::{Cell, Estimate, Images, Lowbit, Wish};
use plan::Plan;
use report::{Failure, Report};
use table::Table;

/// What `cargo xtask reproduce` is asked for.
#[derive(Args)]
pub struct ReproduceArgs {
    /// digits (minutes), fashion-mnist (CPU hours), cifar10, cifar100, imagenet (for a GPU)
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

    /// Directory of the runs and the report [default: runs/reproduce/TABLE in the root of the workspace]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Change a setting of every cell, as for `lowbit train`; needs an --out of its own
    #[arg(long, value_name = "KEY=VALUE", requires = "out")]
    set: Vec<String>,

    /// End with the table, or what --dry-run shows, as one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// A second signal this soon is the first once more: `timeout` sends it to the process and to its group.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| "expected a time with its units, as in 45m or 1h30m".into())
}

pub fn run(args: &ReproduceArgs) -> anyhow::Result<()> {
    let table = Table::named(&args.table)?;
    if args.set.iter().any(|change| change.trim_start().starts_with("seed")) {
        bail!("--set seed=... would give all cells the same seed: choose how many with --seeds");
    }
    let default_out = || workspace::root().join("runs/reproduce").join(&args.table);
    let out = args.out.clone().unwrap_or_else(default_out);
    let program = match &args.program {
        Some(program) => program.clone(),
        None => cell::build(&args.device)?,
    };
    let mut lowbit = Lowbit { program, device: args.device.clone(), data_dir: args.data_dir.clone() };
    let cells = table.cells(args.seeds.unwrap_or(table.seeds), &args.set, &out);
    if table.pretrained && args.parallel > 1 {
        bail!(
            "the cells of this table begin with the full-precision one: they are trained one after the other, without --parallel"
        );
    }
    // Whatever would let all cells fail is found before the first.
    let images = match table.images {
        Some(_) if args.data_dir.is_none() => {
            Err(anyhow::anyhow!("give the folder of {} with --data-dir", table.dataset))
        }
        Some(images) => Ok(images),
        None => lowbit.images(&table.dataset),
    };
    let inspected = inspect(&lowbit, &cells)?;
    lowbit.check_device(&out)?;
    match (&images, table.images) {
        (Err(missing), Some(published)) if args.dry_run => {
            eprintln!("{missing:#}; meanwhile generated images are timed");
            // Signals do not end this program from here on: the folder is removed on the way out.
            let signals = Signals::watch()?;
            let folder = stand_in::imagenet()?;
            lowbit.data_dir = Some(folder.path().to_owned());
            let timed = Timed { images: published, missing: Some(missing), signals };
            return dry_run(&lowbit, &table, &cells, &inspected, args.json, &timed);
        }
        (Err(missing), None) if args.dry_run => {
            return dry_run_without_data(&lowbit, &table, &cells, &inspected, args.json, missing);
        }
        _ => {}
    }
    let images = images?;
    let origin = lowbit.origin()?;
    let identity = origin.identity.clone();
    let program = if identity.names_sources() { None } else { Some(lowbit.sha256()?) };
    let plan = Plan::new(identity.clone(), program, &args.table, &args.device, images, &inspected);
    let plan = plan.checked(&out)?;
    cells.iter().try_for_each(|cell| cell.expect_made_by(&identity))?;
    if args.dry_run {
        let timed = Timed { images, missing: None, signals: Signals::watch()? };
        return dry_run(&lowbit, &table, &cells, &inspected, args.json, &timed);
    }
    plan.write(&out)?;
    let Ending { failed, stopped } = train(&lowbit, &cells, args)?;
    let report = Report::collect(&table, &args.device, &identity, &cells, failed, stopped);
    report.write(&out)?;
    eprintln!("\n{}", report.markdown());
    eprintln!("report  {}", out.join("table.md").display());
    if args.json {
        print(&serde_json::to_string(&report)?)?;
    }
    let goes_on = stopped.map(|why| format!("{why}: the same command goes on with what is left"));
    if report.failed.is_empty() {
        goes_on.iter().for_each(|text| eprintln!("{text}"));
        return Ok(());
    }
    let names: Vec<&str> = report.failed.iter().map(|failure| failure.cell.as_str()).collect();
    let goes_on = goes_on.unwrap_or_else(|| "the same command tries them again".into());
    bail!("{} failed: {}; {goes_on}", count(names.len()), names.join("; "))
}

fn count(n: usize) -> String {
    if n == 1 { "a cell".into() } else { format!("{n} cells") }
}

/// What `lowbit inspect` says of the recipe of every cell.
fn inspect(lowbit: &Lowbit, cells: &[Cell]) -> anyhow::Result<BTreeMap<String, Value>> {
    let recipes = cells.chunk_by(|a, b| a.recipe == b.recipe);
    recipes.map(|cells| Ok((cells[0].recipe.clone(), lowbit.inspect(&cells[0])?))).collect()
}

/// How the training of a table ended.
struct Ending {
    failed: Vec<Failure>,
    /// Why it ended before all cells had their turn.
    stopped: Option<&'static str>,
}

/// The signals to end that there were so far.
#[derive(Default)]
struct Signals {
    first: OnceLock<Instant>,
    is_urgent: AtomicBool,
}

impl Signals {
    /// Counts Ctrl-C and signals to terminate from now on. Cells hear of them by [`Wish`] only.
    fn watch() -> anyhow::Result<Arc<Self>> {
        let signals = Arc::new(Self::default());
        let seen = signals.clone();
        ctrlc::set_handler(move || seen.count())?;
        Ok(signals)
    }

    fn count(&self) {
        match self.first.get() {
            Some(first) if first.elapsed() < SAME_SIGNAL => {}
            Some(_) => self.is_urgent.store(true, Ordering::Relaxed),
            None => {
                let _ = self.first.set(Instant::now());
                eprintln!("stopping when what runs has ended or is saved (press Ctrl-C again to abort)");
            }
        }
    }

    fn wish(&self) -> Wish {
        match (self.is_urgent.load(Ordering::Relaxed), self.first.get()) {
            (true, _) => Wish::Abort,
            (false, Some(_)) => Wish::Stop,
            (false, None) => Wish::GoOn,
        }
    }
}

/// Trains all cells that are not complete, in order, `args.parallel` at a time.
fn train(lowbit: &Lowbit, cells: &[Cell], args: &ReproduceArgs) -> anyhow::Result<Ending> {
    let signals = Signals::watch()?;
    let started = Instant::now();
    let out_of_time = || args.budget.is_some_and(|budget| started.elapsed() >= budget);
    let wish = || signals.wish().max(if out_of_time() { Wish::Stop } else { Wish::GoOn });
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let was_cut = AtomicBool::new(false);
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from) / usize::from(args.parallel);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(cell) = cells.get(index) else { return };
            if cell.is_complete() {
                continue;
            }
            if wish() > Wish::GoOn {
                was_cut.store(true, Ordering::Relaxed);
                return;
            }
            eprintln!("cell {}/{}  {}  ({})", index + 1, cells.len(), cell.name(), clock(started.elapsed()));
            match lowbit.train(cell, n_threads.max(1), wish) {
                Ok(true) => {}
                Ok(false) => was_cut.store(true, Ordering::Relaxed),
                Err(error) => {
                    let failure = Failure { cell: cell.name(), reason: format!("{error:#}") };
                    eprintln!("{failure}");
                    failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(failure);
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
    let why = if signals.wish() > Wish::GoOn { "stopped" } else { "the budget is spent" };
    Ok(Ending { failed, stopped: was_cut.into_inner().then_some(why) })
}

/// What a dry run shows.
#[derive(Serialize)]
struct Forecast<'a> {
    title: &'a str,
    device: &'a str,
    recipes: Vec<RecipeForecast<'a>>,
    /// All that is left, one after the other; absent if nothing could be timed.
    seconds_left: Option<f64>,
    /// What is missing to train it. If there are times, they were taken with generated images.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
}

#[derive(Serialize)]
struct RecipeForecast<'a> {
    recipe: &'a str,
    method: &'a str,
    /// 32 in full precision.
    weight_bits: u32,
    /// 32 in full precision.
    act_bits: u32,
    seeds: usize,
    /// Seeds that are not complete.
    left: usize,
    epochs: u64,
    /// Absent where nothing could be timed, and so are the times.
    images_per_second: Option<f64>,
    /// Of a training.
    seconds: Option<f64>,
    /// Of all that are left.
    seconds_left: Option<f64>,
}

impl<'a> RecipeForecast<'a> {
    /// What is known of the cells of a recipe without data.
    fn new(cells: &'a [Cell], epochs: u64) -> Self {
        let Cell { recipe, method, bits: [weight_bits, act_bits], .. } = &cells[0];
        Self {
            recipe,
            method,
            weight_bits: *weight_bits,
            act_bits: *act_bits,
            seeds: cells.len(),
            left: cells.iter().filter(|cell| !cell.is_complete()).count(),
            epochs,
            images_per_second: None,
            seconds: None,
            seconds_left: None,
        }
    }

    fn line(&self) -> String {
        let time = |seconds: Option<f64>| {
            seconds.map_or("-".into(), |seconds| clock(Duration::from_secs_f64(seconds)))
        };
        let rate = self.images_per_second.map_or("-".into(), |rate| match rate {
            rate if rate < 10.0 => format!("{rate:.1}"),
            rate => format!("{rate:.0}"),
        });
        format!(
            "{:<42} {:>5} {:>6} {rate:>8} {:>7} {:>7}",
            self.recipe,
            self.seeds,
            self.epochs,
            time(self.seconds),
            time(self.seconds_left),
        )
    }
}

/// Shows what would be trained where the data is missing, so that nothing can be timed.
fn dry_run_without_data(
    lowbit: &Lowbit,
    table: &Table,
    cells: &[Cell],
    inspected: &BTreeMap<String, Value>,
    json: bool,
    missing: &anyhow::Error,
) -> anyhow::Result<()> {
    let recipes: Vec<RecipeForecast> = cells
        .chunk_by(|a, b| a.recipe == b.recipe)
        .map(|cells| Ok(RecipeForecast::new(cells, cell::epochs(&inspected[&cells[0].recipe])?)))
        .collect::<anyhow::Result<_>>()?;
    if json {
        let missing = Some(format!("{missing:#}"));
        let forecast =
            Forecast { title: &table.title, device: &lowbit.device, recipes, seconds_left: None, missing };
        print(&serde_json::to_string(&forecast)?)?;
    } else {
        heading(lowbit, table, cells)?;
        for recipe in &recipes {
            print(&recipe.line())?;
        }
        print(&format!("not timed, as its data is missing: {missing:#}"))?;
    }
    Ok(())
}

fn heading(lowbit: &Lowbit, table: &Table, cells: &[Cell]) -> anyhow::Result<()> {
    print(&format!("{}: {} cells on {}", table.title, cells.len(), lowbit.device))?;
    print(&format!(
        "{:<42} {:>5} {:>6} {:>8} {:>7} {:>7}",
        "recipe", "seeds", "epochs", "images/s", "a cell", "all"
    ))
}

/// What a dry run times.
struct Timed<'a> {
    /// Their numbers in a training.
    images: Images,
    /// What is missing, if generated images are timed instead.
    missing: Option<&'a anyhow::Error>,
    signals: Arc<Signals>,
}

/// Times a few steps of every recipe and shows what all cells would take; with what is missing if that was done with generated images.
fn dry_run(
    lowbit: &Lowbit,
    table: &Table,
    cells: &[Cell],
    inspected: &BTreeMap<String, Value>,
    json: bool,
    Timed { images, missing, signals }: &Timed<'_>,
) -> anyhow::Result<()> {
    if !json {
        heading(lowbit, table, cells)?;
    }
    let mut recipes = Vec::new();
    for cells in cells.chunk_by(|a, b| a.recipe == b.recipe) {
        let estimate = lowbit.estimate(&cells[0], &inspected[&cells[0].recipe], *images, || signals.wish());
        if signals.wish() > Wish::GoOn {
            bail!("stopped");
        }
        let Estimate { epochs, images_per_second, duration } = estimate?;
        let forecast = RecipeForecast::new(cells, epochs);
        let all = duration * forecast.left as u32;
        let forecast = RecipeForecast {
            images_per_second: Some(images_per_second),
            seconds: Some(duration.as_secs_f64()),
            seconds_left: Some(all.as_secs_f64()),
            ..forecast
        };
        if !json {
            print(&forecast.line())?;
        }
        recipes.push(forecast);
    }
    let seconds_left = recipes.iter().filter_map(|recipe| recipe.seconds_left).sum();
    if json {
        let (title, device) = (&table.title, &lowbit.device);
        let missing = missing.map(|missing| format!("{missing:#}"));
        let forecast = Forecast { title, device, recipes, seconds_left: Some(seconds_left), missing };
        print(&serde_json::to_string(&forecast)?)?;
    } else {
        let left = clock(Duration::from_secs_f64(seconds_left));
        print(&format!("what is left: {left} one after the other"))?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_a_number_and_a_unit() {
        let seconds = |text: &str| parse_duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!([seconds("45m"), seconds("1.5h"), seconds("3s")], [Ok(2700.0), Ok(5400.0), Ok(3.0)]);
        assert_eq!(seconds("1h 30m"), Ok(5400.0));
        for text in ["", "5", "m", "5µ", "-1s", "0s", "µ"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_same_signal_twice_is_no_second_one() {
        let signals = Signals::default();
        assert_eq!(signals.wish(), Wish::GoOn);
        signals.count();
        signals.count();
        assert_eq!(signals.wish(), Wish::Stop);
        let earlier = Signals::default();
        let first = Instant::now().checked_sub(SAME_SIGNAL).expect("the machine has run for a second");
        earlier.first.set(first).unwrap();
        earlier.count();
        assert_eq!(earlier.wish(), Wish::Abort);
    }
}
