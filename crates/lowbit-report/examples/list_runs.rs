//! Lists the runs below a directory, those of the highest validation accuracy first; those without validation images last, as they are
//! not to be ranked by their test images.
//!
//! ```text
//! cargo run -p lowbit-report --example list_runs -- runs
//! ```

use std::path::Path;

use lowbit_report::{RunList, Summary};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).unwrap_or_else(|| "runs".into());
    let mut runs = RunList::read(Path::new(&dir))?.runs;
    let top1 = |run: &Summary| run.validation.map_or(-1.0, |scores| scores.top1);
    runs.sort_by(|one, other| top1(other).total_cmp(&top1(one)));
    for run in &runs {
        let shown = run.validation.map_or("-".into(), |scores| format!("{:.2}%", 100.0 * scores.top1));
        println!("{shown:>7}  {:9} {}", run.state.as_str(), run.name);
    }
    Ok(())
}
