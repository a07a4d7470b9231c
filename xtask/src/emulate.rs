//! `cargo xtask emulate`: the tests of what runs networks, on emulated processors of aarch64, with and without the extensions that
//! kernels are chosen by.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;

use crate::cargo;

/// What `cargo xtask emulate` is asked for.
#[derive(Args)]
pub struct EmulateArgs {
    /// Only on one processor [default: each in turn]
    #[arg(long, value_parser = CPUS.map(|(name, _)| name))]
    cpu: Option<String>,

    /// Passed to the tests: the beginning of a name, --test-threads
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// Processors of QEMU, and which extensions each must have: an older QEMU may know fewer.
const CPUS: [(&str, &str); 2] = [("max", "neon dotprod i8mm"), ("cortex-a53", "neon")];

/// What is built for.
pub const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Links, and compiles the memory allocator, which is in C.
const COMPILER: &str = "aarch64-linux-gnu-gcc";

const EMULATOR: &str = "qemu-aarch64";

/// Where Debian and Ubuntu put the system's libraries for aarch64.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";

/// The crates that run networks, all without burn.
const PACKAGES: [&str; 6] = ["-p", "lowbit-core", "-p", "lowbit-cpu", "-p", "lowbit-runtime"];

pub fn run(args: &EmulateArgs) -> anyhow::Result<()> {
    find_tools()?;
    let chosen = |name: &str| args.cpu.as_ref().is_none_or(|cpu| cpu == name);
    for (cpu, extensions) in CPUS.into_iter().filter(|(name, _)| chosen(name)) {
        let mut test = cargo(&["test", "--locked", "--lib", "--target", TARGET]);
        test.args(PACKAGES).arg("--").args(&args.arguments);
        test.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", COMPILER);
        let runner = format!("{EMULATOR} -cpu {cpu} -L {LIBRARIES}");
        test.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", runner);
        // A test of lowbit-cpu compares it with what the kernels find.
        test.env("LOWBIT_EMULATED", extensions);
        crate::run(&format!("tests on {cpu}"), test)?;
    }
    Ok(())
}

/// An error in one line that says how to install all that is missing.
fn find_tools() -> anyhow::Result<()> {
    let mut missing = Vec::new();
    if !crate::has(EMULATOR) {
        missing.push("apt-get install qemu-user");
    }
    if !crate::has(COMPILER) {
        missing.push("apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross");
    }
    if !has_library()? {
        missing.push("rustup target add aarch64-unknown-linux-gnu");
    }
    match missing.is_empty() {
        true => Ok(()),
        false => bail!("something is missing to emulate aarch64: {}", missing.join("; ")),
    }
}

/// Whether Rust's standard library is there for the target.
pub fn has_library() -> anyhow::Result<bool> {
    let mut rustc = Command::new("rustc");
    let output = rustc.args(["--print", "target-libdir", "--target", TARGET]).output();
    let output = output.context("failed to run rustc")?;
    Ok(Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}
