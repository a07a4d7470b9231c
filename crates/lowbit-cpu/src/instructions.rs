//! The choice of instructions for all kernels.
//!
//! Most kernels are plain loops over arrays of fixed length. They are compiled for the baseline and for AVX2, and the compiler makes
//! vector instructions of them. Where it does not, kernels name the instructions. Which one runs is decided when it is called.
//!
//! The variable `LOWBIT_WITHOUT` of the environment leaves instruction sets out, as if the processor did not have them
//! ([`left_out`]): to test and to time what other processors run.

use std::sync::LazyLock;

/// The name of the variable of the environment that leaves instruction sets out: names of sets, separated by commas.
pub const WITHOUT: &str = "LOWBIT_WITHOUT";

/// Instruction sets that can be left out, each with those that are left out with it.
pub const SWITCHES: [(&str, &[&str]); 7] = [
    ("amx", &["amx"]),
    ("avx512bf16", &["avx512bf16"]),
    ("avx512vnni", &["avx512vnni"]),
    ("avx512", &["avx512", "avx512vnni", "avx512bf16", "amx"]),
    ("avx2", &["avx2", "avx512", "avx512vnni", "avx512bf16", "amx"]),
    ("dotprod", &["dotprod"]),
    ("i8mm", &["i8mm"]),
];

/// The instruction sets that `names`, separated by commas, leave out.
///
/// # Errors
/// The name that is none that can be left out, in a sentence.
pub fn parse_left_out(names: &str) -> Result<Vec<&'static str>, String> {
    let mut left_out = Vec::new();
    for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let Some((_, sets)) = SWITCHES.iter().find(|(switch, _)| *switch == name) else {
            let known: Vec<&str> = SWITCHES.iter().map(|(switch, _)| *switch).collect();
            return Err(format!("{name:?} is no instruction set that can be left out: {}", known.join(", ")));
        };
        left_out.extend_from_slice(sets);
    }
    left_out.sort_unstable();
    left_out.dedup();
    Ok(left_out)
}

/// The instruction sets that [`WITHOUT`] leaves out, read once.
///
/// # Errors
/// As [`parse_left_out`].
pub fn left_out() -> Result<&'static [&'static str], &'static str> {
    static LEFT_OUT: LazyLock<Result<Vec<&str>, String>> = LazyLock::new(|| {
        let names = std::env::var_os(WITHOUT).unwrap_or_default();
        parse_left_out(&names.to_string_lossy()).map_err(|error| format!("{WITHOUT}: {error}"))
    });
    LEFT_OUT.as_deref().map_err(String::as_str)
}

/// Whether an instruction set may be used. With names in [`WITHOUT`] that are not known none may: programs refuse them when they
/// start.
pub(crate) fn is_allowed(set: &str) -> bool {
    left_out().is_ok_and(|sets| !sets.contains(&set))
}

/// Instructions that the processor has: a value is the proof, as only [`Baseline`] can be made without asking the processor.
pub trait Instructions: Copy {
    /// Whether AVX2 is among them.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "others have none"))]
    const AVX2: bool;
}

/// What every processor of the architecture has.
#[derive(Clone, Copy, Debug)]
pub struct Baseline;

impl Instructions for Baseline {
    const AVX2: bool = false;
}

/// Defines a set of instructions with its detection.
#[cfg(target_arch = "x86_64")]
macro_rules! instructions {
    ($(#[$attribute:meta])* $name:ident: $switch:literal, $($feature:tt),+) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name(());

        impl $name {
            /// The proof, if the processor has them and none is left out.
            #[inline]
            pub fn detect() -> Option<Self> {
                static ALLOWED: LazyLock<bool> = LazyLock::new(|| {
                    ($(std::is_x86_feature_detected!($feature))&&+) && is_allowed($switch)
                });
                ALLOWED.then_some(Self(()))
            }
        }

        impl Instructions for $name {
            const AVX2: bool = true;
        }
    };
}

#[cfg(target_arch = "x86_64")]
instructions! {
    /// AVX2 with fused multiplication and addition.
    Avx2: "avx2", "avx2", "fma"
}

#[cfg(target_arch = "x86_64")]
instructions! {
    /// AVX-512 and the above.
    Avx512: "avx512", "avx512f", "avx2", "fma"
}

#[cfg(target_arch = "x86_64")]
instructions! {
    /// AVX-512 for bytes.
    Avx512Bw: "avx512", "avx512bw", "avx512f"
}

#[cfg(target_arch = "x86_64")]
instructions! {
    /// Products of bytes summed up in 32 bits, and the above.
    Avx512Vnni: "avx512vnni", "avx512vnni", "avx512f", "avx2", "fma"
}

#[cfg(target_arch = "x86_64")]
instructions! {
    /// Products of pairs of numbers of bf16 summed up in single precision, and the above.
    Avx512Bf16: "avx512bf16", "avx512bf16", "avx512f", "avx2", "fma"
}

/// Instruction sets that this processor has, of those by which code is chosen when it runs: by these kernels, by burn's
/// backends and by the system's mathematical functions. Processors with the same ones compute the same bits. What is left out
/// ([`left_out`]) is not among them, though burn and the system may use it.
pub fn instruction_sets() -> Vec<&'static str> {
    macro_rules! detected {
        ($detected:ident: $($feature:tt)+) => {
            [$(($feature, std::arch::$detected!($feature))),+]
        };
    }
    #[cfg(target_arch = "x86_64")]
    let known = detected!(is_x86_feature_detected: "sse4.1" "sse4.2" "avx" "avx2" "fma" "f16c" "avx512f" "avx512bw"
        "avx512cd" "avx512dq" "avx512vl" "avx512vnni" "avx512bf16" "avx512fp16" "avxvnni");
    #[cfg(target_arch = "aarch64")]
    let known = detected!(is_aarch64_feature_detected: "neon" "fp16" "dotprod" "i8mm" "bf16" "sve" "sve2");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let known: [(&str, bool); 0] = [];
    // What comes with a set, and is chosen with it.
    let with_avx2 = ["fma", "avxvnni"];
    let is_left = |name: &str| {
        if with_avx2.contains(&name) && !is_allowed("avx2") {
            return false;
        }
        SWITCHES
            .iter()
            .all(|(set, _)| is_allowed(set) || !(name == *set || *set == "avx512" && name.starts_with(set)))
    };
    let found = known.into_iter().filter(|(name, is_there)| *is_there && is_left(name)).map(|(name, _)| name);
    #[cfg(target_arch = "x86_64")]
    let found = found.chain(crate::amx::Amx::detect().map(|_| "amx"));
    found.collect()
}

/// Defines a function that is compiled for each instruction set. It may have a type parameter, and a constant one.
macro_rules! multiversion {
    ($(#[$attribute:meta])* $vis:vis fn $name:ident $(<$generic:ident: $bound:path $(, const $constant:ident: usize)?>)?
        ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    ) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments, reason = "inner loops take their buffers one by one")]
        $vis fn $name $(<$generic: $bound $(, const $constant: usize)?>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$generic: $bound $(, const $constant: usize)?>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$generic: $bound $(, const $constant: usize)?>)? ($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                if $crate::instructions::Avx2::detect().is_some() {
                    // SAFETY: the processor has the instructions.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn instruction_sets_are_those_that_kernels_find() {
        let names = instruction_sets();
        let has = |wanted: &[&str]| wanted.iter().all(|name| names.contains(name));
        assert_eq!(Avx2::detect().is_some(), has(&["avx2", "fma"]));
        assert_eq!(Avx512::detect().is_some(), has(&["avx512f", "avx2", "fma"]));
        assert_eq!(Avx512Bf16::detect().is_some(), has(&["avx512bf16", "avx512f", "avx2", "fma"]));
        assert_eq!(Avx512Vnni::detect().is_some(), has(&["avx512vnni", "avx512f", "avx2", "fma"]));
    }

    #[test]
    fn what_is_left_out_is_left_out_with_what_needs_it() {
        assert_eq!(parse_left_out(""), Ok(vec![]));
        assert_eq!(parse_left_out("amx, avx512vnni"), Ok(vec!["amx", "avx512vnni"]));
        assert_eq!(parse_left_out("avx512,amx"), Ok(vec!["amx", "avx512", "avx512bf16", "avx512vnni"]));
        let error = parse_left_out("avx512,avx1024").unwrap_err();
        assert!(
            error.starts_with("\"avx1024\" is no instruction set that can be left out: amx, "),
            "{error}"
        );
    }

    /// `cargo xtask emulate` says which of these it emulates. Without them, kernels that need them would not be tested.
    #[cfg(target_arch = "aarch64")]
    #[test]
    fn the_emulated_processor_has_its_extensions() {
        let Ok(emulated) = std::env::var("LOWBIT_EMULATED") else { return };
        let found = instruction_sets();
        let found: Vec<&str> =
            ["neon", "dotprod", "i8mm"].into_iter().filter(|name| found.contains(name)).collect();
        assert_eq!(found, emulated.split(' ').collect::<Vec<_>>());
    }
}
