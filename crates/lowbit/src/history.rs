//! What a run has recorded of its epochs, as curves with names.

use std::collections::BTreeMap;
use std::io;

use lowbit_train::{EpochMetrics, EpochTiming, RunDir, Scores, TimeParts, TrainError};

/// An epoch in numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Epoch {
    /// Its number, from 1.
    pub epoch: u64,
    /// Steps done after it.
    pub step: u64,
    /// Phase, as in "w4a32".
    pub phase: String,
    /// What is recorded of it, by a name as in `top1/test`; a number that is not finite is NaN.
    pub values: BTreeMap<String, f64>,
    /// Seconds of training so far, if they are known.
    pub seconds: Option<f64>,
    /// What its time was spent on, if that is known.
    pub parts: Option<TimeParts>,
}

/// The epochs of a run, in their order. A line that is not whole is not there yet.
pub fn read(run: &RunDir) -> Result<Vec<Epoch>, TrainError> {
    let metrics = match run.metrics() {
        Err(TrainError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        metrics => metrics?,
    };
    // An epoch that was trained twice has two lines: the later one counts.
    let times: BTreeMap<u64, EpochTiming> =
        run.timing()?.into_iter().map(|time| (time.epoch, time)).collect();
    Ok(metrics.into_iter().map(|epoch| Epoch::new(times.get(&epoch.epoch), epoch)).collect())
}

impl Epoch {
    fn new(time: Option<&EpochTiming>, metrics: EpochMetrics) -> Self {
        let EpochMetrics { epoch, step, phase, learning_rate, train, losses, validation, test, .. } = metrics;
        let mut values = BTreeMap::from([("learning_rate".to_string(), learning_rate)]);
        values.extend(metrics.quantized_fraction.map(|share| ("quantized_fraction".to_string(), share)));
        let mut add = |images: &str, scores: Option<Scores>, network: &str| {
            let Some(Scores { loss, top1, top5 }) = scores else { return };
            for (score, value) in [("loss", loss), ("top1", top1), ("top5", top5)] {
                values.insert(format!("{score}/{images}{network}"), value);
            }
        };
        add("train", Some(train), "");
        add("validation", validation, "");
        add("test", test, "");
        for (name, network) in metrics.networks {
            add("validation", network.validation, &format!("/{name}"));
            add("test", network.test, &format!("/{name}"));
        }
        for (network, parts) in losses {
            values.extend(parts.into_iter().map(|(part, value)| (format!("losses/{network}/{part}"), value)));
        }
        values.extend(metrics.measures.into_iter().map(|(name, value)| (format!("measures/{name}"), value)));
        let quantizers = metrics.quantizers.into_iter();
        values.extend(quantizers.map(|(name, value)| (format!("quantizers/{name}"), f64::from(value))));
        let parts = time.and_then(|time| time.parts);
        values.extend(time.map(|time| ("time/images_per_second".to_string(), time.images_per_second)));
        let named = parts.iter().flat_map(TimeParts::named);
        values.extend(named.map(|(name, seconds)| (format!("time/{name}"), seconds)));
        Self { epoch, step, phase, values, seconds: time.map(|time| time.seconds), parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_name() {
        let line = r#"{"epoch":1,"step":4,"phase":"w2a2","learning_rate":0.1,"train":{"loss":null,"top1":0.5,"top5":1.0},"losses":{"student":{"labels":0.25}},"networks":{"teacher":{"test":{"loss":1.0,"top1":0.75,"top5":1.0}}},"measures":{"rate":0.125},"quantizers":{"conv.scale":0.5}}"#;
        let time = r#"{"epoch":1,"seconds":3.5,"images_per_second":10,"waiting_fraction":0}"#;
        let time: EpochTiming = serde_json::from_str(time).unwrap();
        let epoch = Epoch::new(Some(&time), serde_json::from_str(line).unwrap());
        assert_eq!((epoch.epoch, epoch.step, epoch.phase.as_str()), (1, 4, "w2a2"));
        assert_eq!((epoch.seconds, epoch.parts), (Some(3.5), None));
        assert!(epoch.values["loss/train"].is_nan());
        for (name, value) in [
            ("top1/train", 0.5),
            ("losses/student/labels", 0.25),
            ("top1/test/teacher", 0.75),
            ("measures/rate", 0.125),
            ("quantizers/conv.scale", 0.5),
            ("time/images_per_second", 10.0),
        ] {
            assert_eq!(epoch.values[name], value, "{name}");
        }
    }
}
