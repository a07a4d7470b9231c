//! `cargo xtask reproduce`: trains every cell of a table, methods x bit widths x seeds, and reports it.
//!
//! A table is a sweep whose cells are fixed: what trains and reports them is lowbit-sweep, as for `lowbit sweep`.

mod stand_in;
mod table;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use lowbit_sweep::{Compare, ImagesOf, Lowbit, Options, Signals, Sweep, parse_duration};

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
    let default_out = || workspace::root().join("runs/reproduce").join(&args.table);
    let out = args.out.clone().unwrap_or_else(default_out);
    let program = match &args.program {
        Some(program) => program.clone(),
        None => build(&args.device)?,
    };
    let lowbit = Lowbit { program, device: args.device.clone(), data_dir: args.data_dir.clone() };
    let cells = table.cells(args.seeds.unwrap_or(table.seeds), &args.set, &out);
    let Table { title, dataset, images, published, .. } = table;
    let images = match images {
        Some(images) => ImagesOf::Given { dataset, images, stand_in: stand_in::imagenet },
        None => ImagesOf::Named(dataset),
    };
    let (name, compare) = (args.table.clone(), Compare::SameBits);
    let sweep = Sweep { title, name, cells, images, compare, published };
    let signals = Arc::new(Signals::default());
    let seen = signals.clone();
    ctrlc::set_handler(move || seen.count())?;
    let ReproduceArgs { budget, dry_run, parallel, json, .. } = *args;
    let options = Options { out, budget, dry_run, parallel, json, print };
    lowbit_sweep::run(&sweep, &lowbit, &options, &signals)?;
    Ok(())
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
