//! What a run has recorded of its epochs, as curves: `metrics.jsonl` and `timing.jsonl`, read while somebody else writes them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use lowbit_train::{TimeParts, TrainError, read_regular};
use serde_json::Value;

/// Bytes that a record has at most.
const MAX_BYTES: u64 = 1 << 30;

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

/// The epochs of the run in `path`, in their order. A line that is not whole is not there yet.
pub fn read(path: &Path) -> Result<Vec<Epoch>, TrainError> {
    let mut epochs: Vec<Epoch> = lines(&path.join("metrics.jsonl"))?.iter().filter_map(epoch).collect();
    let times: BTreeMap<u64, Value> = lines(&path.join("timing.jsonl"))?
        .into_iter()
        .filter_map(|line| Some((line.get("epoch")?.as_u64()?, line)))
        .collect();
    for epoch in &mut epochs {
        let Some(time) = times.get(&epoch.epoch) else { continue };
        epoch.seconds = time.get("seconds").and_then(Value::as_f64);
        if let Some(speed) = time.get("images_per_second").and_then(Value::as_f64) {
            epoch.values.insert("time/images_per_second".into(), speed);
        }
        epoch.parts = time.get("parts").and_then(|parts| serde_json::from_value(parts.clone()).ok());
        for (name, seconds) in epoch.parts.iter().flat_map(TimeParts::named) {
            epoch.values.insert(format!("time/{name}"), seconds);
        }
    }
    Ok(epochs)
}

/// The JSON of all lines of a file that are whole; none if it is not there. A line that is no JSON is damage, but for the beginning of
/// one at the end of the file: whoever writes it is not done.
fn lines(path: &Path) -> Result<Vec<Value>, TrainError> {
    let bytes = match read_regular(path, MAX_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(TrainError::Io { action: "read", path: path.into(), source }),
        Ok(bytes) => bytes,
    };
    let damaged = |message: String| TrainError::DamagedFile { path: path.into(), message };
    let mut values = Vec::new();
    for (i, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        match serde_json::from_slice::<Value>(line) {
            Ok(value) if line.ends_with(b"\n") && value.is_object() => values.push(value),
            _ if !line.ends_with(b"\n") && line.starts_with(b"{") => {}
            Ok(_) => return Err(damaged(format!("line {} is no line of a record", i + 1))),
            Err(error) => return Err(damaged(format!("line {}: {error}", i + 1))),
        }
    }
    Ok(values)
}

fn epoch(line: &Value) -> Option<Epoch> {
    let mut values = BTreeMap::new();
    let mut add = |name: String, value: Option<&Value>| {
        if let Some(value) = value {
            // JSON has no other word for what is not finite.
            values.insert(name, value.as_f64().unwrap_or(f64::NAN));
        }
    };
    for name in ["learning_rate", "quantized_fraction"] {
        add(name.into(), line.get(name));
    }
    for images in ["train", "validation", "test"] {
        for score in ["loss", "top1", "top5"] {
            add(format!("{score}/{images}"), line.get(images).and_then(|scores| scores.get(score)));
            for (network, its) in entries(line, "networks") {
                add(
                    format!("{score}/{images}/{network}"),
                    its.get(images).and_then(|scores| scores.get(score)),
                );
            }
        }
    }
    for (network, parts) in entries(line, "losses") {
        for (part, value) in parts.as_object().into_iter().flatten() {
            add(format!("losses/{network}/{part}"), Some(value));
        }
    }
    for (parameter, value) in entries(line, "quantizers") {
        add(format!("quantizers/{parameter}"), Some(value));
    }
    Some(Epoch {
        epoch: line.get("epoch")?.as_u64()?,
        step: line.get("step")?.as_u64()?,
        phase: line.get("phase")?.as_str()?.into(),
        values,
        ..Epoch::default()
    })
}

/// What the object `key` of `line` holds.
fn entries<'a>(line: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    line.get(key).and_then(Value::as_object).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_not_whole_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), []);
        let first = r#"{"epoch":1,"step":4,"phase":"w2a2","learning_rate":0.1,"train":{"loss":null,"top1":0.5,"top5":1.0},"losses":{"student":{"labels":0.25}},"networks":{"teacher":{"test":{"loss":1.0,"top1":0.75,"top5":1.0}}},"quantizers":{"conv.scale":0.5}}"#;
        fs::write(folder.path().join("metrics.jsonl"), format!("{first}\n{{\"epoch\":2,\"st")).unwrap();
        let time = r#"{"epoch":1,"seconds":3.5,"images_per_second":10,"waiting_fraction":0}"#;
        fs::write(folder.path().join("timing.jsonl"), format!("{time}\n{time}")).unwrap();
        let epochs = read(folder.path()).unwrap();
        assert_eq!(epochs.len(), 1);
        let epoch = &epochs[0];
        assert_eq!((epoch.epoch, epoch.step, epoch.phase.as_str()), (1, 4, "w2a2"));
        assert_eq!((epoch.seconds, epoch.parts), (Some(3.5), None));
        assert!(epoch.values["loss/train"].is_nan());
        for (name, value) in [
            ("top1/train", 0.5),
            ("losses/student/labels", 0.25),
            ("top1/test/teacher", 0.75),
            ("quantizers/conv.scale", 0.5),
            ("time/images_per_second", 10.0),
        ] {
            assert_eq!(epoch.values[name], value, "{name}");
        }
    }
}
