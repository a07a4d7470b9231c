//! Who made a measurement: the sources that were built for it, and the machine.

use std::fs;
use std::process::Command;

use serde::Serialize;

use crate::workspace;

/// The programs that are timed are built when they are, so that the sources are those of the workspace now.
#[derive(Clone, Debug, Serialize)]
pub struct Origin {
    lowbit: &'static str,
    /// With "-dirty" after it if sources were changed since. Absent without git.
    revision: Option<String>,
    rustc: Option<String>,
    host: Option<String>,
    /// Operating system and release.
    system: String,
    /// By the names of the system.
    instruction_sets: Vec<String>,
    /// In UTC.
    started: Option<String>,
}

impl Origin {
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_string());
        let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            lowbit: env!("CARGO_PKG_VERSION"),
            revision: revision(),
            rustc: said_by("rustc", &["--version"]),
            host: read("/proc/sys/kernel/hostname").or_else(|| said_by("hostname", &[])),
            system: format!("{} {release} {}", std::env::consts::OS, std::env::consts::ARCH),
            instruction_sets: instruction_sets(&read("/proc/cpuinfo").unwrap_or_default()),
            started: said_by("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
        }
    }
}

fn revision() -> Option<String> {
    let root = workspace::root().to_string_lossy();
    let git = |args: &[&str]| said_by("git", &[&["-C", &root], args].concat());
    let revision = git(&["rev-parse", "--short=12", "HEAD"])?;
    let status = git(&["status", "--porcelain", "--", "crates", "tests", "Cargo.toml", "Cargo.lock"])?;
    Some(if status.is_empty() { revision } else { format!("{revision}-dirty") })
}

/// What a program says on stdout, if it succeeds.
fn said_by(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().into())
}

/// The vector instructions among the flags of a processor.
fn instruction_sets(info: &str) -> Vec<String> {
    let flags = info.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let flags = flags.and_then(|line| line.split_once(':')).map_or("", |(_, flags)| flags);
    let is_vector = |flag: &&str| {
        ["sse4", "avx", "fma", "f16c", "asimd", "sve", "i8mm", "bf16"]
            .iter()
            .any(|name| flag.starts_with(name))
    };
    flags.split_whitespace().filter(is_vector).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_instructions_are_found_among_the_flags() {
        let check = |info: &str, expected: &[&str]| assert_eq!(instruction_sets(info), expected);
        check(
            "processor\t: 0\nflags\t\t: fpu sse4_2 avx2 fma erms avx512f\n",
            &["sse4_2", "avx2", "fma", "avx512f"],
        );
        check("Features\t: fp asimd aes asimddp\n", &["asimd", "asimddp"]);
        check("", &[]);
    }
}
