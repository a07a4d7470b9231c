//! `cargo xtask fuzz`: feeds every reader of files with inputs that libFuzzer makes.

use std::process::Stdio;

use anyhow::Context;
use clap::Args;

use crate::{cargo, workspace};

/// Targets that build without burn, and those that do not.
const TARGETS: [(&str, bool); 15] = [
    ("idx", false),
    ("cifar", false),
    ("archive", false),
    ("image", false),
    ("packed", false),
    ("recipe", true),
    ("manifest", true),
    ("sums", true),
    ("safetensors", true),
    ("pytorch", true),
    ("burnpack", true),
    ("run_json", true),
    ("plan", true),
    ("result", true),
    ("lines", true),
];

/// What `cargo xtask fuzz` is asked for.
#[derive(Args)]
pub struct FuzzArgs {
    /// Minutes for each target
    #[arg(long, default_value_t = 1)]
    minutes: u64,

    /// One target alone [default: all of them]
    target: Option<String>,
}

pub fn run(args: &FuzzArgs) -> anyhow::Result<()> {
    let targets: Vec<(&str, bool)> = match &args.target {
        None => TARGETS.into(),
        Some(name) => {
            let known = TARGETS.into_iter().find(|(target, _)| target == name);
            let names = TARGETS.map(|(target, _)| target).join(", ");
            vec![known.with_context(|| format!("no target {name:?}; there are {names}"))?]
        }
    };
    crate::find("cargo-fuzz", "cargo install --locked cargo-fuzz")?;
    let needs_burn = targets.iter().any(|(_, needs_burn)| *needs_burn);
    let features: &[&str] = if needs_burn { &["--features", "training"] } else { &[] };
    let folder = workspace::root().join("fuzz");
    // cargo-fuzz has no --locked: whether the lock file fits is checked here.
    let mut metadata = cargo(&["metadata", "--locked", "--format-version", "1"]);
    metadata.current_dir(&folder).stdout(Stdio::null());
    crate::run("lock file", metadata)?;
    // No sanitizer: what is fuzzed is safe code. The compiler's flags are of nightly, which libFuzzer needs.
    let fuzz = |target: &str| {
        let mut fuzz = cargo(&["fuzz", "run", "--sanitizer", "none"]);
        fuzz.args(features).args([target, "--"]);
        fuzz.env("RUSTC_BOOTSTRAP", "1").current_dir(&folder);
        fuzz
    };
    let mut seeds = fuzz("seeds");
    seeds.args(["-runs=1"]);
    crate::run("seeds", seeds)?;
    let seconds = format!("-max_total_time={}", 60 * args.minutes);
    for (target, _) in targets {
        let mut fuzz = fuzz(target);
        fuzz.args([&seconds, "-timeout=10", "-rss_limit_mb=2048", "-max_len=65536", "-print_final_stats=1"]);
        crate::run(target, fuzz)?;
    }
    Ok(())
}
