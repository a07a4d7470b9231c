//! All cells of a sweep, in order: trained, or timed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::cell::{self, Cell, Estimate, Images, Lowbit};
use crate::plan::Plan;
use crate::report::{Compare, Failure, Published, Report};

/// A second signal this soon is the first once more: `timeout` sends it to the process and to its group.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

/// What is trained, and how it is shown.
pub struct Sweep {
    /// What it is about.
    pub title: String,
    /// What it is called in the stored plan: cells of another are refused.
    pub name: String,
    /// All trainings, those of the same settings one after the other.
    pub cells: Vec<Cell>,
    /// Where the images are from.
    pub images: ImagesOf,
    /// Which row a row is compared with.
    pub compare: Compare,
    /// Figures of others, shown below.
    pub published: Vec<Published>,
}

/// What is known of the images before anything is trained.
pub enum ImagesOf {
    /// A data set, which is verified.
    Named(String),
    /// So many of a data set that has to be given by `--data-dir`; without it, a dry run times the images that the function generates.
    Given {
        /// Name of the data set.
        dataset: String,
        /// Numbers of its images.
        images: Images,
        /// A folder of generated images.
        stand_in: fn() -> anyhow::Result<TempDir>,
    },
    /// Nothing: the trainings themselves look at them. A dry run is not timed.
    Unknown,
}

/// How a sweep is run.
pub struct Options {
    /// Directory of the runs and the report.
    pub out: PathBuf,
    /// Stop after this time.
    pub budget: Option<Duration>,
    /// Show what would be trained.
    pub dry_run: bool,
    /// Cells at a time.
    pub parallel: u16,
    /// End with the report, or what a dry run shows, as one JSON object.
    pub json: bool,
    /// Prints a result on stdout.
    pub print: fn(&str) -> anyhow::Result<()>,
}

/// Reads a time with its units, as in "45m".
///
/// # Errors
/// What is expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| "expected a time with its units, as in 45m or 1h30m".into())
}

/// What a cell that runs is asked to do, from the least urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// Nothing.
    GoOn,
    /// Save and end.
    Stop,
    /// End at once.
    Abort,
}

/// Trains all cells of a sweep that are not complete and reports them, or shows what that would take. Returns whether all had their
/// turn: a signal or the budget may have ended it before.
///
/// # Errors
/// With what to do: if the device, the data or a recipe is not to be had, if cells of another plan are there, or if cells failed.
pub fn run(sweep: &Sweep, lowbit: &Lowbit, options: &Options, signals: &Signals) -> anyhow::Result<bool> {
    let Options { out, .. } = options;
    // Whatever would let all cells fail is found before the first.
    let images = match &sweep.images {
        ImagesOf::Named(dataset) => lowbit.images(dataset).map(Some),
        ImagesOf::Given { dataset, .. } if lowbit.data_dir.is_none() => {
            Err(anyhow::anyhow!("give the folder of {dataset} with --data-dir"))
        }
        ImagesOf::Given { images, .. } => Ok(Some(*images)),
        ImagesOf::Unknown => Ok(None),
    };
    let inspected = inspect(lowbit, &sweep.cells)?;
    lowbit.check_device(out)?;
    match (&images, &sweep.images) {
        (Err(missing), ImagesOf::Given { images, stand_in, .. }) if options.dry_run => {
            eprintln!("{missing:#}; meanwhile generated images are timed");
            let folder = stand_in()?;
            let lowbit = Lowbit { data_dir: Some(folder.path().to_owned()), ..lowbit.clone() };
            let timed = Timed { images: *images, missing: Some(missing), signals };
            return dry_run(&lowbit, sweep, &inspected, options, &timed).map(|()| true);
        }
        (Err(missing), _) if options.dry_run => {
            return dry_run_untimed(lowbit, sweep, &inspected, options, Some(missing)).map(|()| true);
        }
        _ => {}
    }
    let images = images?;
    let origin = lowbit.origin()?;
    let identity = origin.identity.clone();
    let program = if identity.names_sources() { None } else { Some(lowbit.sha256()?) };
    let plan = Plan::new(identity.clone(), program, &sweep.name, &lowbit.device, images, &inspected);
    let plan = plan.checked(out)?;
    sweep.cells.iter().try_for_each(|cell| cell.expect_made_by(&identity))?;
    if options.dry_run {
        let shown = match images {
            Some(images) => {
                dry_run(lowbit, sweep, &inspected, options, &Timed { images, missing: None, signals })
            }
            None => dry_run_untimed(lowbit, sweep, &inspected, options, None),
        };
        return shown.map(|()| true);
    }
    plan.write(out)?;
    let Ending { failed, stopped } = train(lowbit, &sweep.cells, options, signals);
    let report = Report::collect(sweep, &lowbit.device, &identity, failed, stopped);
    report.write(out)?;
    eprintln!("\n{}", report.markdown());
    eprintln!("report  {}", out.join("table.md").display());
    if options.json {
        (options.print)(&serde_json::to_string(&report)?)?;
    }
    let goes_on = stopped.map(|why| format!("{why}: the same command goes on with what is left"));
    if report.failed.is_empty() {
        goes_on.iter().for_each(|text| eprintln!("{text}"));
        return Ok(stopped.is_none());
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
pub struct Signals {
    first: OnceLock<Instant>,
    is_urgent: AtomicBool,
}

impl Signals {
    /// Counts a signal. Cells hear of it by [`Wish`] only.
    pub fn count(&self) {
        match self.first.get() {
            Some(first) if first.elapsed() < SAME_SIGNAL => {}
            Some(_) => self.is_urgent.store(true, Ordering::Relaxed),
            None => {
                let _ = self.first.set(Instant::now());
                eprintln!("stopping when what runs has ended or is saved (press Ctrl-C again to abort)");
            }
        }
    }

    /// What they ask for.
    pub fn wish(&self) -> Wish {
        match (self.is_urgent.load(Ordering::Relaxed), self.first.get()) {
            (true, _) => Wish::Abort,
            (false, Some(_)) => Wish::Stop,
            (false, None) => Wish::GoOn,
        }
    }
}

/// Trains all cells that are not complete, in order, `options.parallel` at a time.
fn train(lowbit: &Lowbit, cells: &[Cell], options: &Options, signals: &Signals) -> Ending {
    let started = Instant::now();
    let out_of_time = || options.budget.is_some_and(|budget| started.elapsed() >= budget);
    let wish = || signals.wish().max(if out_of_time() { Wish::Stop } else { Wish::GoOn });
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let was_cut = AtomicBool::new(false);
    let n_threads =
        std::thread::available_parallelism().map_or(1, usize::from) / usize::from(options.parallel);
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
        for _ in 0..options.parallel {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let why = if signals.wish() > Wish::GoOn { "stopped" } else { "the budget is spent" };
    Ending { failed, stopped: was_cut.into_inner().then_some(why) }
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

/// Shows what would be trained where nothing can be timed: data is missing, or its size is not known.
fn dry_run_untimed(
    lowbit: &Lowbit,
    sweep: &Sweep,
    inspected: &BTreeMap<String, Value>,
    options: &Options,
    missing: Option<&anyhow::Error>,
) -> anyhow::Result<()> {
    let recipes: Vec<RecipeForecast> = sweep
        .cells
        .chunk_by(|a, b| a.recipe == b.recipe)
        .map(|cells| Ok(RecipeForecast::new(cells, cell::epochs(&inspected[&cells[0].recipe])?)))
        .collect::<anyhow::Result<_>>()?;
    let print = options.print;
    if options.json {
        let missing = missing.map(|missing| format!("{missing:#}"));
        let forecast =
            Forecast { title: &sweep.title, device: &lowbit.device, recipes, seconds_left: None, missing };
        print(&serde_json::to_string(&forecast)?)?;
    } else {
        heading(lowbit, sweep, options)?;
        for recipe in &recipes {
            print(&recipe.line())?;
        }
        print(&match missing {
            Some(missing) => format!("not timed, as its data is missing: {missing:#}"),
            None => "not timed, as the number of its images is not known".into(),
        })?;
    }
    Ok(())
}

fn heading(lowbit: &Lowbit, sweep: &Sweep, options: &Options) -> anyhow::Result<()> {
    let print = options.print;
    print(&format!("{}: {} cells on {}", sweep.title, sweep.cells.len(), lowbit.device))?;
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
    signals: &'a Signals,
}

/// Times a few steps of every recipe and shows what all cells would take; with what is missing if that was done with generated images.
fn dry_run(
    lowbit: &Lowbit,
    sweep: &Sweep,
    inspected: &BTreeMap<String, Value>,
    options: &Options,
    Timed { images, missing, signals }: &Timed<'_>,
) -> anyhow::Result<()> {
    let Options { json, print, .. } = *options;
    if !json {
        heading(lowbit, sweep, options)?;
    }
    let mut recipes = Vec::new();
    for cells in sweep.cells.chunk_by(|a, b| a.recipe == b.recipe) {
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
        let (title, device) = (&sweep.title, &lowbit.device);
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
