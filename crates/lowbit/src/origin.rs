//! What this program is built from, and the machine it runs on.

use lowbit_cpu::instruction_sets;
use lowbit_train::Origin;

use crate::device::DeviceName;

/// This program on this machine.
pub fn here() -> Origin {
    let known = |text: &str| (!text.is_empty()).then(|| text.to_string());
    Origin {
        revision: known(env!("LOWBIT_REVISION")),
        features: DeviceName::compiled_in().map(String::from).collect(),
        profile: known(env!("LOWBIT_PROFILE")),
        target: known(env!("LOWBIT_TARGET")),
        rustc: known(env!("LOWBIT_RUSTC")),
        instruction_sets: instruction_sets().into_iter().map(String::from).collect(),
        ..Origin::here()
    }
}
