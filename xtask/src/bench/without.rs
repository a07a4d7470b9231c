//! Instruction sets that are left out on both sides, to time what other processors run.

use std::process::Command;

use clap::{Args, ValueEnum};

/// The variable of the environment by which our kernels are told.
const OURS: &str = "LOWBIT_WITHOUT";

/// The instruction sets of `--without`.
#[derive(Args, Clone, Debug)]
pub struct Without {
    /// Instruction sets to do without: ours, and those of a peer that can be told
    #[arg(long = "without", value_enum, value_delimiter = ',', value_name = "SETS")]
    sets: Vec<Set>,
}

/// An instruction set, in the order in which later ones need earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[value(rename_all = "lower")]
enum Set {
    Avx2,
    Avx512,
    Avx512Vnni,
    Avx512Bf16,
    Amx,
}

impl Set {
    fn name(self) -> String {
        self.to_possible_value().expect("invariant: none is hidden").get_name().into()
    }

    /// The most that oneDNN may use without it.
    fn most_of_onednn(self) -> &'static str {
        match self {
            Self::Avx2 => "SSE41",
            Self::Avx512 => "AVX2_VNNI_2",
            Self::Avx512Vnni => "AVX512_CORE",
            Self::Avx512Bf16 => "AVX512_CORE_VNNI",
            Self::Amx => "AVX512_CORE_FP16",
        }
    }

    /// The most that MKL may use without it, which multiplies matrices for the linear layer; `None` if it need not be told.
    fn most_of_mkl(self) -> Option<&'static str> {
        match self {
            Self::Avx2 => Some("SSE4_2"),
            Self::Avx512 => Some("AVX2"),
            Self::Avx512Vnni | Self::Avx512Bf16 | Self::Amx => None,
        }
    }

    /// The most that PyTorch's own loops may use without it; `None` if they never do.
    fn most_of_loops(self) -> Option<&'static str> {
        match self {
            Self::Avx2 => Some("default"),
            Self::Avx512 => Some("avx2"),
            Self::Avx512Vnni | Self::Avx512Bf16 | Self::Amx => None,
        }
    }
}

impl Without {
    /// The names.
    pub fn names(&self) -> Vec<String> {
        self.sets.iter().map(|set| set.name()).collect()
    }

    /// Tells a program of ours, or one that computes by PyTorch.
    pub fn tell(&self, command: &mut Command) {
        let Some(lowest) = self.sets.iter().min() else { return };
        // A peer has a ladder of sets: what is above the lowest one is left out on our side too.
        let sets = Set::value_variants().iter().filter(|set| *set >= lowest);
        command.env(OURS, sets.map(|set| set.name()).collect::<Vec<_>>().join(","));
        command.env("ONEDNN_MAX_CPU_ISA", lowest.most_of_onednn());
        if let Some(most) = lowest.most_of_mkl() {
            command.env("MKL_ENABLE_INSTRUCTIONS", most);
        }
        if let Some(most) = lowest.most_of_loops() {
            command.env("ATEN_CPU_CAPABILITY", most);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn told(sets: &[Set]) -> BTreeMap<String, String> {
        let mut command = Command::new("true");
        Without { sets: sets.into() }.tell(&mut command);
        let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
        command.get_envs().filter_map(|(name, value)| Some((text(name), text(value?)))).collect()
    }

    #[test]
    fn both_sides_are_told() {
        assert!(told(&[]).is_empty());
        let of = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
        };
        assert_eq!(told(&[Set::Amx]), of(&[(OURS, "amx"), ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")]));
        let expected = [
            (OURS, "avx512,avx512vnni,avx512bf16,amx"),
            ("ONEDNN_MAX_CPU_ISA", "AVX2_VNNI_2"),
            ("MKL_ENABLE_INSTRUCTIONS", "AVX2"),
            ("ATEN_CPU_CAPABILITY", "avx2"),
        ];
        assert_eq!(told(&[Set::Amx, Set::Avx512]), of(&expected));
        assert_eq!(told(&[Set::Avx512Vnni])[OURS], "avx512vnni,avx512bf16,amx");
    }
}
