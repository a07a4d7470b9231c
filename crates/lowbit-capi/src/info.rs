//! What a model tells of itself, as C reads it.

use std::ffi::c_char;
use std::ptr;

use lowbit_runtime::Model;

use crate::LowbitInfo;

/// A [`LowbitInfo`] and what it points to.
#[derive(Debug)]
pub struct Info {
    info: LowbitInfo,
    // Vectors, whose elements stay where they are when the vector is moved. They are never changed.
    _mean: Vec<f32>,
    _std: Vec<f32>,
    _texts: Vec<Vec<u8>>,
    _classes: Vec<*const c_char>,
}

// SAFETY: what it points to is its own and is never changed.
unsafe impl Send for Info {}

// SAFETY: as above.
unsafe impl Sync for Info {}

impl Info {
    /// Of a model that runs on `n_threads` threads.
    pub fn of(model: &Model, n_threads: usize) -> Self {
        let [channels, height, width] = model.input_shape();
        let info = &model.network().info;
        // Without a normalization, one that changes nothing, so that no caller has to ask.
        let or = |numbers: &[f32], otherwise| match numbers {
            [] => vec![otherwise; channels],
            numbers => numbers.to_vec(),
        };
        let (mean, std) = (or(&info.mean, 0.0), or(&info.std, 1.0));
        let texts: Vec<Vec<u8>> =
            [&info.name].into_iter().chain(&info.classes).map(|text| of_c(text)).collect();
        let pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr().cast()).collect();
        let classes = pointers[1..].to_vec();
        let info = LowbitInfo {
            name: pointers[0],
            channels,
            height,
            width,
            mean: mean.as_ptr(),
            std: std.as_ptr(),
            resize: info.resize.unwrap_or_default(),
            n_outputs: model.n_outputs(),
            classes: if classes.is_empty() { ptr::null() } else { classes.as_ptr() },
            n_threads,
        };
        Self { info, _mean: mean, _std: std, _texts: texts, _classes: classes }
    }

    /// What C gets.
    pub fn get(&self) -> &LowbitInfo {
        &self.info
    }
}

/// A text that ends with a zero, as C has it. One inside, which only a forged file has, would end it early.
fn of_c(text: &str) -> Vec<u8> {
    let mut bytes = text.replace('\0', "\u{fffd}").into_bytes();
    bytes.push(0);
    bytes
}
