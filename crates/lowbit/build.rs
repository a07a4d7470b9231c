//! Tells the program what it is built from: `LOWBIT_REVISION`, `LOWBIT_TARGET`, `LOWBIT_PROFILE`, `LOWBIT_RUSTC`.
//!
//! It runs again when the revision or a source of the program changes, after which the program is linked anew anyway. So
//! the revision is never an old one, and "-dirty" says exactly whether what the program is made of was changed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the program is made of, from the root of the workspace; `crates` has its sources, recipes and data.
const SOURCES: [&str; 3] = ["Cargo.toml", "Cargo.lock", "crates"];

/// What of `crates` goes into no program.
const OTHERS: [&str; 4] = ["tests", "examples", "benches", "README.md"];

fn main() {
    let root = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../..");
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_MPI").is_some() {
        expect_mpi();
    }
    println!("cargo::rustc-env=LOWBIT_REVISION={}", revision(&root).unwrap_or_default());
    println!("cargo::rustc-env=LOWBIT_TARGET={}", variable("TARGET"));
    println!("cargo::rustc-env=LOWBIT_PROFILE={}", variable("PROFILE"));
    let rustc = output(Command::new(variable("RUSTC")).arg("--version")).unwrap_or_default();
    println!("cargo::rustc-env=LOWBIT_RUSTC={}", rustc.trim_start_matches("rustc "));
}

/// Says in a line what is missing where there is no MPI library: mpi-sys, which looks for it as this does, says it in many.
fn expect_mpi() {
    println!("cargo::rerun-if-env-changed=MPICC");
    println!("cargo::rerun-if-env-changed=PATH");
    let compiler = env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
    let known = |name: &str| output(Command::new("pkg-config").args(["--exists", name])).is_some();
    if output(Command::new(compiler).arg("-show")).is_none() && !known("mpich") && !known("ompi") {
        println!(
            "cargo::error=the feature mpi needs an MPI library with its headers, and libclang: on Debian, apt-get install openmpi-bin \
             libopenmpi-dev libclang-dev"
        );
    }
}

/// The commit that is checked out, with "-dirty" after it if sources of the program were changed since. `None` without git,
/// or if these are sources from elsewhere, such as an archive.
fn revision(root: &Path) -> Option<String> {
    let git =
        |args: &[&str]| output(Command::new("git").arg("--no-optional-locks").arg("-C").arg(root).args(args));
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != root.canonicalize().ok()? {
        // The repository of something that these sources lie in.
        return None;
    }
    watch(root, &git);
    let others = OTHERS.map(|name| format!(":(exclude)crates/*/{name}"));
    let mut status = vec!["status", "--porcelain", "--"];
    status.extend(SOURCES);
    status.extend(others.iter().map(String::as_str));
    let is_dirty = !git(&status)?.is_empty();
    let revision = git(&["rev-parse", "--short=12", "HEAD"])?;
    Some(if is_dirty { format!("{revision}-dirty") } else { revision })
}

/// Runs this again when another commit is checked out, or a source is changed.
fn watch(root: &Path, git: &impl Fn(&[&str]) -> Option<String>) {
    let git_path = |name: &str| git(&["rev-parse", "--git-path", name]).map(|path| root.join(path));
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    let branch = branch.and_then(|name| git_path(&name));
    // A branch that is packed has no file before its next commit; of these tells the log of what was checked out.
    let of_git = [git_path("HEAD"), git_path("logs/HEAD"), git_path("packed-refs"), branch];
    let mut paths: Vec<PathBuf> = of_git.into_iter().flatten().collect();
    paths.extend(["Cargo.toml", "Cargo.lock"].map(|name| root.join(name)));
    for package in root.join("crates").read_dir().into_iter().flatten().flatten() {
        let parts = package.path().read_dir().into_iter().flatten().flatten();
        paths.extend(
            parts.filter(|part| !OTHERS.iter().any(|name| part.file_name() == *name)).map(|part| part.path()),
        );
    }
    // Of a path that is not there, cargo thinks that it has changed.
    for path in paths.iter().filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

/// The first line of what a command says, if it succeeds. An empty text is none of its lines.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.lines().next().unwrap_or_default().trim().into())
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
