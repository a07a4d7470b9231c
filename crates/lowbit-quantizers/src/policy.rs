//! Which layer gets which precision.

use globset::Glob;
use lowbit_core::{BitWidth, Granularity, LayerRole, Precision};
use serde::{Deserialize, Serialize};

use crate::{LayerQuantization, Method};

/// What a policy changes for some layers; what is absent stays as for the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerOverride {
    /// Quantization method of both operands, for those without one of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Method of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_method: Option<Method>,
    /// Method of the input activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act_method: Option<Method>,
    /// Precision of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_bits: Option<Precision>,
    /// Precision of the input activations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act_bits: Option<Precision>,
    /// Granularity of the weight scales.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_granularity: Option<Granularity>,
}

impl LayerOverride {
    /// Full precision for weights and input: the default of first and last layers, as in Zhuang et al. 2021.
    pub const FULL_PRECISION: Self = Self {
        method: None,
        weight_method: None,
        act_method: None,
        weight_bits: Some(Precision::FullPrecision),
        act_bits: Some(Precision::FullPrecision),
        weight_granularity: None,
    };

    /// `base` with these changes. A granularity stays where the weights are in full precision: a later change may quantize them. With another
    /// method comes its granularity, unless that of `base` was asked for: it is not the one of the method there.
    pub fn apply(&self, base: LayerQuantization) -> LayerQuantization {
        let weight_method = self.weight_method.or(self.method).unwrap_or(base.weight_method);
        let is_default = base.weight_granularity == base.weight_method.granularity();
        let inherited = if is_default { weight_method.granularity() } else { base.weight_granularity };
        LayerQuantization {
            weight_method,
            act_method: self.act_method.or(self.method).unwrap_or(base.act_method),
            weight_bits: self.weight_bits.unwrap_or(base.weight_bits),
            act_bits: self.act_bits.unwrap_or(base.act_bits),
            weight_granularity: self.weight_granularity.unwrap_or(inherited),
            standardizes_weights: base.standardizes_weights,
        }
    }
}

/// The precision of every layer of a network: one for all, changed by role, then by path pattern.
///
/// Later patterns win over earlier ones, and any pattern over a role. In a pattern `*` matches within one part of the
/// path and `**` across parts, parts being separated by dots: `stages.2.**`, `stages.*.0.conv1`.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizationPolicy {
    /// For layers without a role of their own.
    pub base: LayerQuantization,
    /// For the first convolution.
    pub first: LayerOverride,
    /// For the classifier.
    pub last: LayerOverride,
    /// For the shortcut convolutions.
    pub shortcut: LayerOverride,
    /// By pattern, in order.
    pub patterns: Vec<(Glob, LayerOverride)>,
    /// What no layer goes below, whatever the rest of the policy asks for.
    pub floor: PrecisionFloor,
}

/// The lowest precision that layers may have for now: a rung on the way down to the precision of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrecisionFloor {
    /// Of the weights.
    pub weight_bits: Precision,
    /// Of the input activations.
    pub act_bits: Precision,
}

impl PrecisionFloor {
    /// Nothing is held back.
    pub const NONE: Self =
        Self { weight_bits: Precision::Bits(BitWidth::ALL[0]), act_bits: Precision::Bits(BitWidth::ALL[0]) };
}

impl QuantizationPolicy {
    /// `base` for every layer but the first and the last, which stay in full precision (Zhuang et al. 2021).
    pub fn new(base: LayerQuantization) -> Self {
        Self {
            base,
            first: LayerOverride::FULL_PRECISION,
            last: LayerOverride::FULL_PRECISION,
            shortcut: LayerOverride::default(),
            patterns: Vec::new(),
            floor: PrecisionFloor::NONE,
        }
    }

    /// The same policy with nothing below `floor`.
    pub fn with_floor(&self, floor: PrecisionFloor) -> Self {
        Self { floor, ..self.clone() }
    }

    /// Nothing quantized.
    pub fn full_precision() -> Self {
        Self::new(LayerQuantization::FULL_PRECISION)
    }

    /// The quantization of the layer at `path`.
    pub fn resolve(&self, path: &str, role: LayerRole) -> LayerQuantization {
        let by_role = match role {
            LayerRole::First => self.first.apply(self.base),
            LayerRole::Last => self.last.apply(self.base),
            LayerRole::Shortcut => self.shortcut.apply(self.base),
            LayerRole::Hidden => self.base,
        };
        let mut result = self
            .patterns
            .iter()
            .filter(|(pattern, _)| pattern_matches(pattern, path))
            .fold(by_role, |quantization, (_, change)| change.apply(quantization));
        result.weight_bits = result.weight_bits.max(self.floor.weight_bits);
        result.act_bits = result.act_bits.max(self.floor.act_bits);
        // A granularity is meant for quantized weights: a layer that ends up in full precision has none to check.
        if result.weight_bits == Precision::FullPrecision {
            result.weight_granularity = Granularity::PerTensor;
        }
        result
    }

    /// The patterns that match none of `paths`.
    pub fn unmatched_patterns<'a>(&'a self, paths: &[String]) -> Vec<&'a str> {
        self.patterns
            .iter()
            .filter(|(pattern, _)| !paths.iter().any(|path| pattern_matches(pattern, path)))
            .map(|(pattern, _)| pattern.glob())
            .collect()
    }
}

/// Whether a pattern of a policy matches the path of a layer.
pub fn pattern_matches(pattern: &Glob, path: &str) -> bool {
    // globset separates parts by slashes, layer paths by dots.
    globset::GlobBuilder::new(&pattern.glob().replace('.', "/"))
        .literal_separator(true)
        .build()
        .is_ok_and(|glob| glob.compile_matcher().is_match(path.replace('.', "/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(bits: u32) -> Precision {
        Precision::bits(bits).unwrap()
    }

    #[test]
    fn roles_then_patterns_in_order() {
        let mut policy = QuantizationPolicy::new(LayerQuantization::new(Method::DoReFa, bits(2), bits(2)));
        let weights = |n| LayerOverride { weight_bits: Some(bits(n)), ..LayerOverride::default() };
        policy.shortcut = weights(8);
        policy.patterns = vec![
            (Glob::new("stages.1.**").unwrap(), weights(4)),
            (Glob::new("stages.*.0.conv1").unwrap(), weights(3)),
        ];
        let resolved = |path, role| policy.resolve(path, role).weight_bits;
        assert_eq!(resolved("stem", LayerRole::First), Precision::FullPrecision);
        assert_eq!(resolved("stages.0.1.conv1", LayerRole::Hidden), bits(2));
        assert_eq!(resolved("stages.0.0.conv1", LayerRole::Hidden), bits(3));
        assert_eq!(resolved("stages.0.0.shortcut", LayerRole::Shortcut), bits(8));
        assert_eq!(resolved("stages.1.0.shortcut", LayerRole::Shortcut), bits(4));
        assert_eq!(resolved("stages.1.0.conv1", LayerRole::Hidden), bits(3));
        assert_eq!(resolved("stages.1.0.conv2", LayerRole::Hidden), bits(4));
        let raised =
            policy.with_floor(PrecisionFloor { weight_bits: bits(4), act_bits: Precision::FullPrecision });
        let resolved = |path, role| raised.resolve(path, role);
        assert_eq!(resolved("stages.0.0.conv1", LayerRole::Hidden).weight_bits, bits(4));
        assert_eq!(resolved("stages.0.0.shortcut", LayerRole::Shortcut).weight_bits, bits(8));
        assert_eq!(resolved("stages.0.0.shortcut", LayerRole::Shortcut).act_bits, Precision::FullPrecision);
        let paths = ["stem".to_string(), "stages.0.0.conv1".to_string()];
        assert_eq!(policy.unmatched_patterns(&paths), ["stages.1.**"]);
    }

    /// What is asked for at any level lasts through full precision on the way.
    #[test]
    fn granularity_survives_full_precision_in_between() {
        let quantization = LayerQuantization {
            weight_granularity: Granularity::PerChannel,
            ..LayerQuantization::new(Method::Lsq, bits(2), bits(2))
        };
        let mut policy = QuantizationPolicy::new(quantization);
        let change = |glob: &str, weight_bits| {
            let change = LayerOverride { weight_bits: Some(weight_bits), ..LayerOverride::default() };
            (Glob::new(glob).unwrap(), change)
        };
        let resolved = |policy: &QuantizationPolicy, path: &str, role| {
            let LayerQuantization { weight_bits, weight_granularity, .. } = policy.resolve(path, role);
            (weight_bits, weight_granularity)
        };
        // A role in full precision, then a pattern; a pattern in full precision, then another.
        policy.patterns = vec![
            change("stem", bits(8)),
            change("stages.**", Precision::FullPrecision),
            change("stages.1.**", bits(4)),
        ];
        assert_eq!(resolved(&policy, "stem", LayerRole::First), (bits(8), Granularity::PerChannel));
        assert_eq!(
            resolved(&policy, "stages.1.0.conv1", LayerRole::Hidden),
            (bits(4), Granularity::PerChannel)
        );
        // Full precision in the end has no granularity.
        let full = (Precision::FullPrecision, Granularity::PerTensor);
        assert_eq!(resolved(&policy, "stages.0.0.conv1", LayerRole::Hidden), full);
        assert_eq!(resolved(&policy, "fc", LayerRole::Last), full);
        // A rung in full precision forgets nothing either.
        let floor = |weight_bits| PrecisionFloor { weight_bits, act_bits: bits(8) };
        let raised = policy.with_floor(floor(Precision::FullPrecision));
        assert_eq!(resolved(&raised, "stem", LayerRole::First), full);
        let lower = raised.with_floor(floor(bits(3)));
        assert_eq!(resolved(&lower, "stem", LayerRole::First), (bits(8), Granularity::PerChannel));
        // A base in full precision neither.
        policy.base.weight_bits = Precision::FullPrecision;
        assert_eq!(resolved(&policy, "stem", LayerRole::First), (bits(8), Granularity::PerChannel));
    }
}
