//! The arithmetic of a training.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How the products of convolutions are computed in a training step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// In single precision.
    #[default]
    Fp32,
    /// Operands that are not quantized are rounded to bf16 before; sums are in single precision.
    Bf16,
}

impl Compute {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Fp32, Self::Bf16];

    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        }
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is none of [`Compute`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected \"fp32\" or \"bf16\", got {got:?}")]
pub struct ComputeError {
    /// The name.
    pub got: String,
}

impl FromStr for Compute {
    type Err = ComputeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|compute| compute.name() == text);
        named.ok_or_else(|| ComputeError { got: text.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_have_one_name() {
        for compute in Compute::ALL {
            let json = serde_json::to_string(&compute).unwrap();
            assert_eq!(json, format!("\"{compute}\""));
            assert_eq!(serde_json::from_str::<Compute>(&json).unwrap(), compute);
            assert_eq!(compute.to_string().parse(), Ok(compute));
        }
        let error = "BF16".parse::<Compute>().unwrap_err();
        assert_eq!(error.to_string(), "expected \"fp32\" or \"bf16\", got \"BF16\"");
    }
}
