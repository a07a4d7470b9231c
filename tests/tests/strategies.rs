//! The training strategies against the numbers of PyTorch in `golden/strategies.json`, on every backend; and what they do
//! to whole runs on digits: who is asked and trained when, what one phase hands over to the next, what is evaluated.

// The worked example of the documentation.
#[path = "../../crates/lowbit-train/examples/own_strategy.rs"]
#[expect(dead_code, reason = "its main function is for running it by hand")]
mod own_strategy;
// The strategy of a user's crate.
#[path = "../../examples/second-teacher/src/main.rs"]
#[expect(dead_code, reason = "its main function is for running it by hand")]
mod second_teacher;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Gradients, Tensor};
use lowbit_core::Precision;
use lowbit_data::{DatasetName, LabelKind, Locations, Normalization, open};
use lowbit_models::{Family, Features, ModelConfig};
use lowbit_quantizers::{ActivationQuantizer, LayerQuantization, Method, Operand, Selection};
use lowbit_strategies::loss::{cross_entropy, kl_divergence, mean_square, target_probabilities};
use lowbit_strategies::{
    DistillLoss, Hint, HintGrid, HintMaps, HintTarget, Init, Joint, JointLosses, JointMode, JointTarget,
    JointTeacher, Loss, Moment, NetworkSpec, OptimizerState, Output, Outputs, Phase, Probability,
    QuantizedLayer, Role, Selector, Settings, StochasticPrecision, Strategy, TEACHER, TeacherSchedule,
    TrainRecipe, Unit,
};
use lowbit_tests::golden::{
    ComposedCase, ComposedCases, DistillationCase, HintCase, HintCases, JointCase, JointWeights, Strategies,
    load,
};
use lowbit_tests::{
    Backend, Tolerance, assert_close, assert_close_f64, backends, default_device, tensor, values,
};
use lowbit_train::recipe::Recipe;
use lowbit_train::{
    Divergence, EpochMetrics, EpochTiming, Evaluation, Observer, Outcome, ResumeFrom, RunDir, Session,
    StepReport, Subject, TrainError, World, evaluate, inspect, resume, train,
};
use safetensors::SafeTensors;

/// Of a loss. The terms of a divergence cancel, and at T = 4 it is multiplied by 16: measured at most 9e-7, at T = 1 2e-7.
const LOSS: Tolerance = Tolerance { relative: 2e-6, absolute: 1e-7 };

/// Of gradients of logits, relative to the largest. They are differences of probabilities, each an ulp or two of 1 off;
/// measured at most 5e-7, at T = 4.
const GRADIENT: Tolerance = Tolerance { relative: 1e-6, absolute: 2e-7 };

/// Of gradients of feature maps: one subtraction and one division by `2^k - 1`, after the codes were found equal. Measured
/// at most 2e-7.
const MAP_GRADIENT: Tolerance = Tolerance::relative(1e-6);

fn golden() -> Strategies {
    load("strategies")
}

fn each_backend(mut check: impl FnMut(&str, &Device)) {
    for Backend { name, device } in backends() {
        check(name, &device.autodiff());
    }
}

/// The gradient of `tensor`; zeros if it has none, which is how burn says that nothing depends on it.
fn gradient<const D: usize>(tensor: &Tensor<D>, gradients: &Gradients) -> Vec<f32> {
    let zeros = || vec![0.0; tensor.dims().iter().product()];
    tensor.grad(gradients).map_or_else(zeros, values)
}

/// `None` expects zeros: exactly, since what is detached contributes nothing.
fn check_gradient(what: &str, got: &[f32], expected: Option<&Vec<f64>>, tolerance: Tolerance) {
    match expected {
        Some(expected) => assert_close_f64(what, got, expected, tolerance),
        None => assert!(got.iter().all(|value| *value == 0.0), "{what}: expected no gradient, got {got:?}"),
    }
}

fn check_loss(what: &str, loss: Tensor<1>, expected: f64) {
    assert_close_f64(&format!("{what}: loss"), &values(loss), &[expected], LOSS);
}

#[test]
fn distances_of_logits() {
    let cases = golden().distillation;
    assert_eq!(cases.len(), 4);
    each_backend(|name, device| {
        cases.iter().for_each(|case| check_distance(&format!("{} on {name}", case.name), case, device));
    });
}

fn check_distance(what: &str, case: &DistillationCase, device: &Device) {
    for (side, expected) in [("teacher", &case.from_teacher), ("student", &case.from_student)] {
        let what = format!("{what}, from the {side}");
        let student = tensor(&case.student, case.shape, device).require_grad();
        let teacher = tensor(&case.teacher, case.shape, device).require_grad();
        let (target, logits) = if side == "teacher" { (teacher, student) } else { (student, teacher) };
        let loss = match case.temperature {
            Some(temperature) => kl_divergence(target.clone(), logits.clone(), temperature),
            None => mean_square(target.clone() - logits.clone()),
        };
        let gradients = loss.backward();
        check_loss(&what, loss, expected.loss);
        let got = gradient(&logits, &gradients);
        assert_close_f64(&format!("{what}: gradient of the logits"), &got, &expected.grad_logits, GRADIENT);
        let got = gradient(&target, &gradients);
        assert_close_f64(&format!("{what}: gradient of the target"), &got, &expected.grad_target, GRADIENT);
    }
}

fn joint(weights: JointWeights, temperature: Option<f64>, mode: &str) -> Joint {
    let losses = JointLosses {
        distance: temperature.map_or(DistillLoss::LogitsMse, |temperature| DistillLoss::Kl { temperature }),
        student_label_weight: weights.student_label,
        student_distill_weight: weights.student_distill,
        teacher_label_weight: weights.teacher_label,
        teacher_distill_weight: weights.teacher_distill,
        mode: match mode {
            "mutual" => JointMode::Mutual,
            "student-only" => JointMode::StudentOnly,
            "frozen" => JointMode::Frozen,
            other => panic!("unknown mode {other}"),
        },
        target: JointTarget::Logits,
    };
    let teacher = JointTeacher {
        model: ModelConfig::new(Family::ResNet, 8),
        learning_rate_scale: 1.0,
        schedule: TeacherSchedule::default(),
        init: None,
    };
    Joint { losses, teacher, students: Vec::new() }
}

/// What network `name` makes of a batch.
fn output(name: impl Into<String>, role: Role, logits: Tensor<2>) -> Output {
    Output {
        name: name.into(),
        role,
        features: Features { logits, taps: Vec::new() },
        adapts_to: (role == Role::Student).then(|| TEACHER.into()),
        adapted_taps: Vec::new(),
        act_bits: Precision::FullPrecision,
        tap_quantizers: Vec::new(),
    }
}

/// What the networks of a golden case make of a batch; the last is the teacher.
struct Batch {
    networks: Vec<Output>,
    targets: Tensor<2>,
}

impl Batch {
    /// Without feature maps.
    fn of_logits(mut logits: Vec<Tensor<2>>, labels: &[i64]) -> Self {
        let teacher = logits.pop().expect("invariant: there is a teacher");
        let [_, n_classes] = teacher.dims();
        let targets = target_probabilities(labels, n_classes, 0.0, &teacher.device());
        let student = |(i, logits)| output(format!("student{i}"), Role::Student, logits);
        let students = logits.into_iter().enumerate().map(student);
        Self { networks: students.chain([output(TEACHER, Role::Teacher, teacher)]).collect(), targets }
    }

    /// The loss of a network by `strategies`, in turn, from its cross entropy.
    fn loss(&self, network: &Output, strategies: &[&dyn Strategy]) -> Tensor<1> {
        let logits = network.features.logits.clone();
        let own = Loss::new("labels", cross_entropy(logits, self.targets.clone()));
        let outputs = Outputs { networks: &self.networks, labels: &[] };
        strategies.iter().fold(own, |loss, strategy| strategy.loss(network, &outputs, loss)).total()
    }
}

#[test]
fn joint_losses() {
    let cases = golden().joint;
    assert_eq!(cases.len(), 24);
    each_backend(|name, device| {
        cases.iter().for_each(|case| check_joint(&format!("{} on {name}", case.name), case, device));
    });
}

fn check_joint(what: &str, case: &JointCase, device: &Device) {
    let leaf = |logits: &Vec<f32>| tensor(logits, case.shape, device).require_grad();
    let logits: Vec<Tensor<2>> = case.logits.iter().map(leaf).collect();
    let batch = Batch::of_logits(logits.clone(), &case.labels);
    let joint = joint(case.weights, case.temperature, &case.mode);
    for ((network, loss), grads) in batch.networks.iter().zip(&case.losses).zip(&case.grads) {
        let what = format!("{what}, {}", network.name);
        // A frozen teacher is not asked, which `a_frozen_teacher_stays_as_it_is` checks.
        let (Some(expected), Some(grads)) = (loss, grads) else {
            assert!(network.name == TEACHER && joint.losses.mode == JointMode::Frozen, "{what}");
            continue;
        };
        let loss = batch.loss(network, &[&joint]);
        let gradients = loss.backward();
        check_loss(&what, loss, *expected);
        for (i, (logits, expected)) in logits.iter().zip(grads).enumerate() {
            let what = format!("{what}: gradient of network {i}");
            check_gradient(&what, &gradient(logits, &gradients), expected.as_ref(), GRADIENT);
        }
    }
}

#[test]
fn without_a_teacher_losses_stay() {
    let case = &golden().joint[0];
    let device = default_device();
    let batch = Batch::of_logits(
        case.logits.iter().map(|logits| tensor(logits, case.shape, &device)).collect(),
        &case.labels,
    );
    let joint = joint(case.weights, case.temperature, &case.mode);
    let hint = Hint {
        weight: 1.0,
        target: HintTarget::Both,
        grid: HintGrid::Unit,
        maps: HintMaps::Stage,
        taps: vec![0],
    };
    let (teacher, students) = batch.networks.split_last().expect("invariant: there is a teacher");
    assert_eq!(teacher.name, TEACHER);
    let outputs = Outputs { networks: students, labels: &[] };
    for strategy in [&joint as &dyn Strategy, &hint] {
        let loss = Loss::new("labels", Tensor::<1>::from_floats([1.25], &device));
        assert_eq!(values(strategy.loss(&students[0], &outputs, loss).total()), [1.25]);
    }
}

#[test]
fn hints() {
    let cases = golden().hint;
    let names: Vec<&str> = cases.cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names, ["1bit", "2bit", "4bit", "8bit", "fp32"]);
    each_backend(|name, device| {
        for case in &cases.cases {
            check_hint(&format!("{} on {name}", case.name), &cases, case, device);
        }
    });
}

/// A student of a caller's own strategy, which adapts to no network, has no hint and no share in the teacher's.
#[test]
fn a_student_that_does_not_adapt_has_no_hint() {
    let device = Device::default();
    let map = |value: f32| Tensor::<4>::full([1, 1, 2, 2], value, &device);
    let no_logits = || Tensor::zeros([1, 2], &device);
    let mut student = output("student", Role::Student, no_logits());
    student.adapted_taps = vec![map(0.0)];
    let mut teacher = output(TEACHER, Role::Teacher, no_logits());
    teacher.features.taps = vec![map(1.0)];
    let own = Output { adapts_to: None, ..output("own", Role::Student, no_logits()) };
    let hint = Hint {
        weight: 1.0,
        target: HintTarget::Both,
        grid: HintGrid::Unit,
        maps: HintMaps::Stage,
        taps: vec![0],
    };
    let loss = |network: &Output, networks: &[Output]| {
        let labels = Loss::new("labels", Tensor::zeros([1], &device));
        hint.loss(network, &Outputs { networks, labels: &[] }, labels).total().into_scalar::<f32>()
    };
    let (without, with) =
        ([student.clone(), teacher.clone()], [student.clone(), own.clone(), teacher.clone()]);
    assert_eq!(loss(&own, &with), 0.0);
    assert_eq!([loss(&student, &with), loss(&teacher, &with)], [0.5, 0.5]);
    assert_eq!([loss(&student, &without), loss(&teacher, &without)], [0.5, 0.5]);
}

fn check_hint(what: &str, cases: &HintCases, case: &HintCase, device: &Device) {
    let mu = tensor(&cases.mu, cases.shape, device).require_grad();
    let nu = tensor(&cases.nu, cases.shape, device).require_grad();
    let no_logits = || Tensor::zeros([cases.shape[0], 2], device);
    let mut networks = [("student", Role::Student), (TEACHER, Role::Teacher)]
        .map(|(name, role)| output(name, role, no_logits()));
    (networks[0].adapted_taps, networks[0].act_bits) = (vec![mu.clone()], case.bits);
    networks[1].features.taps = vec![nu.clone()];
    let outputs = Outputs { networks: &networks, labels: &[] };
    let loss = |target, network: usize| {
        let hint =
            Hint { weight: cases.weight, target, grid: HintGrid::Unit, maps: HintMaps::Stage, taps: vec![0] };
        hint.loss(&networks[network], &outputs, Loss::new("labels", Tensor::zeros([1], device))).total()
    };
    for target in [HintTarget::Student, HintTarget::Both] {
        let loss = loss(target, 0);
        let gradients = loss.backward();
        check_loss(&format!("{what}, student"), loss, case.loss_student);
        let grad_mu = gradient(&mu, &gradients);
        if let Some(codes) = &case.codes {
            check_codes(what, cases, &grad_mu, codes);
        }
        check_gradient(&format!("{what}: gradient of mu"), &grad_mu, Some(&case.grad_mu), MAP_GRADIENT);
        check_gradient(&format!("{what}: gradient of nu"), &gradient(&nu, &gradients), None, MAP_GRADIENT);
    }
    let both = loss(HintTarget::Both, 1);
    let gradients = both.backward();
    check_loss(&format!("{what}, teacher"), both, case.loss_teacher);
    let grad_nu = gradient(&nu, &gradients);
    check_gradient(&format!("{what}, teacher: gradient of nu"), &grad_nu, Some(&case.grad_nu), MAP_GRADIENT);
    // The edges of the clip, exactly: where the gradient is masked, it is zero.
    for (i, (got, expected)) in grad_nu.iter().zip(&case.grad_nu).enumerate() {
        assert_eq!(*got == 0.0, *expected == 0.0, "{what}: the mask of nu[{i}] = {}", cases.nu[i]);
    }
    check_gradient(
        &format!("{what}, teacher: gradient of mu"),
        &gradient(&mu, &gradients),
        None,
        MAP_GRADIENT,
    );
    assert_eq!(values(loss(HintTarget::Student, 1)), [0.0], "{what}: the teacher's loss");
}

/// On the student's own grid the teacher's map is quantized by the layer that reads the student's, learned step and all; without such a
/// layer it is compared as it is, not clipped. The step does not come to the teacher's map.
#[test]
fn hints_on_the_students_own_grid() {
    each_backend(|name, device| {
        let two = Precision::bits(2).expect("2 is a bit width");
        let quantization = LayerQuantization::new(Method::Lsq, two, two);
        let mut quantizer =
            ActivationQuantizer::new(&quantization, device).expect("it is defined").expect("2 bits");
        // Calibrated by a map of mean 3 sqrt(3) / 8, the step is 2 mean / sqrt(3) = 0.75.
        quantizer.start_calibration();
        quantizer.observe(&Tensor::<4>::full([1, 1, 1, 4], 3.0 * 3f32.sqrt() / 8.0, device));
        quantizer.finish_calibration();
        let mu = tensor(&[0.0; 4], [1, 1, 1, 4], device).require_grad();
        let nu = tensor(&[0.4, -1.0, 1.2, 9.0], [1, 1, 1, 4], device);
        let mut networks = [("student", Role::Student), (TEACHER, Role::Teacher)]
            .map(|(name, role)| output(name, role, Tensor::zeros([1, 2], device)));
        networks[0].adapted_taps = vec![mu.clone()];
        networks[0].act_bits = two;
        networks[1].features.taps = vec![nu];
        for (quantizer, expected) in
            [(Some(quantizer), [0.75, 0.0, 1.5, 2.25]), (None, [0.4, -1.0, 1.2, 9.0])]
        {
            let step = quantizer.as_ref().map(|quantizer| quantizer.learned()[0].parameter.val());
            networks[0].tap_quantizers = vec![quantizer];
            let hint = Hint {
                weight: 4.0,
                target: HintTarget::Student,
                grid: HintGrid::Student,
                maps: HintMaps::Stage,
                taps: vec![0],
            };
            let outputs = Outputs { networks: &networks, labels: &[] };
            let loss =
                hint.loss(&networks[0], &outputs, Loss::new("labels", Tensor::zeros([1], device))).total();
            // Half of the mean of four squares, times 4: their sum over 2.
            let sum: f64 = expected.iter().map(|value: &f64| value * value).sum();
            let gradients = loss.backward();
            check_loss(&format!("own grid on {name}"), loss, sum / 2.0);
            let slopes = expected.map(|value| -value);
            assert_close_f64("gradient of mu", &gradient(&mu, &gradients), &slopes, MAP_GRADIENT);
            assert!(step.is_none_or(|step| gradient(&step, &gradients) == [0.0]), "the step has a gradient");
        }
    });
}

/// Maps of a PreResNet after the normalization and ReLU that read them are another training, with the same logits; so are targets of all
/// networks together, which learn without labels, too.
#[test]
fn hints_on_activations_and_common_targets_train() {
    let joint = "strategy.joint={students=[{weight_bits=4, act_bits=4}]}";
    let hint = |keys: &str| format!("strategy.hint={{weight=0.5{keys}}}");
    let run = |name: &str, joint: &str, hint: &str| {
        let recipe = recipe(&["quantization.method=lsq", "model.width=0.25", joint, hint]);
        Run::new(name, &recipe, Vec::new())
    };
    let stage = run("hint-stage", joint, &hint(""));
    let activated = run("hint-activated", joint, &hint(", maps='activated'"));
    let own = run("hint-own", joint, &hint(", maps='activated', grid='student'"));
    let hints = [&stage, &activated, &own].map(|run| run.epochs[0].losses["student"]["hint"]);
    assert!(hints[0] != hints[1] && hints[1] != hints[2], "{hints:?}");
    let models = [&stage, &activated, &own].map(Run::model);
    assert!(models[0] != models[1] && models[1] != models[2]);
    let evaluation = own.evaluate();
    assert_eq!(Some(evaluation.scores), evaluation.reported);
    // Nothing is warned of, where maps are activations.
    let warned = |hint: &str| {
        let recipe = recipe(&["model.width=0.25", "train.epochs=1", joint, hint]);
        warnings("hint-warned", &recipe).iter().any(|warning| warning.contains("strategy.hint"))
    };
    assert!(warned(&hint("")) && !warned(&hint(", maps='activated'")));

    let common = "strategy.joint={target='min-logit', students=[{weight_bits=4, act_bits=4}]}";
    let common = run("min-logit", common, &hint(""));
    assert!(common.model() != stage.model());
    let others = common.epochs.last().expect("it has epochs").losses.iter();
    assert!(others.map(|(_, parts)| parts["distill"]).all(|distance| distance > 0.0));
    let free = "strategy.joint={student_label_weight=0.0, students=[{weight_bits=4, act_bits=4}]}";
    let free = run("label-free", free, &hint(""));
    let parts = &free.epochs[0].losses;
    assert!(parts["student"]["labels"] == 0.0 && parts["teacher"]["labels"] > 0.0, "{parts:?}");
}

/// The teacher's map is on the student's grid, code for code: `mu - grad_mu * elements / weight` is the quantized map.
fn check_codes(what: &str, cases: &HintCases, grad_mu: &[f32], codes: &[u32]) {
    let levels = f64::from(*codes.iter().max().expect("invariant: maps are not empty"));
    let factor = cases.mu.len() as f64 / cases.weight;
    for (i, ((mu, gradient), code)) in cases.mu.iter().zip(grad_mu).zip(codes).enumerate() {
        let quantized = f64::from(*mu) - f64::from(*gradient) * factor;
        assert_eq!((quantized * levels).round_ties_even(), f64::from(*code), "{what}: the code of nu[{i}]");
    }
}

#[test]
fn joint_losses_with_hints() {
    let cases = golden().composed;
    assert_eq!(cases.cases.len(), 4);
    each_backend(|name, device| {
        for case in &cases.cases {
            check_composed(&format!("{} on {name}", case.name), &cases, case, device);
        }
    });
}

fn check_composed(what: &str, cases: &ComposedCases, case: &ComposedCase, device: &Device) {
    let logits: Vec<Tensor<2>> =
        cases.logits.iter().map(|logits| tensor(logits, cases.shape, device).require_grad()).collect();
    let maps = |maps: &Vec<Vec<f32>>| -> Vec<Tensor<4>> {
        let shaped = maps.iter().zip(&cases.map_shapes);
        shaped.map(|(map, shape)| tensor(map, *shape, device).require_grad()).collect()
    };
    let student_maps: Vec<Vec<Tensor<4>>> = cases.student_maps.iter().map(maps).collect();
    let teacher_maps = maps(&cases.teacher_maps);
    let mut batch = Batch::of_logits(logits.clone(), &cases.labels);
    for ((student, maps), bits) in batch.networks.iter_mut().zip(&student_maps).zip(&cases.bits) {
        student.adapted_taps.clone_from(maps);
        // Of another shape than the teacher's: only the adapted ones are to be used.
        student.features.taps = vec![Tensor::zeros([1, 1, 1, 1], device); maps.len()];
        student.act_bits = *bits;
    }
    let teacher = batch.networks.last_mut().expect("invariant: there is a teacher");
    teacher.features.taps.clone_from(&teacher_maps);
    let joint = joint(cases.weights, Some(cases.temperature), &case.mode);
    let target = if case.target == "both" { HintTarget::Both } else { HintTarget::Student };
    let hint = Hint {
        weight: cases.hint_weight,
        target,
        grid: HintGrid::Unit,
        maps: HintMaps::Stage,
        taps: cases.taps.clone(),
    };
    for ((network, loss), grads) in batch.networks.iter().zip(&case.losses).zip(&case.grads) {
        let what = format!("{what}, {}", network.name);
        let (Some(expected), Some(grads)) = (loss, grads) else { continue };
        let loss = batch.loss(network, &[&joint, &hint]);
        let gradients = loss.backward();
        check_loss(&what, loss, *expected);
        let (of_logits, of_maps) = grads.split_at(logits.len());
        for (i, (logits, expected)) in logits.iter().zip(of_logits).enumerate() {
            let what = format!("{what}: gradient of the logits of network {i}");
            check_gradient(&what, &gradient(logits, &gradients), expected.as_ref(), GRADIENT);
        }
        let maps = student_maps.iter().flatten().chain(&teacher_maps);
        for (i, (map, expected)) in maps.zip(of_maps).enumerate() {
            let what = format!("{what}: gradient of map {i}");
            check_gradient(&what, &gradient(map, &gradients), expected.as_ref(), MAP_GRADIENT);
        }
    }
}

#[test]
fn probabilities_of_stochastic_precision() {
    let cases = golden().probability;
    assert_eq!(cases.len(), 40);
    for case in &cases {
        let from = case.from.unwrap_or(f64::NAN);
        let probability = match case.kind.as_str() {
            "linear" => Probability::Linear { from },
            "cosine" => Probability::Cosine { from },
            "exponential" => Probability::Exponential { from },
            "stepped" => Probability::Stepped { values: case.values.clone().unwrap_or_default() },
            other => panic!("unknown kind {other}"),
        };
        let strategy = stochastic(probability, case.final_share);
        for (&phase_step, &expected) in case.steps.iter().zip(&case.expected) {
            // In a later phase: what counts is the step of the phase.
            let moment =
                Moment { seed: 0, step: phase_step + 1000, phase_step, phase_steps: case.phase_steps };
            let got = strategy.probability(&moment);
            // Both sides are doubles; the file has twelve digits.
            assert!((got - expected).abs() < 1e-11, "{case:?} at {phase_step}: {got}");
        }
    }
}

fn stochastic(probability: Probability, final_share: f64) -> StochasticPrecision {
    StochasticPrecision { unit: Unit::Block, probability, final_share, selector: Selector::Bernoulli }
}

// Whole runs.

/// Four steps an epoch, a fraction of a second each.
const TINY: [&str; 6] = [
    "train.epochs=2",
    "data.train_limit=128",
    "data.test_limit=64",
    "data.batch_size=32",
    "data.augment={pad=0}",
    "train.norm_reestimation_batches=2",
];

/// A joint training with a teacher of the same kind.
const MUTUAL: &str = "strategy.joint={}";

fn recipe_of(name: &str, overrides: &[&str]) -> Recipe {
    let overrides: Vec<String> = TINY.iter().chain(overrides).map(ToString::to_string).collect();
    Recipe::embedded(name, &overrides).unwrap_or_else(|error| panic!("{error}"))
}

fn recipe(overrides: &[&str]) -> Recipe {
    recipe_of("digits-preresnet8-w2a2", overrides)
}

/// A directory for the run `name`, which does not exist.
fn run_dir(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("strategies").join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path).expect("the directory of an earlier test is removed");
    }
    path
}

fn session<'a>(
    stop: &'a AtomicBool,
    observer: &'a mut dyn Observer,
    strategies: Vec<Box<dyn Strategy>>,
) -> Session<'a> {
    Session {
        device: default_device(),
        device_name: "default".into(),
        origin: lowbit_train::Origin::here(),
        images: Locations::default_with(None).into(),
        stop,
        observer,
        world: World::ALONE,
        strategies,
    }
}

/// Two trainings after each other in a process, and two at once in threads with the stack that Rust gives them, of a network
/// as deep as any that comes with lowbit: all end alike.
#[test]
fn trainings_in_one_process_end_alike() {
    const STACK: usize = 2 << 20;

    let digest = |name: &str| {
        let changes = [
            "model.depth=110",
            "model.width=0.25",
            "train.epochs=1",
            "data.train_limit=32",
            "data.batch_size=16",
        ];
        let recipe = recipe(&[&changes[..], &["data.test_limit=16"]].concat());
        let run = Run::new(name, &recipe, Vec::new());
        inspect(&run.path, None).expect("the run is read").checkpoint.expect("it has one").state_sha256
    };
    let mut digests: Vec<String> = ["first", "second"].map(digest).into();
    digests.extend(std::thread::scope(|scope| {
        let threads = ["third", "fourth"].map(|name| {
            let thread = std::thread::Builder::new().stack_size(STACK);
            thread.spawn_scoped(scope, move || digest(name)).expect("a thread starts")
        });
        threads.map(|thread| thread.join().expect("the training ends"))
    }));
    assert!(digests.iter().all(|digest| digest == &digests[0]), "{digests:?}");
}

/// Arithmetic in bf16 changes the steps of networks with quantizers and without, and they learn as ever.
#[test]
fn trainings_in_bf16_learn_in_their_own_way() {
    for name in ["digits-preresnet8-fp32", "digits-preresnet8-w2a2"] {
        let settings = ["train.epochs=3", "data.train_limit=640", "data.test_limit=359", "model.width=0.5"];
        let run = |compute: &str| {
            let compute = format!("train.compute={compute}");
            let recipe = recipe_of(name, &[&settings[..], &[&compute, "train.learning_rate=0.2"]].concat());
            Run::new(&format!("{name}-{compute}"), &recipe, Vec::new())
        };
        let (fp32, bf16) = (run("fp32"), run("bf16"));
        let losses = |run: &Run| run.epochs.iter().map(|epoch| epoch.train.loss).collect::<Vec<_>>();
        let scores = |run: &Run| run.evaluate().scores;
        assert_ne!(losses(&fp32), losses(&bf16), "{name}");
        // Of ten classes.
        let [of_fp32, of_bf16] = [&fp32, &bf16].map(|run| scores(run).top1);
        assert!(of_bf16 > 0.5 && (of_bf16 - of_fp32).abs() < 0.2, "{name}: {of_fp32}, in bf16 {of_bf16}");
        // What an evaluation of the checkpoint computes is what the training said.
        let evaluation = bf16.evaluate();
        assert_eq!(evaluation.reported, Some(evaluation.scores), "{name}");
    }
}

/// What a device cannot compute is refused, never left out; nothing is written.
#[test]
fn bf16_is_refused_where_it_is_not_computed() {
    let others = backends().into_iter().filter(|backend| !["flex", "ndarray"].contains(&backend.name));
    for Backend { name, device } in others {
        let (path, stop) = (run_dir(&format!("bf16-{name}")), AtomicBool::new(false));
        let mut observer = ();
        let session = session(&stop, &mut observer, Vec::new());
        let session = Session { device, device_name: name.into(), ..session };
        let error = train(&recipe(&["train.compute=bf16"]), &path, session).expect_err("it is refused");
        assert!(matches!(&error, TrainError::Compute { device } if device == name), "{error}");
        assert!(!path.exists(), "{name}");
    }
}

/// Trainings with gradients of few bits differ by their bits and by the noise of their seed, learn, and go on after a stop as if there
/// was none.
#[test]
fn trainings_with_gradients_of_few_bits_resume_exactly() {
    let settings = [
        "train.epochs=3",
        "data.train_limit=640",
        "data.test_limit=359",
        "model.width=0.5",
        "train.learning_rate=0.2",
    ];
    let with = |bits: &str| recipe(&[&settings[..], &[&format!("quantization.grad_bits={bits}")]].concat());
    let run = |bits: &str| Run::new(&format!("grad-bits-{bits}"), &with(bits), Vec::new());
    let runs = ["fp32", "8", "4"].map(run);
    let models = runs.each_ref().map(Run::model);
    assert!(models[0] != models[1] && models[1] != models[2] && models[0] != models[2]);
    let scores = runs.each_ref().map(|run| run.evaluate().scores.top1);
    // Of ten classes.
    assert!(scores.iter().all(|top1| *top1 > 0.5), "{scores:?}");
    assert!(Run::new("grad-bits-again", &with("4"), Vec::new()).model() == models[2]);

    let (path, stop) = (run_dir("grad-bits-stopped"), AtomicBool::new(false));
    let mut observer = StopAfter { step: 7, stop: &stop };
    let outcome = train(&with("4"), &path, session(&stop, &mut observer, Vec::new()));
    assert!(matches!(outcome, Ok(Outcome::Interrupted { step: 7, .. })), "{outcome:?}");
    stop.store(false, Ordering::Relaxed);
    let outcome = resume(&path, ResumeFrom::Newest, session(&stop, &mut (), Vec::new()));
    assert!(matches!(outcome, Ok(Outcome::Complete(_))), "{outcome:?}");
    let digest = |run: &Path| inspect(run, None).expect("it is a run").checkpoint.map(|c| c.state_sha256);
    assert_eq!(digest(&path), digest(&runs[2].path));
    let resolved = std::fs::read_to_string(path.join("recipe.toml")).expect("a run has its recipe");
    assert!(resolved.contains("\ngrad_bits = 4\n"), "{resolved}");
}

/// Trainings of every method go on after a stop as if there was none: what a method learns and what it measures are state.
#[test]
fn trainings_of_every_method_resume_exactly() {
    for method in Method::ALL {
        let name = method.name();
        let nearest = |operand| {
            let defined = method.bits(operand);
            2.clamp(*defined.start(), *defined.end())
        };
        let settings = [
            "train.epochs=2".to_string(),
            "data.train_limit=256".into(),
            "data.test_limit=64".into(),
            "data.batch_size=64".into(),
            "model.width=0.5".into(),
            format!("quantization.method={name:?}"),
            format!("quantization.weight_bits={}", nearest(Operand::Weights)),
            format!("quantization.act_bits={}", nearest(Operand::Activations)),
        ];
        let recipe = recipe(&settings.each_ref().map(String::as_str));
        let whole = Run::new(&format!("whole-{name}"), &recipe, Vec::new());
        let (path, stop) = (run_dir(&format!("stopped-{name}")), AtomicBool::new(false));
        let mut observer = StopAfter { step: 3, stop: &stop };
        let outcome = train(&recipe, &path, session(&stop, &mut observer, Vec::new()));
        assert!(matches!(outcome, Ok(Outcome::Interrupted { step: 3, .. })), "{name}: {outcome:?}");
        stop.store(false, Ordering::Relaxed);
        let outcome = resume(&path, ResumeFrom::Newest, session(&stop, &mut (), Vec::new()));
        assert!(matches!(outcome, Ok(Outcome::Complete(_))), "{name}: {outcome:?}");
        let digest = |run: &Path| inspect(run, None).expect("it is a run").checkpoint.map(|c| c.state_sha256);
        assert_eq!(digest(&path), digest(&whole.path), "{name}");
        let metrics =
            |run: &Path| std::fs::read_to_string(run.join("metrics.jsonl")).expect("a run has metrics");
        assert_eq!(metrics(&path), metrics(&whole.path), "{name}");
    }
}

/// What a device cannot compute is refused, never left out; nothing is written.
#[test]
fn gradients_of_few_bits_are_refused_where_they_are_not_computed() {
    let others = backends().into_iter().filter(|backend| !["flex", "ndarray"].contains(&backend.name));
    for Backend { name, device } in others {
        let (path, stop) = (run_dir(&format!("grad-bits-{name}")), AtomicBool::new(false));
        let mut observer = ();
        let session = session(&stop, &mut observer, Vec::new());
        let session = Session { device, device_name: name.into(), ..session };
        let error = train(&recipe(&["quantization.grad_bits=8"]), &path, session).expect_err("it is refused");
        assert!(matches!(&error, TrainError::GradBits { device, .. } if device == name), "{error}");
        assert!(!path.exists(), "{name}");
    }
}

/// Options of weights, each beside the same training without it.
const WEIGHT_OPTIONS: [(&str, &str); 8] = [
    ("damping", "strategy.damping={weight=0.01}"),
    ("transition-rate", "strategy.transition_rate={target=0.001, gain=0.2}"),
    ("freezing", "strategy.freezing={from=0.02, to=0.02, momentum=0.05}"),
    ("sharpness", "strategy.sharpness={radius=0.4}"),
    ("soft-weights", "strategy.soft_weights={final_share=0.25}"),
    (
        "single-weights",
        "strategy.stochastic_precision={unit='weight', final_share=0.25, probability={kind='logarithmic', from=0.2}}",
    ),
    ("standardized", "quantization.weight_standardization=true"),
    ("teacher", "strategy.joint={}"),
];

/// Each option of weights changes the network that comes of a training, alone and all together; a training that is stopped goes on with
/// what it keeps of the weights, and ends alike.
#[test]
fn options_of_weights_do_something_and_resume_exactly() {
    let lsq = [
        "quantization.method=lsq",
        "model.width=0.25",
        "train.epochs=3",
        "train.norm_reestimation_batches=0",
    ];
    let plain = Run::new("weights-plain", &recipe(&lsq), Vec::new()).model();
    let all = ["damping", "transition-rate", "freezing", "sharpness", "soft-weights", "teacher"];
    let together = WEIGHT_OPTIONS.iter().filter(|(name, _)| all.contains(name)).map(|(_, option)| *option);
    let together = ("together", together.collect::<Vec<_>>());
    let alone = WEIGHT_OPTIONS[..7].iter().map(|(name, option)| (*name, vec![*option]));
    for (name, options) in alone.chain([together]) {
        let recipe = recipe(&[&lsq[..], &options].concat());
        let run = Run::new(&format!("weights-{name}"), &recipe, Vec::new());
        assert!(run.model() != plain, "{name} changes nothing");
        let keeps = ["transition-rate", "freezing", "together"].contains(&name);
        assert_eq!(run.path.join("checkpoints/step-00000012/notes.safetensors").exists(), keeps, "{name}");
        let losses = &run.epochs.last().expect("it has epochs").losses["student"];
        assert_eq!(
            losses.contains_key("damping"),
            ["damping", "together"].contains(&name),
            "{name}: {losses:?}"
        );

        let (path, stop) = (run_dir(&format!("weights-{name}-stopped")), AtomicBool::new(false));
        let mut observer = StopAfter { step: 7, stop: &stop };
        let outcome = train(&recipe, &path, session(&stop, &mut observer, Vec::new()));
        assert!(matches!(outcome, Ok(Outcome::Interrupted { step: 7, .. })), "{name}: {outcome:?}");
        stop.store(false, Ordering::Relaxed);
        let outcome = resume(&path, ResumeFrom::Newest, session(&stop, &mut (), Vec::new()));
        assert!(matches!(outcome, Ok(Outcome::Complete(_))), "{name}: {outcome:?}");
        let digest = |run: &Path| inspect(run, None).expect("it is a run").checkpoint.map(|c| c.state_sha256);
        assert_eq!(digest(&path), digest(&run.path), "{name}");
        let metrics =
            |run: &Path| std::fs::read_to_string(run.join("metrics.jsonl")).expect("it has metrics");
        assert_eq!(metrics(&path), metrics(&run.path), "{name}");
        // What is evaluated is quantized whole, and knows nothing of how it was trained.
        let evaluation = evaluation(&path);
        assert_eq!(Some(evaluation.scores), evaluation.reported, "{name}");
    }
}

/// With a target of next to nothing the weights' own rate falls to zero: then they stay, their steps too, and the rest goes on.
#[test]
fn a_transition_rate_of_nothing_stops_the_weights_alone() {
    let recipe = recipe(&[
        "quantization.method=lsq",
        "model.width=0.25",
        "train.epochs=3",
        "train.weight_decay=0.01",
        "strategy.transition_rate={target=1e-9, gain=1000.0}",
    ]);
    let run = Run::new("transition-rate-zero", &recipe, Vec::new());
    let [before, after] = run.last_two("");
    for (path, tensor) in &before {
        let is_quantized_weight = path.ends_with(".weight") && path.starts_with("stages");
        let stays = is_quantized_weight || path.contains("weight_quantizer");
        let is_learned = path.ends_with("weight") || path.ends_with("gamma") || path.contains("step_size");
        if stays || is_learned {
            assert_eq!(*tensor == after[path], stays, "{path}");
        }
    }
    let last = run.epochs.last().expect("it has epochs");
    assert_eq!(last.measures["weight_learning_rate"], 0.0);
    assert!(last.measures["transition_rate"] > last.measures["transition_target"], "{:?}", last.measures);
    assert!(
        warnings("transition-rate-held", &recipe).iter().all(|warning| !warning.contains("weight_step_size"))
    );
}

/// Weights that are frozen at their first flip lie on the level of their mean code, whatever step is learned.
#[test]
fn frozen_weights_lie_on_their_levels() {
    let settings = [
        "quantization.method=lsq",
        "model.width=0.25",
        "train.epochs=3",
        "train.learning_rate=0.5",
        "strategy.freezing={from=0.01, to=0.01, momentum=0.1}",
    ];
    let run = Run::new("frozen-weights", &recipe(&settings), Vec::new());
    let shares: Vec<f64> = run.epochs.iter().map(|epoch| epoch.measures["frozen"]).collect();
    assert!(shares.is_sorted() && shares[2] > 0.0 && shares[2] < 0.9, "{shares:?}");
    let model = run.model();
    let bytes =
        std::fs::read(run.path.join("checkpoints/step-00000012/notes.safetensors")).expect("it has notes");
    let notes = SafeTensors::deserialize(&bytes).expect("the file is intact");
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let (mut n_frozen, mut n_weights) = (0, 0);
    for layer in LAYERS {
        let note = |name: &str| {
            floats(notes.tensor(&format!("freezing.{layer}.{name}")).expect("it is kept").data())
        };
        let step = floats(&model[&format!("{layer}.weight_quantizer.step_size")])[0];
        let weights = floats(&model[&format!("{layer}.weight")]);
        for ((weight, frozen), mean) in weights.iter().zip(note("frozen")).zip(note("mean")) {
            n_weights += 1;
            if frozen == 1.0 {
                n_frozen += 1;
                assert_eq!(weight / step, mean.round_ties_even(), "{layer}: {weight} of steps of {step}");
            }
        }
    }
    assert!(n_frozen > 0 && n_frozen < n_weights, "{n_frozen} of {n_weights}");
}

#[derive(Default)]
struct Epochs(Vec<EpochMetrics>);

impl Observer for Epochs {
    fn epoch(&mut self, metrics: &EpochMetrics, _: &EpochTiming) {
        self.0.push(metrics.clone());
    }
}

/// A complete run.
struct Run {
    path: PathBuf,
    epochs: Vec<EpochMetrics>,
}

impl Run {
    fn new(name: &str, recipe: &Recipe, strategies: Vec<Box<dyn Strategy>>) -> Self {
        let (path, mut epochs) = (run_dir(name), Epochs::default());
        let stop = AtomicBool::new(false);
        let outcome = train(recipe, &path, session(&stop, &mut epochs, strategies));
        assert!(matches!(outcome, Ok(Outcome::Complete(_))), "{name}: {outcome:?}");
        Self { path, epochs: epochs.0 }
    }

    fn evaluate(&self) -> Evaluation {
        evaluation(&self.path)
    }

    /// Tensors of a network after each of the last two epochs.
    fn last_two(&self, network: &str) -> [BTreeMap<String, Vec<u8>>; 2] {
        let [.., before, last] = self.epochs.as_slice() else { panic!("a run of two epochs is expected") };
        [before, last].map(|epoch| checkpoint(&self.path, epoch.step, network))
    }

    /// Tensors of the deployed network at the end.
    fn model(&self) -> BTreeMap<String, Vec<u8>> {
        checkpoint(&self.path, self.epochs.last().expect("invariant: a run has an epoch").step, "")
    }

    /// The step size of layer `layer` and operand "weight" or "act" after each epoch that has one, with the phase.
    fn step_sizes(&self, layer: &str, operand: &str) -> Vec<(String, f32)> {
        let key = format!("{layer}.{operand}_step_size");
        let of_epoch = |epoch: &EpochMetrics| Some((epoch.phase.clone(), *epoch.quantizers.get(&key)?));
        self.epochs.iter().filter_map(of_epoch).collect()
    }
}

fn evaluation(run: &Path) -> Evaluation {
    let images = Locations::default_with(None).into();
    evaluate(run, Subject::default(), &default_device(), &images).expect("the run is evaluated")
}

/// The tensors of a network's `model.safetensors`, by path.
fn checkpoint(run: &Path, step: u64, network: &str) -> BTreeMap<String, Vec<u8>> {
    let prefix = if network.is_empty() { String::new() } else { format!("{network}.") };
    let path = run.join(format!("checkpoints/step-{step:08}/{prefix}model.safetensors"));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let tensors = SafeTensors::deserialize(&bytes).expect("the file is intact");
    tensors.iter().map(|(path, tensor)| (path.to_string(), tensor.data().to_vec())).collect()
}

/// What happens in a run, in order.
#[derive(Clone, Debug)]
enum Event {
    /// A strategy is asked for a loss.
    Loss {
        network: String,
        /// Bits of the logits of all networks.
        logits: Vec<Vec<u32>>,
        /// The loss of the strategies before.
        loss: f32,
    },
    /// All networks have been updated.
    Step { loss: f64 },
}

#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<Event>>>);

impl Log {
    fn push(&self, event: Event) {
        self.0.lock().expect("no test thread panicked").push(event);
    }
}

impl Strategy for Log {
    fn name(&self) -> &str {
        "log"
    }

    fn settings(&self) -> Settings {
        Settings::none()
    }

    fn loss(&self, network: &Output, outputs: &Outputs<'_>, loss: Loss) -> Loss {
        let logits = outputs.networks.iter().map(|network| network.features.logits.clone());
        let logits = logits.map(|logits| lowbit_tests::bits(&values(logits))).collect();
        let network = network.name.clone();
        self.push(Event::Loss { network, logits, loss: values(loss.total())[0] });
        let one = loss.total().zeros_like() + 1.0;
        loss.plus("own", one)
    }
}

impl Observer for Log {
    fn step(&mut self, report: &StepReport) {
        self.push(Event::Step { loss: report.loss });
    }
}

/// Runs `recipe` with a log as the last strategy; the events of each step.
fn logged(name: &str, recipe: &Recipe) -> Vec<Vec<Event>> {
    let log = Log::default();
    let (mut observer, stop) = (log.clone(), AtomicBool::new(false));
    train(recipe, &run_dir(name), session(&stop, &mut observer, vec![Box::new(log.clone())]))
        .expect("it trains");
    let events = log.0.lock().expect("no test thread panicked").clone();
    events.split_inclusive(|event| matches!(event, Event::Step { .. })).map(<[Event]>::to_vec).collect()
}

/// The networks whose loss is asked for, in turn.
fn asked(step: &[Event]) -> Vec<&str> {
    fn network(event: &Event) -> Option<&str> {
        match event {
            Event::Loss { network, .. } => Some(network),
            Event::Step { .. } => None,
        }
    }
    step.iter().filter_map(network).collect()
}

/// One image order apart, every step sees the same images: what changes the logits is an update.
#[test]
fn all_losses_come_from_outputs_before_any_update() {
    let joint = "strategy.joint={teacher={}, students=[{weight_bits=4, act_bits=4}]}";
    let steps = logged("order", &recipe(&[joint, "train.epochs=3", "data.train_limit=32"]));
    assert_eq!(steps.len(), 3);
    let mut earlier: Option<Vec<Vec<u32>>> = None;
    for step in &steps {
        assert_eq!(asked(step), ["student", "student2", "teacher"]);
        let Event::Loss { logits: first, loss: of_deployed, .. } = &step[0] else { panic!("{step:?}") };
        assert_eq!(first.len(), 3, "two students and a teacher");
        for event in &step[1..3] {
            let Event::Loss { logits, .. } = event else { panic!("{event:?}") };
            assert_eq!(logits, first, "a network was updated before all were asked");
        }
        // The caller's strategy comes after the recipe's, and what it returns is what is trained.
        let Event::Step { loss } = &step[3] else { panic!("{step:?}") };
        assert_eq!(*loss as f32, of_deployed + 1.0);
        let sorted: Vec<Vec<u32>> = first
            .iter()
            .map(|logits| {
                let mut logits: Vec<f32> = logits.iter().map(|bits| f32::from_bits(*bits)).collect();
                logits.sort_by(f32::total_cmp);
                // To three digits, which the order of the images in a sum does not change.
                logits.iter().map(|logit| (logit * 1e3).round_ties_even().to_bits()).collect()
            })
            .collect();
        if let Some(earlier) = &earlier {
            for (network, (earlier, now)) in earlier.iter().zip(&sorted).enumerate() {
                assert_ne!(earlier, now, "network {network} was not updated");
            }
        }
        earlier = Some(sorted);
    }
}

#[test]
fn mutual_and_student_only_train_the_teacher() {
    for mode in ["mutual", "student-only"] {
        let joint = format!("strategy.joint={{mode='{mode}', teacher={{}}}}");
        let run = Run::new(mode, &recipe(&[&joint]), Vec::new());
        for network in ["", "teacher"] {
            let [before, after] = run.last_two(network);
            let weights = |path: &&String| path.ends_with("weight") || path.ends_with("gamma");
            for path in before.keys().filter(weights) {
                assert_ne!(before[path], after[path], "{mode}: {path} of {network:?} stays");
            }
        }
        assert!(
            run.epochs
                .iter()
                .all(|epoch| epoch.networks["teacher"].train_loss.is_some_and(|loss| loss > 0.0))
        );
    }
}

/// At a rate of its own that is next to nothing, the teacher's weights stay while the student's change.
#[test]
fn the_teacher_has_a_learning_rate_of_its_own() {
    let joint = "strategy.joint={teacher={learning_rate_scale=1e-12}}";
    let run = Run::new("teacher-rate", &recipe(&[joint]), Vec::new());
    for (network, stays) in [("", false), ("teacher", true)] {
        let [before, after] = run.last_two(network);
        let convolutions = before.keys().filter(|path| path.contains("conv") && path.ends_with("weight"));
        let same: Vec<bool> = convolutions.map(|path| before[path] == after[path]).collect();
        assert!(!same.is_empty() && same.iter().all(|same| *same == stays), "{network:?}: {same:?}");
    }
}

/// Neither weights nor BatchNorm's statistics change, and its loss is never asked for.
#[test]
fn a_frozen_teacher_stays_as_it_is() {
    let trained = Run::new("trained", &recipe_of("digits-preresnet8-fp32", &["train.epochs=1"]), Vec::new());
    let joint = format!("strategy.joint={{mode='frozen', teacher={{init='{}'}}}}", trained.path.display());
    let run = Run::new("frozen", &recipe(&[&joint]), Vec::new());
    let [before, after] = run.last_two("teacher");
    assert_eq!(before, after, "the teacher changes");
    assert_eq!(after, checkpoint(&trained.path, 4, ""), "it is not the network that was trained");
    let [before, after] = run.last_two("");
    assert_ne!(before, after, "the student does not change");
    let steps = logged("frozen-roles", &recipe(&[&joint, "train.epochs=1"]));
    assert!(steps.iter().all(|step| asked(step) == ["student"]), "{steps:?}");
}

fn train_error(name: &str, recipe: &Recipe) -> TrainError {
    let stop = AtomicBool::new(false);
    train(recipe, &run_dir(name), session(&stop, &mut (), Vec::new())).expect_err("it is refused")
}

/// The weights below the quantizers of a low-bit network are not the network that was trained.
#[test]
fn a_teacher_begins_with_a_full_precision_network_only() {
    let low_bit = Run::new("low-bit", &recipe(&["train.epochs=1"]), Vec::new());
    for (name, mode) in [("teacher-low-bit", "mutual"), ("teacher-low-bit-frozen", "frozen")] {
        let joint =
            format!("strategy.joint={{mode='{mode}', teacher={{init='{}'}}}}", low_bit.path.display());
        let error = train_error(name, &recipe(&[&joint]));
        assert!(
            matches!(&error, TrainError::Init { key: "strategy.joint.teacher.init", source }
                if matches!(&**source, TrainError::QuantizedTeacher { .. })),
            "{error}"
        );
    }
    // Layers of the ends count.
    let ends = ["train.epochs=1", "quantization.last={method='minmax', weight_bits=8, act_bits=8}"];
    let ends = Run::new("8-bit-end", &recipe_of("digits-preresnet8-fp32", &ends), Vec::new());
    let joint = format!("strategy.joint={{teacher={{init='{}'}}}}", ends.path.display());
    assert!(matches!(train_error("teacher-8-bit-end", &recipe(&[&joint])), TrainError::Init { .. }));
    // In its first phase, a progressive training is in full precision.
    let ladder = recipe(&["strategy.progressive={ladder=['fp32']}", "checkpoint.keep_last=9"]);
    let ladder = Run::new("ladder", &ladder, Vec::new());
    let checkpoint = ladder.path.join("checkpoints/step-00000004");
    let joint = format!("strategy.joint={{teacher={{init='{}'}}}}", checkpoint.display());
    Run::new("teacher-ladder", &recipe(&[&joint, "train.epochs=1"]), Vec::new());
}

/// Of a joint run, a teacher takes the teacher and a student the student.
#[test]
fn networks_begin_with_their_like_in_a_joint_run() {
    let joint = Run::new("joint-source", &recipe(&[MUTUAL, "train.epochs=1"]), Vec::new());
    let path = joint.path.display();
    let overrides = [
        format!("strategy.joint={{mode='frozen', teacher={{init='{path}'}}}}"),
        format!("init='{path}'"),
        STILL.into(),
        "train.epochs=1".into(),
    ];
    let run = Run::new("joint-again", &recipe(&overrides.each_ref().map(String::as_str)), Vec::new());
    assert_eq!(checkpoint(&run.path, 4, "teacher"), checkpoint(&joint.path, 4, "teacher"));
    let (before, after) = (joint.model(), run.model());
    let weights = before.keys().filter(|path| path.contains("conv") && path.ends_with("weight"));
    weights.for_each(|path| assert_eq!(before[path], after[path], "{path}"));
}

/// Students of any bits begin with the weights of a run, and their quantizers with what fits these.
#[test]
fn students_begin_with_a_checkpoint_of_other_bits() {
    let overrides = ["quantization.method=lsq", "train.epochs=1"];
    let source = Run::new("source", &recipe_of("digits-preresnet8-w4a4", &overrides), Vec::new());
    let weight_of = |tensors: &BTreeMap<String, Vec<u8>>, path: &str| -> Vec<f32> {
        let chunks = tensors[path].as_chunks::<4>().0;
        chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let from_run = format!("init='{}'", source.path.display());
    let from_checkpoint = format!("init='{}'", source.path.join("checkpoints/step-00000004").display());
    for (name, init) in [("from-run", from_run), ("from-checkpoint", from_checkpoint)] {
        let students = "strategy.joint={students=[{weight_bits=3, act_bits=3}]}";
        let run = Run::new(name, &recipe(&[overrides[0], overrides[1], STILL, students, &init]), Vec::new());
        for (network, bits) in [("", 2), ("student2", 3)] {
            let tensors = checkpoint(&run.path, 4, network);
            for layer in LAYERS {
                let path = format!("{layer}.weight");
                let weight = weight_of(&tensors, &path);
                assert_eq!(weight, weight_of(&source.model(), &path), "{name}, {network:?}: {path}");
                let mean = weight.iter().map(|w| f64::from(w.abs())).sum::<f64>() / weight.len() as f64;
                let step = weight_of(&tensors, &format!("{layer}.weight_quantizer.step_size"))[0];
                check_ratio(layer, (2.0 * mean / q_max(bits)[0].sqrt()) as f32, step, 1.0, 1e-5);
            }
        }
        // The teacher has a path of its own, and none here.
        let of_teacher = weight_of(&checkpoint(&run.path, 4, "teacher"), "fc.weight");
        assert_ne!(of_teacher, weight_of(&source.model(), "fc.weight"));
    }
}

/// Nothing is left of a training whose weights cannot be had; what they come from is found again from anywhere.
#[test]
fn a_path_to_begin_with_is_checked_first_and_kept_absolute() {
    let source =
        Run::new("init-source", &recipe_of("digits-preresnet8-fp32", &["train.epochs=1"]), Vec::new());
    let cwd = std::env::current_dir().expect("there is a current directory");
    let up: PathBuf = cwd.components().skip(1).map(|_| "..").collect();
    let relative = up.join(source.path.strip_prefix("/").expect("it is absolute"));
    let frozen =
        |init: &Path| format!("strategy.joint={{mode='frozen', teacher={{init='{}'}}}}", init.display());
    let nope = Path::new("runs/nope");
    let other = "model.width=2.0";
    for (key, overrides) in [
        ("init", vec!["init='runs/nope'".to_string()]),
        ("strategy.joint.teacher.init", vec![frozen(nope)]),
        ("init", vec![format!("init='{}'", relative.display()), other.into()]),
        ("strategy.joint.teacher.init", vec![frozen(&relative), other.into()]),
    ] {
        let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
        let error = train_error("init-missing", &recipe(&overrides));
        assert!(matches!(&error, TrainError::Init { key: got, .. } if *got == key), "{error}");
        assert!(error.to_string().starts_with(&format!("{key}: ")), "{error}");
        let left = Path::new(env!("CARGO_TARGET_TMPDIR")).join("strategies/init-missing");
        assert!(!left.exists(), "a run directory was left behind after {error}");
    }
    // So is that of a caller's own strategy.
    let stop = AtomicBool::new(false);
    let own = vec![Box::new(Wrong::Networks(|networks| {
        networks[0].init = Some(Init { path: "runs/nope".into(), key: "own.init" });
    })) as Box<dyn Strategy>];
    let error = train(&recipe(&[]), &run_dir("init-missing"), session(&stop, &mut (), own));
    let error = error.expect_err("it is refused").to_string();
    let expected = format!("own.init: {}", cwd.join("runs/nope").display());
    assert!(error.starts_with(&expected), "{error}, expected {expected}");
    let overrides = [format!("init='{}'", relative.display()), frozen(&relative), "train.epochs=1".into()];
    let run = Run::new("init-relative", &recipe(&overrides.each_ref().map(String::as_str)), Vec::new());
    let kept = RunDir::open(&run.path).and_then(|run| run.recipe()).expect("it has a recipe");
    let teacher = kept.strategy.joint.and_then(|joint| joint.teacher.init);
    assert_eq!([kept.init, teacher], [Some(cwd.join(&relative)), Some(cwd.join(&relative))]);
}

/// The adapters of taps that are used are trained; the others stay.
#[test]
fn hints_train_adapters_to_a_teacher_of_another_width() {
    let joint = "strategy.joint={teacher={width=0.5}}";
    let hint = "strategy.hint={weight=1.0, taps=['stages.1', 'stages.2']}";
    let run = Run::new("hint", &recipe(&[joint, hint]), Vec::new());
    let [before, after] = run.last_two("");
    let adapters = before.keys().filter(|path| path.starts_with("adapters."));
    let changed: Vec<bool> = adapters.map(|path| before[path] != after[path]).collect();
    assert_eq!(changed, [false, true, true], "{:?}", before.keys());
    let evaluation = run.evaluate();
    assert_eq!(Some(evaluation.scores), evaluation.reported);
    // The same widths need none.
    let run = Run::new("hint-same", &recipe(&[MUTUAL, hint, "train.epochs=1"]), Vec::new());
    assert!(!run.model().keys().any(|path| path.starts_with("adapters.")));
}

/// Checkpoints have torchvision's names; a hand-over to the next phase, a teacher of another block and adapters work on
/// them.
#[test]
fn imagenet_layouts_train_and_evaluate_with_torchvisions_names() {
    let run = Run::new(
        "imagenet",
        &recipe(&[
            "model={family='resnet', layout='imagenet', depth=18, width=0.0625}",
            "strategy.joint={teacher={depth=50}}",
            "strategy.hint={weight=1.0, taps=['layer1', 'layer4']}",
            "strategy.stochastic_precision={}",
            "strategy.two_stage=true",
        ]),
        Vec::new(),
    );
    let [before, after] = run.last_two("");
    for path in ["layer2.0.downsample.0.weight", "layer2.0.downsample.1.gamma", "adapters.3.weight"] {
        assert_ne!(before[path], after[path], "{path} does not change");
    }
    assert_eq!(before["adapters.1.weight"], after["adapters.1.weight"], "its tap is not used");
    let [before, after] = run.last_two("teacher");
    assert_ne!(
        before["layer4.2.conv3.weight"], after["layer4.2.conv3.weight"],
        "the teacher does not change"
    );
    let evaluation = run.evaluate();
    assert_eq!(Some(evaluation.scores), evaluation.reported);
}

/// Weights, and with them every quantity that a recalibration measures, do not move: what changes a step size is the
/// hand-over.
const STILL: &str = "train.learning_rate=1e-12";

/// Largest code of signed weights and of unsigned activations.
fn q_max(bits: u32) -> [f64; 2] {
    [f64::from((1 << (bits - 1)) - 1), f64::from((1 << bits) - 1)]
}

fn check_ratio(what: &str, before: f32, after: f32, expected: f64, relative: f64) {
    let ratio = f64::from(after) / f64::from(before);
    assert!((ratio / expected - 1.0).abs() < relative, "{what}: times {ratio}, expected times {expected}");
}

fn lsq(name: &str, strategy: &[&str], phases: &[&str], quantizer_state: &str) -> Run {
    let tables: Vec<String> =
        phases.iter().map(|name| format!("{name}={{quantizer_state='{quantizer_state}'}}")).collect();
    // An epoch for each, and for the first one.
    let epochs = format!("train.epochs={}", phases.len() + 1);
    let phases = format!("phases={{{}}}", tables.join(", "));
    let mut overrides = vec!["quantization.method=lsq", STILL, &phases, "data.train_limit=32", &epochs];
    overrides.extend(strategy);
    Run::new(name, &recipe(&overrides), Vec::new())
}

const LAYERS: [&str; 3] = ["stages.0.0.conv1", "stages.1.0.conv2", "stages.2.0.shortcut"];

/// A product of two f32 in place of one: an ulp each, and another of the ratio.
const ULPS: f64 = 4e-7;

/// Codes between the outermost ones, of weights and of activations.
fn span(bits: u32) -> [f64; 2] {
    [q_max(bits)[1]; 2]
}

#[test]
fn progressive_rescales_step_sizes_by_the_ratio_of_the_spans() {
    let ladder = "strategy.progressive={ladder=[8, 4]}";
    let run = lsq("rescaled", &[ladder], &["w4a4", "w2a2"], "rescaled");
    for layer in LAYERS {
        for (operand, name) in ["weight", "act"].into_iter().enumerate() {
            let what = format!("{layer}, {name}");
            let steps = run.step_sizes(layer, name);
            let phases: Vec<&str> = steps.iter().map(|(phase, _)| phase.as_str()).collect();
            assert_eq!(phases, ["w8a8", "w4a4", "w2a2"]);
            let [s8, s4, s2] = [8, 4, 2].map(|bits| span(bits)[operand]);
            check_ratio(&what, steps[0].1, steps[1].1, s8 / s4, ULPS);
            check_ratio(&what, steps[1].1, steps[2].1, s4 / s2, ULPS);
        }
    }
}

/// From `2 mean|x| / sqrt(q_max)` at the old to that at the new bit width. Exactly so for the weights, and for the input of
/// the first layer, before which nothing is quantized.
#[test]
fn progressive_recalibrates_step_sizes() {
    let ladder = "strategy.progressive={ladder=[8, 4]}";
    let run = lsq("recalibrated", &[ladder], &["w4a4", "w2a2"], "recalibrated");
    let weights = LAYERS.map(|layer| (layer, "weight", 0));
    for (layer, name, operand) in weights.into_iter().chain([(LAYERS[0], "act", 1)]) {
        let steps = run.step_sizes(layer, name);
        let [q8, q4, q2] = [8, 4, 2].map(|bits| q_max(bits)[operand]);
        // The images of a calibration batch come in another order, which moves the mean by some ulp.
        let tolerance = if operand == 0 { ULPS } else { 1e-5 };
        check_ratio(&format!("{layer}, {name}"), steps[0].1, steps[1].1, (q8 / q4).sqrt(), tolerance);
        check_ratio(&format!("{layer}, {name}"), steps[1].1, steps[2].1, (q4 / q2).sqrt(), tolerance);
    }
}

/// A step size stays where its bit width does: each phase lowers the bits of the weights or those of the activations.
#[test]
fn nested_in_progressive_two_stage_keeps_the_step_sizes_of_the_other_operand() {
    let strategy = ["strategy.progressive={ladder=[8, 4]}", "strategy.two_stage=true"];
    let phases = ["w8a8", "w4a8", "w4a4", "w2a4", "w2a2"];
    let root = |bits| q_max(bits).map(f64::sqrt);
    let [spans, roots] = [[8, 4, 2].map(span), [8, 4, 2].map(root)];
    for (state, [of_8, of_4, of_2]) in [("rescaled", spans), ("recalibrated", roots)] {
        let run = lsq(&format!("nested-{state}"), &strategy, &phases, state);
        for layer in LAYERS {
            let weight = run.step_sizes(layer, "weight");
            let names: Vec<&str> = weight.iter().map(|(phase, _)| phase.as_str()).collect();
            assert_eq!(names, ["w8a32", "w8a8", "w4a8", "w4a4", "w2a4", "w2a2"]);
            let steps: Vec<f32> = weight.iter().map(|(_, step)| *step).collect();
            for pair in steps.chunks_exact(2) {
                assert_eq!(pair[0], pair[1], "{state}, {layer}: kept where the bit width stays");
            }
            check_ratio(layer, steps[1], steps[2], of_8[0] / of_4[0], ULPS);
            check_ratio(layer, steps[3], steps[4], of_4[0] / of_2[0], ULPS);
        }
        let act = run.step_sizes(LAYERS[0], "act");
        let names: Vec<&str> = act.iter().map(|(phase, _)| phase.as_str()).collect();
        assert_eq!(names, ["w8a8", "w4a8", "w4a4", "w2a4", "w2a2"]);
        assert_eq!((act[0].1, act[2].1), (act[1].1, act[3].1), "{state}: kept where the bit width stays");
        // Rescaled by a product of two numbers; a calibration sees the images in another order.
        check_ratio("activations", act[1].1, act[2].1, of_8[1] / of_4[1], 1e-5);
        check_ratio("activations", act[3].1, act[4].1, of_4[1] / of_2[1], 1e-5);
    }
}

/// Divides the training into two phases of the same precision.
#[derive(Debug)]
struct Split(OptimizerState);

impl Strategy for Split {
    fn name(&self) -> &str {
        "split"
    }

    fn settings(&self) -> Settings {
        Settings::of(&self.0)
    }

    fn phases(&self, phases: Vec<Phase>) -> Vec<Phase> {
        let halves = |phase: Phase| {
            let name = |half: &str| format!("{}-{half}", phase.name);
            let second = Phase { name: name("second"), optimizer_state: self.0, ..phase.clone() };
            [Phase { name: name("first"), ..phase }, second]
        };
        phases.into_iter().flat_map(halves).collect()
    }
}

/// With everything handed over, a training in two phases is the training in one, bit for bit.
#[test]
fn a_phase_goes_on_where_the_one_before_ended() {
    let recipe =
        recipe(&["quantization.method=lsq", "train.schedule={kind='constant'}", "train.warmup_epochs=0"]);
    let whole = Run::new("whole", &recipe, Vec::new()).model();
    let split = |state: OptimizerState| {
        let run = Run::new(&format!("split-{state:?}"), &recipe, vec![Box::new(Split(state))]);
        assert_eq!(run.epochs.len(), 2);
        assert_eq!(run.epochs[1].phase, "w2a2-second");
        run.model()
    };
    assert!(split(OptimizerState::Kept) == whole, "a kept state differs from a training in one phase");
    assert!(split(OptimizerState::Fresh) != whole, "a fresh state is the same as a training in one phase");
}

/// What a phase keeps of the optimizer is its momentum: without any, there is nothing to keep.
#[test]
fn optimizer_state_between_precisions() {
    let run = |momentum: &str, state: &str| {
        let optimizer = format!("train.optimizer={{kind='sgd', momentum={momentum}}}");
        let phases = format!("phases={{w2a2={{optimizer_state='{state}'}}}}");
        let overrides = ["quantization.method=lsq", "strategy.two_stage=true", &optimizer, &phases];
        Run::new(&format!("optimizer-{momentum}-{state}"), &recipe(&overrides), Vec::new()).model()
    };
    assert!(run("0.9", "kept") != run("0.9", "fresh"));
    assert!(run("0.0", "kept") == run("0.0", "fresh"));
}

/// Stops the training after a step.
struct StopAfter<'a> {
    step: u64,
    stop: &'a AtomicBool,
}

impl Observer for StopAfter<'_> {
    fn step(&mut self, report: &StepReport) {
        // The report is of the state after the step.
        if report.step == self.step {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// A training that ends in the middle of stochastic precision, half of the network in full precision at its last step.
#[test]
fn everything_is_quantized_at_evaluation() {
    let overrides = ["quantization.method=lsq"];
    let stochastic_table =
        "strategy.stochastic_precision={probability={kind='stepped', values=[0.5]}, final_share=0.0}";
    let with_table = recipe(&[overrides[0], stochastic_table]);
    let run = Run::new("stochastic", &with_table, Vec::new());
    for epoch in &run.epochs {
        let fraction = epoch.quantized_fraction.expect("the strategy decides it");
        assert!(fraction > 0.1 && fraction < 0.9, "{fraction}");
    }
    let first = run.evaluate();
    assert_eq!(Some(first.scores), first.reported, "evaluated in training and afterwards");
    assert_eq!(run.evaluate().scores, first.scores, "evaluated twice");

    // The same training by a recipe that knows nothing of the strategy, with which it is evaluated.
    let own = |p: f64| -> Vec<Box<dyn Strategy>> {
        vec![Box::new(stochastic(Probability::Stepped { values: vec![p] }, 0.0))]
    };
    let bare = Run::new("stochastic-own", &recipe(&overrides), own(0.5));
    assert!(bare.model() == run.model(), "the same strategy from a recipe and from a caller differ");
    let without = bare.evaluate();
    assert_eq!(without.scores, first.scores, "evaluated without the strategy");
    assert_eq!(Some(without.scores), without.reported);
    assert!(Run::new("plain", &recipe(&overrides), Vec::new()).model() != run.model());

    // With others it does not go on.
    let stop = AtomicBool::new(false);
    let resumed = |strategies| resume(&bare.path, ResumeFrom::Newest, session(&stop, &mut (), strategies));
    for other in [Vec::new(), own(0.25)] {
        let outcome = resumed(other);
        assert!(matches!(outcome, Err(TrainError::OtherStrategies { .. })), "{outcome:?}");
    }
    assert!(matches!(resumed(own(0.5)), Ok(Outcome::Complete(_))));

    // Stopped in the second epoch and resumed.
    let path = run_dir("stochastic-resumed");
    let stop = AtomicBool::new(false);
    let outcome =
        train(&with_table, &path, session(&stop, &mut StopAfter { step: 5, stop: &stop }, Vec::new()));
    assert!(matches!(outcome, Ok(Outcome::Interrupted { step: 5, .. })), "{outcome:?}");
    let stopped = [evaluation(&path), evaluation(&path)].map(|evaluation| evaluation.scores);
    assert_eq!(stopped[0], stopped[1]);
    stop.store(false, Ordering::Relaxed);
    let outcome = resume(&path, ResumeFrom::Newest, session(&stop, &mut (), Vec::new()));
    assert!(matches!(outcome, Ok(Outcome::Complete(_))), "{outcome:?}");
    assert_eq!(evaluation(&path).scores, first.scores, "evaluated after a resume");
    let digest = |run: &Path| inspect(run, None).expect("it is a run").checkpoint.map(|c| c.state_sha256);
    assert_eq!(digest(&path), digest(&run.path));
}

/// Follows the warnings of a training.
#[derive(Default)]
struct Warned(Vec<String>);

impl Observer for Warned {
    fn warning(&mut self, message: &str) {
        self.0.push(message.into());
    }
}

/// What a training warns of.
fn warnings(name: &str, recipe: &Recipe) -> Vec<String> {
    let (mut warned, stop) = (Warned::default(), AtomicBool::new(false));
    train(recipe, &run_dir(name), session(&stop, &mut warned, Vec::new())).expect("it trains");
    warned.0
}

/// Learned steps and clip values stay where the quantizers are those of the run that a training begins with.
#[test]
fn a_run_of_the_same_bits_hands_over_its_quantizers() {
    for method in ["lsq", "pact"] {
        let method = format!("quantization.method={method}");
        let source =
            Run::new("hand-over-source", &recipe(&[&method, "train.learning_rate=0.02"]), Vec::new());
        let init = format!("init='{}'", source.path.display());
        let begun = |bits: u32| {
            let bits = ["weight_bits", "act_bits"].map(|key| format!("quantization.{key}={bits}"));
            let overrides = [&method, &init, STILL, &bits[0], &bits[1], "train.epochs=1"];
            Run::new("hand-over", &recipe(&overrides), Vec::new()).model()
        };
        let learned = |path: &&String| path.ends_with("step_size") || path.ends_with("clip_value");
        let (old, same, other) = (source.model(), begun(2), begun(4));
        assert!(old.keys().filter(learned).count() >= 8, "{method}: nothing is learned");
        for path in old.keys().filter(learned) {
            assert_eq!(old[path], same[path], "{method}: {path} is not handed over");
            assert_ne!(old[path], other[path], "{method}: {path} is not calibrated for other bits");
        }
    }
}

/// The parts of a loss are logged apart and add up; what is compared with the test images is the labels' loss alone.
#[test]
fn the_parts_of_a_loss_are_logged_apart() {
    let hint = "strategy.hint={weight=1.0}";
    let run = Run::new("parts", &recipe(&["model.family=resnet", MUTUAL, hint]), Vec::new());
    for epoch in &run.epochs {
        let student = &epoch.losses["student"];
        assert_eq!(student.keys().collect::<Vec<_>>(), ["distill", "hint", "labels", "total"]);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-5 * b, "{a}, expected {b}");
        close(student["distill"] + student["hint"] + student["labels"], student["total"]);
        close(student["labels"], 0.7 * epoch.train.loss);
        let teacher = &epoch.losses["teacher"];
        assert_eq!(teacher.keys().collect::<Vec<_>>(), ["distill", "labels", "total"]);
        assert_eq!(epoch.networks["teacher"].train_loss, Some(teacher["total"]));
    }
    let plain = Run::new("parts-plain", &recipe(&["train.label_smoothing=0.5"]), Vec::new());
    let losses = &plain.epochs[0].losses["student"];
    assert_eq!(losses.keys().collect::<Vec<_>>(), ["smoothed_labels", "total"]);
    assert!((losses["smoothed_labels"] - plain.epochs[0].train.loss).abs() > 0.01, "{losses:?}");
}

/// Adds a part to the loss whose value is 0 and whose gradient is infinite.
#[derive(Debug)]
struct Infinite;

impl Strategy for Infinite {
    fn name(&self) -> &str {
        "infinite"
    }

    fn settings(&self) -> Settings {
        Settings::none()
    }

    fn loss(&self, network: &Output, _: &Outputs<'_>, loss: Loss) -> Loss {
        let zero = network.features.logits.clone().sum() * 0.0;
        loss.plus("own", (zero * 1e-30).sqrt())
    }
}

/// Scaled down by its norm, an infinite gradient would be none: the training would stand still.
#[test]
fn a_gradient_that_is_not_finite_is_not_clipped_to_nothing() {
    let stop = AtomicBool::new(false);
    let recipe = recipe(&["train.gradient_clip=1.0"]);
    let mut observer = ();
    let session = session(&stop, &mut observer, vec![Box::new(Infinite)]);
    let error = train(&recipe, &run_dir("infinite"), session).expect_err("it has no gradient");
    let TrainError::NonFinite { what: Divergence::GradientNorm(norm), step: 1, place, .. } = &error else {
        panic!("{error}")
    };
    assert!(!norm.is_finite() && place.starts_with("the gradient of stem"), "{error}");
}

/// With the learning rate next to nothing, parameters that are learned by name only are named.
#[test]
fn learned_parameters_that_do_not_move_are_named() {
    let moved = warnings("moved", &recipe(&["quantization.method=lsq"]));
    assert_eq!(moved, [""; 0]);
    let stuck = warnings("stuck", &recipe(&["quantization.method=lsq", STILL]));
    let message = "stages.0.0.conv1.weight_step_size has not moved since the phase began";
    assert!(stuck.iter().any(|warning| warning.starts_with(message)), "{stuck:?}");
    assert!(stuck.len() <= 8, "of many, one is named: {stuck:?}");
    let once = stuck.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!(once, stuck.len(), "each is said once");
    // The only evaluation of a phase is enough.
    let short = warnings("short", &recipe(&["quantization.method=lsq", STILL, "train.epochs=1"]));
    assert!(short.iter().any(|warning| warning.starts_with(message)), "{short:?}");
    // Meant to stay.
    let frozen = "train.quantizers={learning_rate_scale=0.0}";
    assert_eq!(warnings("meant", &recipe(&["quantization.method=lsq", frozen])), [""; 0]);
}

/// A clip value learns from the first step on, with the defaults.
#[test]
fn clip_values_of_pact_move() {
    let run = Run::new("pact", &recipe(&["quantization.method=pact", "train.epochs=3"]), Vec::new());
    for (name, first) in &run.epochs[0].quantizers {
        let values: Vec<f32> = run.epochs.iter().map(|epoch| epoch.quantizers[name]).collect();
        assert!(*first < 6.0, "{name} begins at {first}, beyond all activations");
        assert!(values.windows(2).all(|pair| pair[0] != pair[1]), "{name} stays: {values:?}");
    }
    assert!(run.epochs[0].quantizers.len() >= 8);
}

#[test]
fn a_moving_average_longer_than_a_phase_is_warned_of() {
    let found = warnings("average", &recipe(&["train.ema_decay=0.9999"]));
    let message =
        "train.ema_decay=0.9999 averages over 10000 steps, but phase w2a2 has 8: its warm-up shortens it";
    assert!(found.len() == 1 && found[0].starts_with(message), "{found:?}");
    assert_eq!(warnings("short-average", &recipe(&["train.ema_decay=0.8"])), [""; 0]);
}

/// A teacher that learns from the labels alone is the same beside students of one phase and of two, unless it goes by theirs.
#[test]
fn a_teacher_keeps_its_own_schedule_across_phases() {
    let teacher = |name: &str, schedule: &str, two_stage: &str| {
        let joint = format!("strategy.joint={{mode='student-only', teacher={{schedule='{schedule}'}}}}");
        let overrides =
            [&joint, two_stage, "train.ema_decay=0.5", "train.epochs=3", "train.weight_decay=0.01"];
        let run = Run::new(name, &recipe(&overrides), Vec::new());
        checkpoint(&run.path, 12, "teacher")
    };
    let whole = teacher("teacher-whole", "whole-training", "strategy.two_stage=false");
    assert_eq!(teacher("teacher-whole-2", "whole-training", "strategy.two_stage=true"), whole);
    assert_eq!(teacher("teacher-phase", "per-phase", "strategy.two_stage=false"), whole);
    assert_ne!(teacher("teacher-phase-2", "per-phase", "strategy.two_stage=true"), whole);
}

#[test]
fn a_teacher_of_other_images_is_warned_of() {
    let other = ["data.train_limit=64", "train.epochs=1"];
    let trained = Run::new("other-images", &recipe_of("digits-preresnet8-fp32", &other), Vec::new());
    let joint = format!("strategy.joint={{mode='frozen', teacher={{init='{}'}}}}", trained.path.display());
    let found = warnings("other-teacher", &recipe(&[&joint, "train.epochs=1"]));
    let message =
        "strategy.joint.teacher.init: the teacher was trained on other images of digits (64 with crc32";
    assert!(found.len() == 1 && found[0].starts_with(message), "{found:?}");
    assert_eq!(
        warnings("same-teacher", &recipe(&[&joint, "train.epochs=1", "data.train_limit=64"])),
        [""; 0]
    );
}

/// Four steps are an epoch: the fifth and the sixth batch are of the next one.
#[test]
fn more_batches_than_an_epoch_has_are_taken_from_the_next() {
    let run = |n: u32| {
        let n = format!("train.norm_reestimation_batches={n}");
        Run::new(&n, &recipe(&[&n, "train.epochs=1"]), Vec::new()).model()
    };
    let [four, five, six] = [4, 5, 6].map(run);
    assert!(four != five && five != six);
}

#[test]
fn weights_that_are_missing_are_named() {
    let error = train_error("foreign", &recipe(&["init='x.pth'"])).to_string();
    assert!(error.starts_with("init: weights ") && error.contains("x.pth: it cannot be read"), "{error}");
}

// The example of the documentation.

#[test]
fn own_strategy_quantizes_from_the_output_to_the_input() {
    let paths = ["stages.0.0.conv1", "stages.0.0.conv2", "stages.1.0.conv1", "stages.2.0.shortcut", "fc"];
    let layers = paths.map(|path| QuantizedLayer { path: path.into(), error: None });
    let quantized = |phase_step: u64| {
        let moment = Moment { seed: 0, step: 100 + phase_step, phase_step, phase_steps: 8 };
        let selections = own_strategy::BackToFront.select(&moment, &layers).expect("it decides");
        selections.iter().map(|selection| u32::from(*selection == Selection::All)).collect::<Vec<_>>()
    };
    for (steps, expected) in [
        ([0, 1], [0, 0, 0, 0, 1]),
        ([2, 3], [0, 0, 0, 1, 1]),
        ([4, 5], [0, 0, 1, 1, 1]),
        ([6, 7], [1, 1, 1, 1, 1]),
    ] {
        steps.into_iter().for_each(|step| assert_eq!(quantized(step), expected, "step {step}"));
    }
}

/// On a rung in full precision there are no stages.
#[test]
fn own_strategy_composes_with_a_ladder() {
    assert_eq!(
        own_strategy::BackToFront.select(&Moment { seed: 0, step: 0, phase_step: 0, phase_steps: 8 }, &[]),
        Some(Vec::new())
    );
    let ladder = recipe(&["strategy.progressive={ladder=['fp32']}"]);
    let run = Run::new("own-ladder", &ladder, vec![Box::new(own_strategy::BackToFront)]);
    let phases: Vec<&str> = run.epochs.iter().map(|epoch| epoch.phase.as_str()).collect();
    assert_eq!(phases, ["w32a32", "w2a2"]);
}

#[test]
fn own_strategy_trains() {
    let run = Run::new("own", &recipe(&["train.epochs=3"]), vec![Box::new(own_strategy::BackToFront)]);
    let fractions: Vec<f64> = run.epochs.iter().filter_map(|epoch| epoch.quantized_fraction).collect();
    // PreResNet-8 has 2, 3 and 3 quantized layers in its stages.
    let expected: Vec<f32> = [3.0, 6.0, 8.0].map(|layers| layers / 8.0).to_vec();
    let got: Vec<f32> = fractions.iter().map(|fraction| *fraction as f32).collect();
    assert_close("share of the layers", &got, &expected, Tolerance::relative(1e-6));
}

// A strategy of a user's crate.

fn second_teacher(weight: f64) -> Vec<Box<dyn Strategy>> {
    let model = ModelConfig { width: 0.5, ..ModelConfig::new(Family::ResNet, 8) };
    vec![Box::new(second_teacher::SecondTeacher { model, weight })]
}

/// It adds a network and a part of the loss, to a training that has a teacher already.
#[test]
fn a_second_teacher_trains_along_and_resumes_exactly() {
    let recipe = recipe(&[MUTUAL, "strategy.two_stage=true"]);
    let run = Run::new("second-teacher", &recipe, second_teacher(0.5));
    let [before, after] = run.last_two("second-teacher");
    assert!(before.keys().eq(after.keys()) && before != after, "the second teacher does not learn");
    for epoch in &run.epochs {
        let parts = |network: &str| epoch.losses[network].keys().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(parts("student"), ["distill", "labels", "second_teacher", "total"]);
        assert_eq!(parts("teacher"), ["distill", "labels", "total"], "it is not this strategy's");
        assert_eq!(parts("second-teacher"), ["labels", "total"], "it is not joint's");
        assert!(epoch.networks["second-teacher"].test.is_some());
    }
    // It is what trains the student.
    assert_ne!(Run::new("one-teacher", &recipe, Vec::new()).model(), run.model());

    let (path, stop) = (run_dir("second-teacher-stopped"), AtomicBool::new(false));
    let mut observer = StopAfter { step: 6, stop: &stop };
    let outcome = train(&recipe, &path, session(&stop, &mut observer, second_teacher(0.5)));
    assert!(matches!(outcome, Ok(Outcome::Interrupted { step: 6, .. })), "{outcome:?}");
    let obstacle = inspect(&path, None).expect("it is a run").obstacle.expect("its strategy is not known");
    assert!(
        obstacle.ends_with("is missing; a program that has its strategies goes on with it"),
        "{obstacle}"
    );
    stop.store(false, Ordering::Relaxed);
    let resumed = |strategies| resume(&path, ResumeFrom::Newest, session(&stop, &mut (), strategies));
    for (strategies, message) in [
        (Vec::new(), "strategy \"second-teacher\", which it was made with, is missing"),
        (second_teacher(0.25), "strategy \"second-teacher\" had the settings {\"model\":"),
        (
            second_teacher(0.5).into_iter().chain([Box::new(Log::default()) as Box<dyn Strategy>]).collect(),
            "it was made without strategy \"log\"",
        ),
    ] {
        let error = resumed(strategies).expect_err("it is refused");
        assert!(matches!(error, TrainError::OtherStrategies { .. }), "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
    let outcome = resumed(second_teacher(0.5));
    assert!(matches!(outcome, Ok(Outcome::Complete(_))), "{outcome:?}");
    let digest = |run: &Path| inspect(run, None).expect("it is a run").checkpoint.map(|c| c.state_sha256);
    assert_eq!(digest(&path), digest(&run.path));
    let metrics = |run: &Path| std::fs::read(run.join("metrics.jsonl")).expect("a run has metrics");
    assert!(metrics(&path) == metrics(&run.path), "the metrics differ");
}

/// Answers what no training can go by.
#[derive(Debug)]
enum Wrong {
    Select(fn(usize) -> Vec<Selection>),
    Networks(fn(&mut Vec<NetworkSpec>)),
    Phases(fn(Phase) -> Vec<Phase>),
}

impl Strategy for Wrong {
    fn name(&self) -> &str {
        "wrong"
    }

    fn settings(&self) -> Settings {
        Settings::none()
    }

    fn networks(&self, mut networks: Vec<NetworkSpec>) -> Vec<NetworkSpec> {
        if let Self::Networks(change) = self {
            change(&mut networks);
        }
        networks
    }

    fn select(&self, _: &Moment, layers: &[QuantizedLayer]) -> Option<Vec<Selection>> {
        match self {
            Self::Select(selections) => Some(selections(layers.len())),
            Self::Networks(_) | Self::Phases(_) => None,
        }
    }

    fn phases(&self, phases: Vec<Phase>) -> Vec<Phase> {
        match self {
            Self::Phases(change) => phases.into_iter().flat_map(change).collect(),
            Self::Networks(_) | Self::Select(_) => phases,
        }
    }
}

#[test]
fn answers_that_no_training_can_go_by_are_refused_by_name() {
    let teacher = || NetworkSpec::teacher("own", ModelConfig::new(Family::ResNet, 8));
    assert!(teacher().is_trained);
    for (index, (wrong, problem)) in [
        (Wrong::Select(|n| vec![Selection::All; n - 1]), "selects parts of 7 layers, but 8 are quantized"),
        (Wrong::Select(|n| vec![Selection::All; n + 1]), "selects parts of 9 layers, but 8 are quantized"),
        (
            Wrong::Select(|n| vec![Selection::ChannelGroups(Vec::new()); n]),
            "selects from no group of channels of layer stages.0.0.conv1",
        ),
        (Wrong::Networks(Vec::clear), "moves the network \"student\""),
        (Wrong::Networks(|networks| networks[0].name = "own".into()), "moves the network \"student\""),
        (
            Wrong::Networks(|networks| networks.extend(networks.clone())),
            "makes two networks named \"student\": each needs a name of its own",
        ),
        (
            Wrong::Networks(|networks| {
                networks.push(NetworkSpec { name: "../x".into(), ..networks[0].clone() })
            }),
            "names a network \"../x\"",
        ),
        (Wrong::Networks(|networks| networks[0].trains_throughout = true), "lets network \"student\" train"),
        (
            Wrong::Networks(|networks| networks[0].adapts_to = Some("none".into())),
            "adapts the feature maps of network \"student\" to \"none\"",
        ),
        (
            Wrong::Phases(|phase| vec![phase; 2]),
            "makes two phases named \"w2a2\": each needs a name of its own",
        ),
        (Wrong::Phases(|_| Vec::new()), "leaves no phase to train in"),
    ]
    .into_iter()
    .enumerate()
    {
        let (stop, path) = (AtomicBool::new(false), run_dir(&format!("wrong-{index}")));
        let is_asked_in_steps = matches!(wrong, Wrong::Select(_));
        let outcome = train(&recipe(&[]), &path, session(&stop, &mut (), vec![Box::new(wrong)]));
        let error = outcome.expect_err("it is refused");
        assert!(matches!(error, TrainError::Strategy(_) | TrainError::Phases(_)), "{error}");
        assert!(error.to_string().starts_with(&format!("strategy \"wrong\" {problem}")), "{error}");
        assert_eq!(path.exists(), is_asked_in_steps, "{problem}");
    }
}

/// Epochs that a strategy gives its phases are those of the training in all, or the recipe names those of each phase.
#[test]
fn epochs_of_a_strategy_are_those_of_the_training() {
    let two_epochs = |phase: Phase| {
        let train = TrainRecipe { epochs: 2, ..phase.train.clone() };
        vec![Phase { train, ..phase }]
    };
    let trained = |changes: &[&str]| {
        let (mut warned, stop, path) = (Warned::default(), AtomicBool::new(false), run_dir("own-epochs"));
        let strategies: Vec<Box<dyn Strategy>> = vec![Box::new(Wrong::Phases(two_epochs))];
        let outcome = train(&recipe(changes), &path, session(&stop, &mut warned, strategies));
        assert_eq!(warned.0, [""; 0]);
        outcome.map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(
        trained(&["train.epochs=1"]).unwrap_err(),
        "train.epochs=1, but the phases have 2 epochs together, as the strategies give them (2 of w2a2): set train.epochs=2, or give each \
         of [phases.NAME] its epochs"
    );
    assert_eq!(trained(&["train.epochs=2"]), Ok(()));
    assert_eq!(trained(&["train.epochs=4", "phases.w2a2.epochs=1"]), Ok(()));
}

#[test]
fn the_documentation_quotes_the_example() {
    let read = |path: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let example = read("crates/lowbit-train/examples/own_strategy.rs");
    let (_, rest) = example.split_once("docs/methods/strategies.md.\n").expect("the beginning is marked");
    let (code, _) = rest.split_once("// end\n").expect("the end is marked");
    assert!(
        read("docs/methods/strategies.md").contains(code),
        "docs/methods/strategies.md is not up to date"
    );
}

/// Every parameter that a quantizer learns moves in a training of the default recipe: none is held where no gradient reaches it.
#[test]
fn learned_parameters_of_quantizers_move() {
    for (method, per_layer) in [("lsq", 2), ("pact", 1)] {
        let recipe = recipe(&[&format!("quantization.method={method}")]);
        let run = Run::new(&format!("moving-{method}"), &recipe, Vec::new());
        let [first, .., last] = run.epochs.as_slice() else { panic!("a run of two epochs is expected") };
        // Three blocks of two convolutions, and two shortcuts.
        assert_eq!(first.quantizers.len(), per_layer * 8, "{method}: {:?}", first.quantizers.keys());
        for (name, value) in &first.quantizers {
            assert_ne!(*value, last.quantizers[name], "{method}: {name} does not move");
        }
    }
}

/// The maps of an image, `[channels, side, side]`.
struct Maps {
    side: usize,
    values: Vec<f64>,
}

impl Maps {
    fn map(&self, f: impl Fn(usize, f64) -> f64) -> Self {
        let plane = self.side * self.side;
        let values = self.values.iter().enumerate().map(|(i, &value)| f(i / plane, value)).collect();
        Self { side: self.side, values }
    }

    /// A convolution with padding that keeps the size at stride 1.
    fn convolve(&self, weight: &[f64], out: usize, stride: usize) -> Self {
        let channels = self.values.len() / (self.side * self.side);
        let kernel = (weight.len() / (out * channels)).isqrt();
        let side = self.side.div_ceil(stride);
        let mut values = Vec::new();
        for idx in 0..out * side * side {
            let (o, row, column) = (idx / (side * side), idx / side % side, idx % side);
            let mut sum = 0.0;
            for tap in 0..channels * kernel * kernel {
                let (c, i, j) = (tap / (kernel * kernel), tap / kernel % kernel, tap % kernel);
                let place = |at: usize, tap: usize| {
                    (at * stride + tap).checked_sub(kernel / 2).filter(|at| *at < self.side)
                };
                if let (Some(row), Some(column)) = (place(row, i), place(column, j)) {
                    sum += self.values[(c * self.side + row) * self.side + column]
                        * weight[o * channels * kernel * kernel + tap];
                }
            }
            values.push(sum);
        }
        Self { side, values }
    }
}

/// A PreResNet-8 with weights and activations of 2 bits by DoReFa, evaluated by its definition in double precision.
struct ByDefinition(BTreeMap<String, Vec<f64>>);

impl ByDefinition {
    fn new(tensors: BTreeMap<String, Vec<u8>>) -> Self {
        let float = |bytes: &[u8]| f64::from(f32::from_le_bytes(bytes.try_into().expect("four bytes")));
        let values = |bytes: Vec<u8>| bytes.chunks_exact(4).map(float).collect();
        Self(tensors.into_iter().map(|(path, bytes)| (path, values(bytes))).collect())
    }

    fn tensor(&self, path: &str) -> &[f64] {
        self.0.get(path).unwrap_or_else(|| panic!("no {path} in {:?}", self.0.keys()))
    }

    /// Zhou16: `2 Q(tanh w / (2 max |tanh w|) + 1/2) - 1`, `Q(x) = round(3 x) / 3`.
    fn quantized_weight(&self, layer: &str) -> Vec<f64> {
        let squashed: Vec<f64> = self.tensor(&format!("{layer}.weight")).iter().map(|w| w.tanh()).collect();
        let max = squashed.iter().fold(0.0f64, |max, t| max.max(t.abs()));
        squashed.iter().map(|t| 2.0 * ((t / (2.0 * max) + 0.5) * 3.0).round_ties_even() / 3.0 - 1.0).collect()
    }

    /// The normalization `norm` of `x`, and a ReLU.
    fn activated(&self, x: &Maps, norm: &str) -> Maps {
        let [gamma, beta, mean, variance] = ["gamma", "beta", "running_mean", "running_var"]
            .map(|part| self.tensor(&format!("{norm}.{part}")));
        x.map(|c, x| ((x - mean[c]) / (variance[c] + 1e-5).sqrt() * gamma[c] + beta[c]).max(0.0))
    }

    fn logits(&self, image: Maps) -> Vec<f64> {
        let stem = self.tensor("stem.weight");
        let width = stem.len() / 9;
        let mut x = image.convolve(stem, width, 1);
        for stage in 0..3 {
            let (out, stride) = (width << stage, if stage == 0 { 1 } else { 2 });
            let block = format!("stages.{stage}.0");
            let quantized = |maps: Maps| maps.map(|_, x| (x.min(1.0) * 3.0).round_ties_even() / 3.0);
            let convolve = |input: &Maps, layer: &str, stride| {
                input.convolve(&self.quantized_weight(&format!("{block}.{layer}")), out, stride)
            };
            let input = quantized(self.activated(&x, &format!("{block}.norm1")));
            let hidden =
                quantized(self.activated(&convolve(&input, "conv1", stride), &format!("{block}.norm2")));
            let hidden = convolve(&hidden, "conv2", 1);
            let residual = if stage == 0 { x } else { convolve(&input, "shortcut", stride) };
            x = hidden.map(|_, value| value);
            x.values.iter_mut().zip(&residual.values).for_each(|(sum, value)| *sum += value);
        }
        let last = self.activated(&x, "norm");
        let plane = last.side * last.side;
        let pooled: Vec<f64> =
            last.values.chunks(plane).map(|map| map.iter().sum::<f64>() / plane as f64).collect();
        let (weight, bias) = (self.tensor("fc.weight"), self.tensor("fc.bias"));
        let rows = weight.chunks(pooled.len()).zip(bias);
        rows.map(|(row, bias)| row.iter().zip(&pooled).map(|(w, x)| w * x).sum::<f64>() + bias).collect()
    }
}

/// The stored tensors of a trained low-bit network, scored by something else than what trained and evaluated it.
#[test]
fn a_trained_network_scores_by_its_definition_what_the_run_reported() {
    let recipe = recipe(&["train.epochs=6", "data.train_limit=512", "train.learning_rate=0.1"]);
    let run = Run::new("by-definition", &recipe, Vec::new());
    let reported = run.evaluate().scores;
    let network = ByDefinition::new(run.model());
    let test =
        open(DatasetName::Digits, lowbit_data::Split::Test, LabelKind::Fine, &Locations::default_with(None))
            .expect("the digits are built in")
            .dataset
            .head(64)
            .expect("there are that many");
    let normalization = Normalization::of(DatasetName::Digits);
    let pixel = |&pixel: &u8| {
        (f64::from(pixel) / f64::from(test.max_value) - f64::from(normalization.mean[0]))
            / f64::from(normalization.std[0])
    };
    let (mut n_correct, mut loss) = (0, 0.0);
    for (image, &label) in test.images.chunks(64).zip(&test.labels) {
        let logits = network.logits(Maps { side: 8, values: image.iter().map(pixel).collect() });
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let label = usize::from(label);
        n_correct += usize::from(logits[label] == max);
        loss += max + logits.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln() - logits[label];
    }
    let (top1, loss) = (n_correct as f64 / 64.0, loss / 64.0);
    assert!(top1 > 0.5, "nothing is learned: {top1}");
    assert_eq!(top1, reported.top1);
    // Single precision, whose values may lie on the other side of a tie: none of these does.
    assert!((loss - reported.loss).abs() < 1e-5 * loss, "{loss} by definition, {} reported", reported.loss);
}
