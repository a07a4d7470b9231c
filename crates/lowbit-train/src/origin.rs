//! What computed a number: the program, and the machine that it ran on.

use std::fmt;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::world::Ranks;

/// The burn that this is built with, which burn itself does not tell; a test compares it with the pin.
const BURN_VERSION: &str = "0.22.1";

/// The program and the machine that computed something. What is not known is absent or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Version of lowbit.
    pub lowbit: String,
    /// Git revision that the program was built from, with "-dirty" after it if its sources were changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Cargo features that the program was built with.
    #[serde(default)]
    pub features: Vec<String>,
    /// Cargo profile that the program was built with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Platform that the program was built for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Version of the compiler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rustc: Option<String>,
    /// Version of burn.
    pub burn: String,
    /// Name of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Operating system and its release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Model of the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<String>,
    /// Instruction sets of the processor by which the kernels, and what they call, choose their code.
    #[serde(default)]
    pub instruction_sets: Vec<String>,
    /// Threads of the CPU backends.
    pub n_threads: usize,
}

impl Origin {
    /// This machine and this library. What only the program knows is left to it: revision, features, profile, target,
    /// compiler and instruction sets.
    pub fn here() -> Self {
        Self {
            lowbit: env!("CARGO_PKG_VERSION").into(),
            burn: BURN_VERSION.into(),
            host: host(),
            system: Some(system()),
            processor: processor(),
            n_threads: n_threads(),
            ..Self::default()
        }
    }

    /// The build in a few words: "lowbit 0.1.0 (1a2b3c4d5e6f)".
    pub fn build(&self) -> String {
        let revision = self.revision.as_deref().unwrap_or("revision unknown");
        format!("lowbit {} ({revision})", self.lowbit)
    }

    /// In what this differs from `then` so that the bits of a result may differ, in words: the build, or the instruction
    /// sets of the processor. Host, model of the processor and threads change no bits.
    pub fn difference(&self, then: &Origin) -> Option<String> {
        let mut differences = Vec::new();
        if let Some((then, now)) = self.other_build(then) {
            differences.push(format!("other build: {then} then, {now} now"));
        }
        if self.instruction_sets != then.instruction_sets {
            let (then, now) = (then.instructions(), self.instructions());
            differences.push(format!("other kind of processor: {then} then, {now} now"));
        }
        (!differences.is_empty()).then(|| differences.join("; "))
    }

    /// The same where this was on `device` and the other on `then_device`: another device, or else what
    /// [`difference`](Self::difference) says. Whether a device of the same name is another one on another host is for whoever
    /// knows the devices.
    pub fn difference_on(&self, device: &str, then: &Origin, then_device: &str) -> Option<String> {
        if device != then_device {
            return Some(format!("other device: {then_device} then, {device} now"));
        }
        self.difference(then)
    }

    /// What the builds are called where they differ.
    fn other_build(&self, then: &Origin) -> Option<(String, String)> {
        if (&self.lowbit, &self.revision) != (&then.lowbit, &then.revision) {
            return Some((then.build(), self.build()));
        }
        let details = |origin: &Origin| {
            let known = |name: &str, value: &Option<String>| {
                format!("{name} {}", value.as_deref().unwrap_or("unknown"))
            };
            [
                format!("features {}", origin.features.join(",")),
                format!("burn {}", origin.burn),
                known("profile", &origin.profile),
                known("target", &origin.target),
                known("rustc", &origin.rustc),
            ]
        };
        details(then).into_iter().zip(details(self)).find(|(then, now)| then != now)
    }

    /// The instruction sets in a few words.
    pub fn instructions(&self) -> String {
        match self.instruction_sets.as_slice() {
            [] => "unknown".into(),
            names => names.join(" "),
        }
    }
}

/// The program and the machine, in lines.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
        let lines = [
            ("lowbit", self.lowbit.clone()),
            ("revision", or_unknown(&self.revision)),
            ("features", self.features.join(" ")),
            ("profile", or_unknown(&self.profile)),
            ("target", or_unknown(&self.target)),
            ("rustc", or_unknown(&self.rustc)),
            ("burn", self.burn.clone()),
            ("host", or_unknown(&self.host)),
            ("system", or_unknown(&self.system)),
            ("processor", or_unknown(&self.processor)),
            ("instructions", self.instructions()),
            ("threads", self.n_threads.to_string()),
        ];
        for (i, (name, value)) in lines.into_iter().enumerate() {
            let line_break = if i == 0 { "" } else { "\n" };
            write!(f, "{line_break}{name:<13}{value}")?;
        }
        Ok(())
    }
}

/// A process that trained in a run: a line of `processes.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunProcess {
    /// When it began, in UTC, as in "2026-11-26T13:14:43Z".
    pub started: String,
    /// Steps done when it began.
    pub step: u64,
    /// The device as it was asked for, as in "flex".
    pub device: String,
    /// The program and the machine; of several processes, those of the first.
    pub origin: Origin,
    /// The processes that trained together, if there were several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<Ranks>,
}

/// Threads that compute on the CPU backends, which rayon runs: as many as `RAYON_NUM_THREADS` says, or as there are cores.
pub(crate) fn n_threads() -> usize {
    let asked_for = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok());
    asked_for
        .filter(|&n| n > 0)
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// A line of a file of the system, or what an environment variable says.
fn line_or_variable(file: &str, variable: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok().or_else(|| std::env::var(variable).ok())?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.into())
}

fn host() -> Option<String> {
    // Windows sets the variable.
    line_or_variable("/proc/sys/kernel/hostname", "COMPUTERNAME")
}

fn system() -> String {
    let release = line_or_variable("/proc/sys/kernel/osrelease", "OS").unwrap_or_default();
    let name = std::env::consts::OS;
    format!("{name} {release} {}", std::env::consts::ARCH).replace("  ", " ")
}

fn processor() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map(|(_, model)| model.trim().to_string());
    model.or_else(|| std::env::var("PROCESSOR_IDENTIFIER").ok())
}

/// The present time in UTC, as in "2026-11-26T13:14:43Z" (RFC 3339).
pub fn utc_now() -> String {
    // A clock before 1970 is not worth an error.
    humantime::format_rfc3339_seconds(SystemTime::now().max(UNIX_EPOCH)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn avx2() -> Origin {
        Origin {
            lowbit: "0.1.0".into(),
            revision: Some("aaa".into()),
            features: vec!["flex".into()],
            instruction_sets: vec!["avx2".into(), "fma".into()],
            host: Some("a".into()),
            n_threads: 2,
            ..Origin::default()
        }
    }

    #[test]
    fn only_what_may_change_bits_is_a_difference() {
        let then = avx2();
        let check = |now: Origin, expected: Option<&str>| {
            assert_eq!(now.difference(&then).as_deref(), expected);
        };
        check(avx2(), None);
        let elsewhere = Origin {
            host: Some("b".into()),
            processor: Some("another".into()),
            system: Some("linux 6".into()),
            n_threads: 64,
            ..avx2()
        };
        check(elsewhere.clone(), None);
        let on = |device, then_device| elsewhere.difference_on(device, &then, then_device);
        assert_eq!(on("flex", "flex"), None);
        assert_eq!(on("ndarray", "flex").unwrap(), "other device: flex then, ndarray now");
        let rebuilt = Origin { revision: Some("bbb-dirty".into()), ..avx2() };
        check(rebuilt, Some("other build: lowbit 0.1.0 (aaa) then, lowbit 0.1.0 (bbb-dirty) now"));
        check(
            Origin { revision: None, ..avx2() },
            Some("other build: lowbit 0.1.0 (aaa) then, lowbit 0.1.0 (revision unknown) now"),
        );
        let features = Origin { features: vec!["flex".into(), "wgpu".into()], ..avx2() };
        check(features, Some("other build: features flex then, features flex,wgpu now"));
        let rustc = Origin { rustc: Some("1.95.0".into()), ..avx2() };
        check(rustc, Some("other build: rustc unknown then, rustc 1.95.0 now"));
        let wider = vec!["avx2".into(), "fma".into(), "avx512f".into()];
        check(
            Origin { instruction_sets: wider, ..avx2() },
            Some("other kind of processor: avx2 fma then, avx2 fma avx512f now"),
        );
    }
}
