//! Who made a cell.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The program that trained a cell and the machine that it ran on, as `lowbit --version --json` and a run say it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Origin {
    #[serde(flatten)]
    pub identity: Identity,
    pub host: Option<String>,
    pub system: Option<String>,
    pub processor: Option<String>,
    pub n_threads: Option<u64>,
}

/// What of it decides the bits of a result: cells with different ones are not mixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    pub lowbit: String,
    pub revision: Option<String>,
    pub features: Vec<String>,
    pub profile: Option<String>,
    pub target: Option<String>,
    pub rustc: Option<String>,
    pub burn: String,
    pub instruction_sets: Vec<String>,
}

impl Identity {
    /// Whether it tells what the program was made of: other changes since the revision would have the same name.
    pub fn names_sources(&self) -> bool {
        self.revision.as_ref().is_some_and(|revision| !revision.ends_with("-dirty"))
    }
}

/// "lowbit 0.1.0 (1a2b3c4d5e6f; flex, ndarray; release; rustc 1.95.0; burn 0.22.1), instructions avx2 fma"
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lowbit, revision, features, profile, rustc, burn, instruction_sets, target: _ } = self;
        let or_unknown = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
        write!(
            f,
            "lowbit {lowbit} (revision {}; {}; {}; rustc {}; burn {burn}), instructions {}",
            or_unknown(revision),
            features.join(", "),
            or_unknown(profile),
            or_unknown(rustc),
            instruction_sets.join(" "),
        )
    }
}

impl Origin {
    /// Where it ran.
    pub fn machine(&self) -> Machine {
        let Self { host, system, processor, n_threads, .. } = self.clone();
        Machine { host, processor, system, n_threads }
    }
}

/// A machine that trained cells.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    pub processor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    pub n_threads: Option<u64>,
}

/// "host (processor, system, 2 threads)", as far as it is known.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = |n: u64| format!("{n} {}", if n == 1 { "thread" } else { "threads" });
        let parts = [self.processor.clone(), self.system.clone(), self.n_threads.map(threads)];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        match &self.host {
            Some(host) => write!(f, "{host} ({})", parts.join(", ")),
            None => f.write_str(&parts.join(", ")),
        }
    }
}
