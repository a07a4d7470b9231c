//! `cargo xtask reproduce`: trains every cell of a table, methods x bit widths x seeds, and reports it.
//!
//! A table is a sweep whose cells are fixed: what trains and reports them is lowbit-sweep, as for `lowbit sweep`.

mod docs;
mod stand_in;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use lowbit_sweep::{Cell, ImagesOf, Lowbit, Options, Report, Signals, Sweep, parse_duration};

use crate::output::print;
use crate::workspace;
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

    /// Train one cell alone, as ROW-seedN, and compare its end with the one in docs/reproduction
    #[arg(long, value_name = "CELL", conflicts_with_all = ["docs", "dry_run", "set"])]
    cell: Option<String>,

    /// Write the table and its figures into docs/reproduction.md
    #[arg(long, conflicts_with_all = ["dry_run", "set"])]
    docs: bool,

    /// End with the table, or what --dry-run shows, as one JSON object on stdout
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ReproduceArgs) -> anyhow::Result<()> {
    let table = Table::named(&args.table)?;
    if args.set.iter().any(|change| change.trim_start().starts_with("seed")) {
        bail!("--set seed=... would give all cells the same seed: choose how many with --seeds");
    }
    if table.pretrained && args.parallel > 1 {
        bail!(
            "the cells of this table begin with the full-precision one: they are trained one after the other, without --parallel"
        );
    }
    let default_out = || {
        let of_cell = args.cell.iter().map(|cell| format!("-{cell}"));
        let name = std::iter::once(args.table.clone()).chain(of_cell).collect::<String>();
        workspace::root().join("runs/reproduce").join(name)
    };
    let out = args.out.clone().unwrap_or_else(default_out);
    let program = match &args.program {
        Some(program) => program.clone(),
        None => build(&args.device)?,
    };
    let lowbit = Lowbit { program, device: args.device.clone(), data_dir: args.data_dir.clone() };
    let mut cells = table.cells(args.seeds.unwrap_or(table.seeds), &args.set, &out);
    let only = match &args.cell {
        None => None,
        Some(_) if table.pretrained => {
            bail!("the cells of this table begin with others: none can be trained alone")
        }
        Some(name) => {
            let is_it = |cell: &&Cell| format!("{}-seed{}", cell.recipe, cell.seed) == *name;
            let known = || format!("no cell {name}: a cell is called {}-seed0, for example", cells[0].recipe);
            Some(cells.iter().find(is_it).with_context(known)?.clone())
        }
    };
    if let Some(cell) = &only {
        cells = vec![cell.clone()];
    }
    let compare = table.compare();
    let Table { title, dataset, images, published, .. } = table;
    let images = match images {
        Some(images) => ImagesOf::Given { dataset, images, stand_in: stand_in::imagenet },
        None => ImagesOf::Named(dataset),
    };
    let name = args.table.clone();
    let sweep = Sweep { title, name, cells, images, compare, published };
    let signals = Arc::new(Signals::default());
    let seen = signals.clone();
    ctrlc::set_handler(move || seen.count())?;
    let ReproduceArgs { budget, dry_run, parallel, json, .. } = *args;
    let options = Options { out, budget, dry_run, parallel, json, print };
    let ended = lowbit_sweep::run(&sweep, &lowbit, &options, &signals);
    let docs = workspace::root().join("docs");
    // A table that lacks cells, or has some that failed, says so itself.
    if args.docs {
        docs::write(&args.table, &options.out, &docs)?;
    }
    let is_whole = ended?;
    match only {
        Some(cell) if is_whole => compare_digests(&cell, &options.out, &docs::json(&args.table, &docs)),
        _ => Ok(()),
    }
}

/// Whether a cell ended with the same bits as in the published table.
fn compare_digests(cell: &Cell, out: &Path, published: &Path) -> anyhow::Result<()> {
    let read = |path: &Path| -> anyhow::Result<String> {
        let report = Report::read(path)?;
        let digest = report.state_sha256(cell.bits, &cell.method, cell.seed);
        Ok(digest.with_context(|| format!("{} has no end of {}", path.display(), cell.name()))?.to_string())
    };
    let (here, there) = (read(&out.join("table.json"))?, read(published)?);
    if here != there {
        bail!(
            "{}: state {here}, published is {there}: another build or kind of processor adds in another order",
            cell.name()
        );
    }
    print(&format!("{}: state {here}, as published", cell.name()))
}

/// Builds `lowbit`: with the CPU backends, as for all other commands, or with the one that `device` needs.
fn build(device: &str) -> anyhow::Result<PathBuf> {
    let mut arguments = vec!["-p", "lowbit"];
    let backend = device.split(':').next().unwrap_or(device);
    if !["flex", "ndarray"].contains(&backend) {
        arguments.extend(["--no-default-features", "--features", backend]);
    }
    workspace::build("lowbit", &arguments)
}
