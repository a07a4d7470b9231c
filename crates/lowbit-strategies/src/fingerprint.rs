//! By what a strategy is known again when a run is resumed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::strategy::Strategy;

/// Name and settings of a strategy. Strategies with equal fingerprints train alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// [Name](Strategy::name) of the strategy.
    pub name: String,
    /// Its [settings](Strategy::settings).
    pub settings: Settings,
}

/// Settings of a strategy in canonical form: JSON, the keys of objects in alphabetical order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(Value);

impl Settings {
    /// Those of a strategy that has none.
    pub fn none() -> Self {
        Self(Value::Null)
    }

    /// Those that `settings` serializes to.
    ///
    /// They have to come out the same in every process: a `HashSet` does not, whose order is another each time, so that the run
    /// would be known by none; take a `BTreeSet`. (Maps may be of any kind: their keys are sorted.) A number that is not finite
    /// is `null` in JSON, so that `NaN` and the infinities are not told apart: write down what they stand for.
    ///
    /// # Panics
    /// If that is no JSON: a map has keys that are no texts, or a type refuses to be serialized.
    pub fn of(settings: &impl Serialize) -> Self {
        let value = serde_json::to_value(settings).unwrap_or_else(|error| panic!("settings: {error}"));
        Self(sorted(value))
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let map: BTreeMap<String, Value> =
                map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(map.into_iter().collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(sorted).collect()),
        other => other,
    }
}

impl Fingerprint {
    /// That of `strategy`.
    pub fn of(strategy: &dyn Strategy) -> Self {
        Self { name: strategy.name().into(), settings: strategy.settings() }
    }
}

/// How the strategies that a run goes on with differ from those that it was made with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StrategyDifference {
    /// One is missing.
    #[error("strategy {:?}, which it was made with, is missing", .0.name)]
    Missing(Fingerprint),
    /// One is new.
    #[error("it was made without strategy {:?}", .0.name)]
    New(Fingerprint),
    /// One has other settings.
    #[error("strategy {name:?} had the settings {expected}, now {given}")]
    Settings {
        /// Its name.
        name: String,
        /// Its settings in the run.
        expected: Settings,
        /// Those that it has now.
        given: Settings,
    },
    /// They are composed in another order.
    #[error("its strategies were in the order {}, now {}", expected.join(", "), given.join(", "))]
    Order {
        /// Names in the order of the run.
        expected: Vec<String>,
        /// Names as they are now.
        given: Vec<String>,
    },
}

impl StrategyDifference {
    /// Between the strategies of a run and those that are `given`; `None` if they are the same.
    pub fn between(expected: &[Fingerprint], given: &[Fingerprint]) -> Option<Self> {
        if expected == given {
            return None;
        }
        let lacks =
            |of: &Fingerprint, others: &[Fingerprint]| others.iter().all(|other| other.name != of.name);
        if let Some(missing) = expected.iter().find(|of| lacks(of, given)) {
            return Some(Self::Missing(missing.clone()));
        }
        if let Some(new) = given.iter().find(|of| lacks(of, expected)) {
            return Some(Self::New(new.clone()));
        }
        let mut pairs = expected.iter().zip(given);
        let names = |all: &[Fingerprint]| all.iter().map(|one| one.name.clone()).collect::<Vec<_>>();
        Some(match pairs.find(|(run, now)| run.name == now.name && run.settings != now.settings) {
            Some((run, now)) => Self::Settings {
                name: run.name.clone(),
                expected: run.settings.clone(),
                given: now.settings.clone(),
            },
            None => Self::Order { expected: names(expected), given: names(given) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(name: &str, settings: &impl Serialize) -> Fingerprint {
        Fingerprint { name: name.into(), settings: Settings::of(settings) }
    }

    #[test]
    fn settings_are_canonical() {
        #[derive(Serialize)]
        struct Mixed {
            z: f64,
            a: Inner,
        }
        #[derive(Serialize)]
        struct Inner {
            y: u8,
            b: Vec<Option<bool>>,
        }
        let settings = Settings::of(&Mixed { z: 0.1, a: Inner { y: 1, b: vec![None, Some(true)] } });
        assert_eq!(settings.to_string(), r#"{"a":{"b":[null,true],"y":1},"z":0.1}"#);
        let map = std::collections::HashMap::from([("b", 1), ("a", 2), ("c", 3)]);
        assert_eq!(Settings::of(&map).to_string(), r#"{"a":2,"b":1,"c":3}"#);
        assert_eq!(Settings::of(&[f64::NAN, f64::INFINITY, 1.0]).to_string(), "[null,null,1.0]");
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings);
    }

    #[test]
    fn a_difference_names_the_strategy() {
        let (one, two, other) = (fingerprint("a", &1), fingerprint("b", &2), fingerprint("b", &3));
        let between = |expected: &[&Fingerprint], given: &[&Fingerprint]| {
            let [expected, given] =
                [expected, given].map(|all| all.iter().map(|&one| one.clone()).collect::<Vec<_>>());
            StrategyDifference::between(&expected, &given).map(|difference| difference.to_string())
        };
        assert_eq!(between(&[&one, &two], &[&one, &two]), None);
        for (expected, given, message) in [
            (&[&one, &two][..], &[&one][..], r#"strategy "b", which it was made with, is missing"#),
            (&[&one], &[&one, &two], r#"it was made without strategy "b""#),
            (&[&one, &two], &[&one, &other], r#"strategy "b" had the settings 2, now 3"#),
            (&[&one, &two], &[&two, &one], "its strategies were in the order a, b, now b, a"),
            (&[&one, &one], &[&one], "its strategies were in the order a, a, now a"),
        ] {
            assert_eq!(between(expected, given).as_deref(), Some(message));
        }
    }
}
