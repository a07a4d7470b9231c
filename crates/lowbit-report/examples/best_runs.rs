//! Lists the runs below a directory, those of the highest test accuracy first.
//!
//! ```text
//! cargo run -p lowbit-report --example best_runs -- runs
//! ```

use std::path::Path;

use lowbit_report::{RunList, Summary};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).unwrap_or_else(|| "runs".into());
    let mut runs = RunList::read(Path::new(&dir))?.runs;
    let top1 = |run: &Summary| run.test.map_or(0.0, |scores| scores.top1);
    runs.sort_by(|one, other| top1(other).total_cmp(&top1(one)));
    for run in &runs {
        println!("{:6.2}%  {:9} {}", 100.0 * top1(run), run.state.as_str(), run.name);
    }
    Ok(())
}
