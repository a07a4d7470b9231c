//! Reading a TOML table key by key, collecting every mistake instead of stopping at the first.

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;

use lowbit_core::Precision;
use serde::Deserialize;
use toml::{Table, Value};

/// One mistake in a recipe: where it is, what stands there, what is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the key, as in `train.learning_rate`.
    pub key: String,
    /// What is wrong and what to write instead.
    pub message: String,
    /// Where it stands, if that is a file: "line 9", or "base.toml, line 9" in one that is extended.
    pub place: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{} ({place}): {}", self.key, self.message),
            None => write!(f, "{}: {}", self.key, self.message),
        }
    }
}

/// Most unknown keys of which it is said what may have been meant: nobody reads more, and each is compared with all names.
const MAX_HINTS: usize = 1000;

/// All mistakes found so far, and the paths of all keys that were looked for.
#[derive(Default)]
pub(super) struct Problems {
    found: RefCell<Vec<Problem>>,
    pub(super) known: RefCell<Vec<String>>,
    /// Keys that nobody looked for: where in `found`, and the names of those beside them. What they are most like is
    /// known at the end.
    unknown: RefCell<Vec<(usize, Vec<String>)>>,
}

impl Problems {
    pub(super) fn push(&self, key: impl Into<String>, message: impl Into<String>) {
        let problem = Problem { key: key.into(), message: message.into(), place: None };
        self.found.borrow_mut().push(problem);
    }

    /// Whether no mistake was reported.
    pub(super) fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// Whether a mistake was reported that concerns one of the dotted `keys`: it, what is in it, or what it is in.
    pub(super) fn any_in(&self, keys: &[&str]) -> bool {
        let is_in =
            |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let concerns =
            |problem: &Problem| keys.iter().any(|key| is_in(&problem.key, key) || is_in(key, &problem.key));
        self.found.borrow().iter().any(concerns)
    }

    fn push_unknown(&self, key: String, value: &Value, beside: Vec<String>) {
        self.unknown.borrow_mut().push((self.found.borrow().len(), beside));
        self.push(key, format!("unknown key, set to {}", show(value)));
    }

    pub(super) fn into_vec(self) -> Vec<Problem> {
        let (mut found, known) = (self.found.into_inner(), self.known.into_inner());
        for (i, beside) in self.unknown.into_inner().into_iter().take(MAX_HINTS) {
            let Problem { key, message, .. } = &mut found[i];
            *message += &hint(key, &beside, &known);
        }
        found
    }
}

/// What may have been meant by the unknown `key`: the same name in another table, one like it `beside` it, or one like it
/// in another table. Names of tables apart, `known` has the paths of all keys.
fn hint(key: &str, beside: &[String], known: &[String]) -> String {
    let name_of = |path: &str| path.rsplit('.').next().unwrap_or(path).to_string();
    let name = name_of(key);
    let elsewhere = |wanted: &str| {
        // The outermost, of which others are exceptions.
        let paths = known.iter().filter(|path| name_of(path) == wanted && !path.contains('['));
        paths.min_by_key(|path| path.matches('.').count())
    };
    if let Some(path) = elsewhere(&name) {
        return format!("; did you mean {path:?}?");
    }
    if let Some(meant) = meant(&name) {
        let table = |path: &str| path.rsplit_once('.').map_or(String::new(), |(table, _)| table.to_string());
        return match meant {
            meant if meant.contains('=') => format!("; write {meant}"),
            meant if table(meant) == table(key) => format!("; did you mean {:?}?", name_of(meant)),
            meant => format!("; did you mean {meant:?}?"),
        };
    }
    let beside: Vec<&str> = beside.iter().map(String::as_str).collect();
    let near = did_you_mean(&name, &beside);
    if !near.is_empty() {
        return near;
    }
    let names: Vec<String> = known.iter().map(|path| name_of(path)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    match nearest(&name, &names).and_then(elsewhere) {
        Some(path) => format!("; did you mean {path:?}?"),
        None => format!("; the keys here are {}", beside.join(", ")),
    }
}

/// The key that is meant by a name that other programs, or people, use for it.
fn meant(name: &str) -> Option<&'static str> {
    const MEANT: [(&[&str], &str); 29] = [
        (
            &["accum", "accumulation", "grad_accum", "accumulation_steps", "gradient_accumulation_steps"],
            "train.accumulate",
        ),
        (&["sync_bn", "syncbn", "sync_batch_norm", "sync_batchnorm", "synchronized"], "train.sync_norms"),
        (
            &["scale_lr", "auto_scale_lr", "base_batch_size", "lr_scaling", "linear_scaling"],
            "train.learning_rate_batch",
        ),
        (&["lr", "rate", "learning_rates", "base_lr", "max_lr"], "train.learning_rate"),
        (&["bs", "batch", "batchsize", "mini_batch", "train_batch_size"], "data.batch_size"),
        (&["wd", "decay", "l2", "regularization"], "train.weight_decay"),
        (&["epoch", "n_epochs", "num_epochs", "max_epochs", "nepochs"], "train.epochs"),
        (&["momentum", "nesterov"], "train.optimizer={kind=\"sgd\", momentum=0.9, nesterov=true}"),
        (
            &["betas", "beta1", "beta2", "eps", "epsilon"],
            "train.optimizer={kind=\"adam\", beta1=0.9, beta2=0.999, epsilon=1e-8}",
        ),
        (&["optim", "opt"], "train.optimizer"),
        (&["scheduler", "lr_schedule", "lr_scheduler", "sched"], "train.schedule"),
        (
            &["milestones", "gamma", "step_size", "lr_steps"],
            "train.schedule={kind=\"multi-step\", milestones=[80, 120], gamma=0.1}",
        ),
        (&["warmup", "warm_up", "warmup_steps"], "train.warmup_epochs"),
        (
            &["clip", "grad_clip", "clip_grad", "clip_norm", "max_norm", "max_grad_norm"],
            "train.gradient_clip",
        ),
        (&["smoothing"], "train.label_smoothing"),
        (&["ema", "average", "model_ema", "ema_rate"], "train.ema_decay"),
        (&["eval_epochs", "eval_interval", "eval_freq"], "train.eval_every"),
        (
            &[
                "bits",
                "bit_width",
                "bitwidth",
                "n_bits",
                "nbits",
                "w_bits",
                "wbits",
                "weight_bit",
                "precision",
            ],
            "quantization.weight_bits",
        ),
        (&["a_bits", "abits", "act_bit", "activation_bits"], "quantization.act_bits"),
        (&["g_bits", "gbits", "grad_bit", "gradient_bits"], "quantization.grad_bits"),
        (&["quantizer", "quant", "qat", "quantizer_method"], "quantization.method"),
        (&["per_channel", "channelwise"], "quantization.weight_granularity"),
        (&["arch", "architecture", "network", "net", "backbone"], "model.family"),
        (&["n_layers", "num_layers", "blocks"], "model.depth"),
        (&["flip", "crop", "augmentation", "aug", "transform"], "data.augment"),
        (&["pretrained", "weights", "finetune", "fine_tune", "from"], "init"),
        (&["two_stage", "twostage"], "strategy.two_stage"),
        (&["progressive", "ladder", "pq"], "strategy.progressive"),
        (&["joint", "distill", "distillation", "kd", "teacher"], "strategy.joint"),
    ];
    let name = name.to_lowercase().replace('-', "_");
    MEANT.iter().find(|(names, _)| names.contains(&name.as_str())).map(|(_, key)| *key)
}

/// How to write the table at `path` where `value`, which is none, was written; as `--set` and a file take it.
fn example(path: &str, value: &Value) -> String {
    let key = path.rsplit('.').next().unwrap_or(path);
    let kind = |kinds: &[&str]| {
        let kind = value.as_str().filter(|kind| kinds.contains(kind)).unwrap_or(kinds[0]);
        match kind {
            "multi-step" => "{kind=\"multi-step\", milestones=[80, 120]}".into(),
            kind => format!("{{kind={kind:?}}}"),
        }
    };
    let bits = || match value {
        Value::Integer(bits @ 1..=8) => bits.to_string(),
        Value::String(text) if text == "fp32" => format!("{text:?}"),
        _ => "8".into(),
    };
    let number = |default: &str| {
        if value.is_integer() || value.is_float() { value.to_string() } else { default.into() }
    };
    let text = |default: &str| format!("{:?}", value.as_str().unwrap_or(default));
    let written = match (path, key) {
        ("data", _) => format!("data.dataset={}", text("digits")),
        ("model", _) => format!("model.family={}", text("preresnet")),
        ("quantization", _) => format!("quantization.method={}", text("lsq")),
        ("train", _) => format!("train.epochs={}", number("30")),
        ("strategy", _) => "strategy={two_stage=true}".into(),
        ("phases", _) => "phases={w2a2={epochs=10}}".into(),
        ("checkpoint", _) => "checkpoint={every_epochs=1}".into(),
        (_, "schedule") => format!("{path}={}", kind(&["cosine", "constant", "multi-step"])),
        (_, "optimizer") => format!("{path}={}", kind(&["sgd", "adam", "adamw"])),
        (_, "distance") => format!("{path}={}", kind(&["kl", "logits-mse"])),
        (_, "probability") => format!("{path}={}", kind(&["linear", "cosine", "exponential", "stepped"])),
        // Half of the normalized image is negative.
        (_, "first") if bits() != "\"fp32\"" => {
            format!("{path}={{method=\"minmax\", weight_bits={0}, act_bits={0}}}", bits())
        }
        (_, "first" | "last" | "shortcut") => format!("{path}={{weight_bits={0}, act_bits={0}}}", bits()),
        (_, "augment") => format!("{path}={{pad=4, flip=true}}"),
        (_, "quantizers") => format!("{path}={{learning_rate_scale={}}}", number("0.1")),
        (_, "hint") => format!("{path}={{weight={}}}", number("0.5")),
        (_, "teacher") => format!("{path}={{depth={}}}", number("20")),
        (_, "layers") => {
            format!("{path}=[{{pattern=\"stages.0.**\", weight_bits={0}, act_bits={0}}}]", bits())
        }
        (_, "students") => format!("{path}=[{{weight_bits={0}, act_bits={0}}}]", bits()),
        _ if path.starts_with("phases.") => format!("{path}={{epochs={}}}", number("10")),
        _ => format!("{path}={{}}"),
    };
    format!("; write {written}")
}

/// One table of a recipe. Every read notes the key as known; [`Section::finish`] reports the others.
pub(super) struct Section<'a> {
    path: String,
    table: Table,
    known: RefCell<Vec<String>>,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    pub(super) fn root(table: Table, problems: &'a Problems) -> Self {
        Self { path: String::new(), table, known: RefCell::default(), problems }
    }

    fn key_path(&self, key: &str) -> String {
        match self.path.is_empty() {
            true => key.into(),
            false => format!("{}.{key}", self.path),
        }
    }

    pub(super) fn problem(&self, key: &str, message: impl Into<String>) {
        self.problems.push(self.key_path(key), message);
    }

    /// The same unless it is known already.
    pub(super) fn problem_once(&self, key: &str, message: String) {
        let problem = Problem { key: self.key_path(key), message, place: None };
        let mut problems = self.problems.found.borrow_mut();
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    /// A mistake that concerns the table as a whole.
    pub(super) fn problem_here(&self, message: impl Into<String>) {
        self.problems.push(self.path.clone(), message);
    }

    /// Whether a mistake in this table was reported.
    pub(super) fn has_problems(&self) -> bool {
        let inside = format!("{}.", self.path);
        self.problems.found.borrow().iter().any(|problem| problem.key.starts_with(&inside))
    }

    /// Whether a mistake was reported anywhere in the recipe that concerns one of the dotted `keys`.
    pub(super) fn any_in(&self, keys: &[&str]) -> bool {
        self.problems.any_in(keys)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.known.borrow_mut().push(key.into());
        self.problems.known.borrow_mut().push(self.key_path(key));
        self.table.get(key)
    }

    /// The value of `key` as `read` makes it; reports `expected` if it can't.
    fn read<T>(&self, key: &str, expected: &str, read: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        self.read_explained(key, expected, read, |_| String::new())
    }

    /// The same, with what `explain` adds to the report of a value.
    fn read_explained<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
        explain: impl Fn(&Value) -> String,
    ) -> Option<T> {
        let value = self.value(key)?;
        let result = read(value);
        if result.is_none() {
            self.problem(key, format!("expected {expected}, got {}{}", show(value), explain(value)));
        }
        result
    }

    /// Reports `key` as missing unless something stands there that was reported already.
    fn or_missing<T: Default>(&self, key: &str, value: Option<T>, expected: &str) -> T {
        value.unwrap_or_else(|| {
            if !self.has(key) {
                self.problem(key, format!("is missing; expected {expected}"));
            }
            T::default()
        })
    }

    pub(super) fn optional_text(&self, key: &str) -> Option<String> {
        self.read(key, "a text", |value| value.as_str().map(Into::into))
    }

    pub(super) fn text(&self, key: &str) -> String {
        let value = self.optional_text(key);
        self.or_missing(key, value, "a text")
    }

    pub(super) fn optional_boolean(&self, key: &str) -> Option<bool> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub(super) fn boolean(&self, key: &str, default: bool) -> bool {
        self.optional_boolean(key).unwrap_or(default)
    }

    pub(super) fn optional_integer(&self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        self.read(key, &integer_range(&range), |value| {
            value.as_integer().and_then(|n| u64::try_from(n).ok()).filter(|n| range.contains(n))
        })
    }

    pub(super) fn integer(&self, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.optional_integer(key, range).unwrap_or(default)
    }

    pub(super) fn required_integer(&self, key: &str, range: RangeInclusive<u64>) -> u64 {
        let value = self.optional_integer(key, range.clone());
        self.or_missing(key, value, &integer_range(&range))
    }

    pub(super) fn optional_integers(&self, key: &str) -> Option<Vec<u64>> {
        self.read(key, "a list of integers", |value| {
            value.as_array()?.iter().map(|item| u64::try_from(item.as_integer()?).ok()).collect()
        })
    }

    pub(super) fn integers(&self, key: &str) -> Vec<u64> {
        self.or_missing(key, self.optional_integers(key), "a list of integers")
    }

    pub(super) fn optional_numbers(&self, key: &str) -> Option<Vec<f64>> {
        self.read(key, "a list of numbers", |value| {
            let number = |item: &Value| item.as_float().or_else(|| item.as_integer().map(|n| n as f64));
            value.as_array()?.iter().map(number).collect()
        })
    }

    pub(super) fn numbers(&self, key: &str) -> Vec<f64> {
        self.or_missing(key, self.optional_numbers(key), "a list of numbers")
    }

    pub(super) fn optional_precisions(&self, key: &str) -> Option<Vec<Precision>> {
        let read = |value: &Value| {
            value.as_array()?.iter().map(|item| Precision::deserialize(item.clone()).ok()).collect()
        };
        self.read_explained(key, "a list of bit widths from 1 to 8, or \"fp32\"", read, |value| {
            let has_16 = value.as_array().is_some_and(|items| items.iter().any(is_16));
            if has_16 {
                "; 16 bits train like full precision and are not offered: leave them out".into()
            } else {
                String::new()
            }
        })
    }

    pub(super) fn optional_number(&self, key: &str, range: &NumberRange) -> Option<f64> {
        self.read(key, &range.to_string(), |value| {
            let number = value.as_float().or_else(|| value.as_integer().map(|n| n as f64))?;
            range.contains(number).then_some(number)
        })
    }

    pub(super) fn number(&self, key: &str, default: f64, range: &NumberRange) -> f64 {
        self.optional_number(key, range).unwrap_or(default)
    }

    pub(super) fn required_number(&self, key: &str, range: &NumberRange) -> f64 {
        let value = self.optional_number(key, range);
        self.or_missing(key, value, &range.to_string())
    }

    pub(super) fn optional_precision(&self, key: &str) -> Option<Precision> {
        let read = |value: &Value| Precision::deserialize(value.clone()).ok();
        self.read_explained(key, "a bit width from 1 to 8, or \"fp32\"", read, |value| {
            let hint = "; 16 bits train like full precision and are not offered: take \"fp32\"";
            if is_16(value) { hint.into() } else { String::new() }
        })
    }

    pub(super) fn precision(&self, key: &str) -> Precision {
        self.optional_precision(key).unwrap_or_else(|| {
            if !self.has(key) {
                self.problem(key, "is missing; expected a bit width from 1 to 8, or \"fp32\"");
            }
            Precision::FullPrecision
        })
    }

    /// Some of the names in `choices`, each at most once and at least one.
    pub(super) fn optional_choices<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Option<Vec<T>> {
        let names = choices.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        self.read(key, &format!("a list of some of {names}"), |value| {
            let words: Vec<&str> = value.as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?;
            let is_repeated = |(i, word): (usize, &&str)| words[..i].contains(word);
            if words.is_empty() || words.iter().enumerate().any(is_repeated) {
                return None;
            }
            let find = |word: &&str| choices.iter().find(|(name, _)| name == word).map(|(_, choice)| *choice);
            words.iter().map(find).collect()
        })
    }

    /// One of the names in `choices`.
    pub(super) fn optional_choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let value = self.value(key)?;
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let word = value.as_str().unwrap_or_default();
        let found = choices.iter().find(|(name, _)| *name == word).map(|(_, choice)| *choice);
        if found.is_none() {
            let list = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
            self.problem(
                key,
                format!("expected one of {list}, got {}{}", show(value), did_you_mean(word, &names)),
            );
        }
        found
    }

    pub(super) fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> T {
        self.optional_choice(key, choices).unwrap_or_else(|| {
            if !self.has(key) {
                let list = choices.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>().join(", ");
                self.problem(key, format!("is missing; expected one of {list}"));
            }
            choices[0].1
        })
    }

    /// The table `key`, or `None` if it is absent.
    pub(super) fn optional_section(&self, key: &str) -> Option<Section<'a>> {
        let path = self.key_path(key);
        let read = |value: &Value| value.as_table().cloned();
        let table = self.read_explained(key, "a table", read, |value| example(&path, value))?;
        Some(Section { path: self.key_path(key), table, known: RefCell::default(), problems: self.problems })
    }

    /// The table `key`; an absent one is read as an empty one, so that what is required in it is reported.
    pub(super) fn section(&self, key: &str) -> Section<'a> {
        self.optional_section(key).unwrap_or_else(|| Section {
            path: self.key_path(key),
            table: Table::new(),
            known: RefCell::default(),
            problems: self.problems,
        })
    }

    /// All tables in this one, by key.
    pub(super) fn subsections(&self) -> Vec<(String, Section<'a>)> {
        let keys: Vec<String> = self.table.keys().cloned().collect();
        keys.into_iter().map(|key| (key.clone(), self.section(&key))).collect()
    }

    /// The tables of the list `key`, written `[[key]]`.
    pub(super) fn sections(&self, key: &str) -> Vec<Section<'a>> {
        let path = self.key_path(key);
        let read = |value: &Value| value.as_array()?.iter().map(|item| item.as_table().cloned()).collect();
        let tables: Option<Vec<Table>> =
            self.read_explained(key, "a list of tables", read, |value| example(&path, value));
        let tables = tables.unwrap_or_default().into_iter().enumerate();
        tables
            .map(|(i, table)| Section {
                path: format!("{}[{i}]", self.key_path(key)),
                table,
                known: RefCell::default(),
                problems: self.problems,
            })
            .collect()
    }

    /// Reports every key that was never read.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        for (key, value) in self.table.iter().filter(|(key, _)| !known.contains(key)) {
            self.problems.push_unknown(self.key_path(key), value, known.clone());
        }
    }
}

fn integer_range(range: &RangeInclusive<u64>) -> String {
    match *range.end() {
        u64::MAX => format!("an integer from {}", range.start()),
        end => format!("an integer from {} to {end}", range.start()),
    }
}

/// Which numbers a key takes.
pub(super) struct NumberRange {
    pub(super) min: f64,
    pub(super) max: f64,
    /// Whether `min` itself is taken.
    pub(super) min_included: bool,
}

/// All numbers are computed with in single precision sooner or later, so the ranges hold in it: above 0 is at least its
/// smallest normal number, and below 1 at most the one before it.
impl NumberRange {
    pub(super) const POSITIVE: Self =
        Self { min: f32::MIN_POSITIVE as f64, max: f32::MAX as f64, min_included: true };
    pub(super) const NOT_NEGATIVE: Self = Self { min: 0.0, max: f32::MAX as f64, min_included: true };

    /// From 0 up to, but not including, 1.
    pub(super) const FRACTION: Self =
        Self { min: 0.0, max: 1.0 - f32::EPSILON as f64 / 2.0, min_included: true };

    fn contains(&self, number: f64) -> bool {
        let above = if self.min_included { number >= self.min } else { number > self.min };
        above && number <= self.max
    }
}

impl fmt::Display for NumberRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.min {
            min if min == Self::POSITIVE.min => f.write_str("a number greater than 0 (from 1.2e-38)")?,
            min if self.min_included => write!(f, "a number from {min}")?,
            min => write!(f, "a number greater than {min}")?,
        }
        match self.max {
            max if max == Self::POSITIVE.max => f.write_str(" to 3.4e38"),
            max if max == Self::FRACTION.max => f.write_str(" and less than 1 (in 32 bits)"),
            max => write!(f, " to {max}"),
        }
    }
}

/// Bits of a rung of the paper, at which rounding is below the noise of training; quantizers go up to 8.
fn is_16(value: &Value) -> bool {
    value.as_integer() == Some(16)
}

fn show(value: &Value) -> String {
    match value {
        Value::Table(_) => "a table".into(),
        Value::Array(items) if items.iter().any(Value::is_table) => "a list of tables".into(),
        other => other.to_string(),
    }
}

/// `; did you mean "x"?` for the nearest of `names`, or nothing if none is near.
pub(super) fn did_you_mean(word: &str, names: &[&str]) -> String {
    nearest(word, names).map_or(String::new(), |name| format!("; did you mean {name:?}?"))
}

/// The name most like `word`, whatever its case, if one is alike at all.
fn nearest<'a>(word: &str, names: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    names
        .iter()
        .map(|name| (strsim::jaro_winkler(&word, name), *name))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}
