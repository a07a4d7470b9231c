//! Completions that a shell asks for while a command is typed, by the script of `lowbit completions SHELL --dynamic`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::Shell;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};
use lowbit_train::RunDir;
use lowbit_train::recipe::embedded;

use crate::cli::Cli;

/// The variable by which a script asks.
const VARIABLE: &str = "LOWBIT_COMPLETE";

/// Answers a script and ends the process, if one asks.
pub fn answer() {
    CompleteEnv::with_factory(Cli::command).var(VARIABLE).complete();
}

/// The script for a shell that asks this program.
pub fn script(shell: Shell, out: &mut impl Write) -> std::io::Result<()> {
    let name = shell.to_string();
    let completer = Shells::builtins();
    let completer = completer.completer(&name).expect("invariant: each shell can ask");
    completer.write_registration(VARIABLE, "lowbit", "lowbit", "lowbit", out)
}

/// Run directories that begin as `typed`, and directories to look for them in; those of `runs` also by their names alone.
pub fn runs(typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let mut found: Vec<OsString> = directories(typed)
        .into_iter()
        .map(|path| if is_run(&path) { path.into_os_string() } else { path.join("").into_os_string() })
        .collect();
    if !typed.contains('/') {
        let in_runs = directories(&format!("runs/{typed}")).into_iter().filter(|path| is_run(path));
        found.extend(in_runs.map(PathBuf::into_os_string));
    }
    found.into_iter().map(CompletionCandidate::new).collect()
}

/// Recipes by name, files of recipes, and directories to look for them in.
pub fn recipes(typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(text) = typed.to_str() else { return Vec::new() };
    let names = embedded().iter().map(|recipe| recipe.name.to_string()).filter(|name| name.starts_with(text));
    let folders = directories(text).into_iter().map(|path| path.join("").into_os_string());
    let named = names.map(OsString::from).chain(folders).map(CompletionCandidate::new);
    named.chain(files(text, "toml")).collect()
}

/// What is inspected: runs or recipes.
pub fn runs_and_recipes(typed: &OsStr) -> Vec<CompletionCandidate> {
    let mut found = runs(typed);
    // Directories are among the runs.
    found.extend(
        recipes(typed)
            .into_iter()
            .filter(|candidate| !candidate.get_value().to_string_lossy().ends_with('/')),
    );
    found
}

/// What is evaluated: runs or packed models.
pub fn runs_and_models(typed: &OsStr) -> Vec<CompletionCandidate> {
    let models = typed.to_str().map(|typed| files(typed, "lowbit")).into_iter().flatten();
    runs(typed).into_iter().chain(models).collect()
}

/// Files with this ending.
fn files(typed: &str, ending: &str) -> Vec<CompletionCandidate> {
    let files = entries(typed).into_iter().filter(|path| path.is_file());
    files
        .filter(|path| path.extension().is_some_and(|of| of == ending))
        .map(CompletionCandidate::new)
        .collect()
}

fn is_run(path: &Path) -> bool {
    RunDir::open(path).is_ok()
}

fn directories(typed: &str) -> Vec<PathBuf> {
    entries(typed).into_iter().filter(|path| path.is_dir()).collect()
}

/// What is there whose path begins as `typed`, in order; hidden only if a dot is typed.
fn entries(typed: &str) -> Vec<PathBuf> {
    let (folder, start) =
        typed.rsplit_once('/').map_or(("", typed), |(folder, start)| (&typed[..folder.len() + 1], start));
    let read = fs::read_dir(if folder.is_empty() { "." } else { folder }).into_iter().flatten().flatten();
    let names = read.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| name.starts_with(start) && (start.starts_with('.') || !name.starts_with('.')))
        .collect();
    names.sort();
    names.into_iter().map(|name| Path::new(&format!("{folder}{name}")).into()).collect()
}
