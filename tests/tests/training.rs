//! What a training is made of against the numbers of PyTorch in `golden/`, on every backend: optimizers, gradient
//! clipping, cross entropy, BatchNorm; and the parameter counts of the networks.

use burn::module::{Module, Param};
use burn::nn::BatchNormConfig;
use burn::tensor::{Device, Tensor};
use lowbit_core::{Granularity, Precision};
use lowbit_kernels::{Activation, batch_norm};
use lowbit_models::{Family, InputShape, Layout, ModelConfig};
use lowbit_quantizers::{
    ActivationQuantizer, LayerQuantization, LayerRef, LayerRole, Method, QuantizationPolicy, QuantizedNetwork,
};
use lowbit_strategies::loss::{cross_entropy, target_probabilities};
use lowbit_tests::golden::{
    BatchNormCase, ClippingCase, CrossEntropyCase, OptimizerCase, OptimizerOptions, ResNetCase, ResNetFile,
    Shortcut, Training, load,
};
use lowbit_tests::{Backend, Tolerance, assert_close, backends, default_device, normal, rng, tensor, values};
use lowbit_train::optimizer::Optimizer;
use lowbit_train::recipe::{OptimizerRecipe, Recipe, TrainRecipe};

/// Some ulp of the largest value: the same few operations in another order.
const FEW_ULP: Tolerance = Tolerance::relative(8.0 * f32::EPSILON as f64);

/// Sums over 75 values per channel, and differences of them.
const NORM: Tolerance = Tolerance::relative(4e-6);

fn training() -> Training {
    load("training")
}

/// Two parameters and one of a quantizer.
#[derive(Module, Debug)]
struct Parameters {
    first: Param<Tensor<1>>,
    second: Param<Tensor<1>>,
    step_size: Param<Tensor<1>>,
}

impl Parameters {
    fn new(values: [&[f32]; 3], device: &Device) -> Self {
        let [first, second, step_size] =
            values.map(|values| Param::from_tensor(Tensor::from_floats(values, device)));
        Self { first, second, step_size }
    }

    /// One step with these gradients: those of the sum of the parameters times them.
    fn step(self, optimizer: &mut Optimizer, learning_rate: f64, gradients: [&[f32]; 3]) -> Self {
        let device = self.first.val().device();
        let parts = [&self.first, &self.second, &self.step_size].into_iter().zip(gradients);
        let loss = parts
            .map(|(param, gradient)| (param.val() * Tensor::from_floats(gradient, &device)).sum())
            .reduce(|sum, part| sum + part)
            .expect("invariant: three parts");
        let gradients = loss.backward();
        optimizer.step(learning_rate, self, gradients)
    }

    fn values(&self) -> [Vec<f32>; 3] {
        [&self.first, &self.second, &self.step_size].map(|param| values(param.val()))
    }
}

fn train_recipe(optimizer: OptimizerRecipe, weight_decay: f64) -> TrainRecipe {
    let recipe = Recipe::embedded("digits-preresnet8-w2a2", &[]).expect("the recipe is valid");
    TrainRecipe { optimizer, weight_decay, gradient_clip: None, ..recipe.train }
}

#[test]
fn optimizers() {
    let cases = training().optimizers;
    assert_eq!(cases.len(), 5);
    for Backend { name, device } in backends() {
        for case in &cases {
            check_optimizer(&format!("{} on {name}", case.name), case, &device.clone().autodiff());
        }
    }
}

fn optimizer_recipe(case: &OptimizerCase) -> OptimizerRecipe {
    let OptimizerOptions { momentum, dampening, nesterov, betas, eps, .. } = case.options;
    match (momentum, nesterov, betas, eps) {
        (Some(momentum), Some(nesterov), None, None) => {
            assert_eq!(dampening, Some(0.0));
            OptimizerRecipe::Sgd { momentum, nesterov }
        }
        (None, None, Some([beta1, beta2]), Some(epsilon)) if case.name == "adamw" => {
            OptimizerRecipe::AdamW { beta1, beta2, epsilon }
        }
        (None, None, Some([beta1, beta2]), Some(epsilon)) => OptimizerRecipe::Adam { beta1, beta2, epsilon },
        _ => panic!("{}: unknown options", case.name),
    }
}

fn check_optimizer(what: &str, case: &OptimizerCase, device: &Device) {
    let OptimizerOptions { lr, weight_decay, .. } = case.options;
    let mut recipe = train_recipe(optimizer_recipe(case), weight_decay);
    // The quantizers' group is the same optimizer with a learning rate and a decay of its own: the learning rate of
    // the case, as a multiple of the others' half of it, and the decay of the case must give the same parameters.
    recipe.weight_decay = 0.0;
    recipe.quantizers.weight_decay = weight_decay;
    recipe.quantizers.learning_rate_scale = 2.0;
    let initial = case.initial.as_slice();
    let mut module = Parameters::new([&[0.0], &[0.0], initial], device);
    let mut optimizer = Optimizer::new(&recipe, &module);
    for (step, (gradient, expected)) in case.grads.iter().zip(&case.params_after_step).enumerate() {
        module = module.step(&mut optimizer, lr / 2.0, [&[0.0], &[0.0], gradient]);
        let [first, _, got] = module.values();
        assert_close(&format!("{what}, quantizers, step {step}"), &got, expected, FEW_ULP);
        assert_eq!(first, [0.0], "{what}: a parameter without gradient and decay moved");
    }

    recipe.weight_decay = weight_decay;
    recipe.quantizers.weight_decay = 0.0;
    recipe.quantizers.learning_rate_scale = 0.0;
    let mut module = Parameters::new([initial, initial, &[1.0]], device);
    let mut optimizer = Optimizer::new(&recipe, &module);
    for (step, (gradient, expected)) in case.grads.iter().zip(&case.params_after_step).enumerate() {
        module = module.step(&mut optimizer, lr, [gradient, gradient, &[1.0]]);
        let [first, second, quantizer] = module.values();
        assert_close(&format!("{what}, step {step}"), &first, expected, FEW_ULP);
        assert_eq!(first, second, "{what}: parameters influence each other");
        assert_eq!(quantizer, [1.0], "{what}: a learning rate of zero moved a parameter");
    }
}

#[test]
fn gradient_clipping() {
    for Backend { name, device } in backends() {
        for case in &training().gradient_clipping {
            check_clipping(&format!("clipping {} on {name}", case.name), case, &device.clone().autodiff());
        }
    }
}

/// With a learning rate of -1 and no momentum, a step adds the clipped gradient.
fn check_clipping(what: &str, case: &ClippingCase, device: &Device) {
    let mut recipe = train_recipe(OptimizerRecipe::Sgd { momentum: 0.0, nesterov: false }, 0.0);
    recipe.gradient_clip = Some(case.max_norm);
    let [first, second] = case.grads.as_slice() else { panic!("{what}: two gradients expected") };
    for (gradient, shape) in [first, second].into_iter().zip(&case.shapes) {
        assert_eq!(gradient.len(), shape.iter().product::<usize>(), "{what}");
    }
    let zeros = |values: &[f32]| vec![0.0; values.len()];
    let module = Parameters::new([&zeros(first), &zeros(second), &[0.0]], device);
    let mut optimizer = Optimizer::new(&recipe, &module);
    let [first, second, rest] = module.step(&mut optimizer, -1.0, [first, second, &[0.0]]).values();
    let got = [first, second].concat();
    assert_close(what, &got, &case.clipped.concat(), FEW_ULP);
    assert_eq!(rest, [0.0], "{what}");
}

#[test]
fn cross_entropies() {
    for Backend { name, device } in backends() {
        for case in &training().cross_entropy {
            check_cross_entropy(&format!("{} on {name}", case.name), case, &device.clone().autodiff());
        }
    }
}

fn check_cross_entropy(what: &str, case: &CrossEntropyCase, device: &Device) {
    let logits = tensor(&case.logits, case.shape, device).require_grad();
    let targets = target_probabilities(&case.targets, case.shape[1], case.label_smoothing, device);
    let loss = cross_entropy(logits.clone(), targets);
    let gradient = values(logits.grad(&loss.backward()).expect("the logits have a gradient"));
    assert_close(&format!("{what}: loss"), &values(loss), &[case.loss], FEW_ULP);
    assert_close(&format!("{what}: gradient"), &gradient, &case.grad_logits, FEW_ULP);
}

#[test]
fn normalization() {
    for Backend { name, device } in backends() {
        check_norm(name, &training().batch_norm, &device.autodiff());
    }
}

fn check_norm(what: &str, case: &BatchNormCase, device: &Device) {
    // The models use burn's defaults, which are PyTorch's.
    let defaults = BatchNormConfig::new(case.shape[1]);
    assert_eq!((defaults.epsilon, defaults.momentum), (case.eps, case.momentum), "{what}: defaults");
    let vector = |values: &[f32]| Tensor::<1>::from_floats(values, device).require_grad();
    let (gamma, beta) = (vector(&case.weight), vector(&case.bias));
    let x = tensor(&case.x, case.shape, device).require_grad();
    let result = batch_norm(x.clone(), [gamma.clone(), beta.clone()], case.eps, Activation::Identity);
    let y = result.output.into_values();
    let backward = (y.clone() * tensor(&case.grad_y, case.shape, device)).sum().backward();
    assert_close(&format!("{what}: y"), &values(y), &case.y, NORM);
    let grad_x = values(x.grad(&backward).expect("the input has a gradient"));
    assert_close(&format!("{what}: gradient of x"), &grad_x, &case.grad_x, NORM);
    for (name, parameter, expected) in [("gamma", gamma, &case.grad_weight), ("beta", beta, &case.grad_bias)]
    {
        let gradient = values(parameter.grad(&backward).expect("the parameter has a gradient"));
        assert_close(&format!("{what}: gradient of {name}"), &gradient, expected, NORM);
    }

    let moved = |before: &[f32], batch: Tensor<1>| -> Vec<f32> {
        let momentum = case.momentum as f32;
        before.iter().zip(values(batch)).map(|(old, new)| old * (1.0 - momentum) + new * momentum).collect()
    };
    let mean = moved(&case.running_mean_before, result.mean);
    assert_close(&format!("{what}: running mean"), &mean, &case.running_mean_after, NORM);
    // PyTorch's running variance takes the unbiased variance of the batch, ours as burn's the biased one, which is smaller by
    // (n - 1) / n, n being the number of values per channel.
    let n = (case.x.len() / case.shape[1]) as f32;
    let biased = |(before, after): (&f32, &f32)| {
        let kept = before * (1.0 - case.momentum as f32);
        kept + (after - kept) * (n - 1.0) / n
    };
    let expected: Vec<f32> =
        case.running_var_before.iter().zip(&case.running_var_after).map(biased).collect();
    let variance = moved(&case.running_var_before, result.variance);
    assert_close(&format!("{what}: running variance"), &variance, &expected, NORM);
}

/// A network in training moves the running statistics of its normalizations towards those of the batch, and evaluates with them.
#[test]
fn running_statistics_follow_the_batch() {
    let config = ModelConfig::new(Family::ResNet, 8).with_width(0.5);
    let input = InputShape { channels: 2, height: 6, width: 5 };
    let pixels = normal(4 * 2 * 30, 0.5, 2.0, &mut rng(1));
    for Backend { name, device } in backends() {
        let device = device.autodiff();
        let policy = QuantizationPolicy::full_precision();
        let network = config.init(input, 10, &policy, 0, &device).expect("the network is defined").network;
        let images = tensor(&pixels, [4, 2, 6, 5], &device);
        // [channels, everything else]
        let Some((_, LayerRef::Conv(stem))) = network.layers().next() else {
            panic!("no convolution is first")
        };
        let map = stem.forward(images.clone());
        let channels = map.dims()[1];
        let map = map.swap_dims(0, 1).reshape([channels, 120]);
        let mean = map.clone().mean_dim(1);
        let variance = (map - mean.clone()).square().mean_dim(1);
        drop(network.forward(images));
        let (_, norm) = network.norms().next().expect("there is a normalization");
        let [running_mean, running_var] =
            [&norm.running_mean, &norm.running_var].map(|running| values(running.value_sync()));
        // They begin as 0 and 1.
        assert_close(&format!("mean on {name}"), &running_mean, &values(mean * 0.1), NORM);
        assert_close(&format!("variance on {name}"), &running_var, &values(variance * 0.1 + 0.9), NORM);
    }
}

/// Parameters of a network, from its plan and from its module.
#[test]
fn parameter_counts() {
    let cases = load::<ResNetFile>("torch_resnet").models;
    // The networks have projections only: PyTorch's counts with shortcuts of zeros have no counterpart.
    let cases: Vec<_> = cases.iter().filter(|case| case.shortcut == Shortcut::Projection).collect();
    assert_eq!(cases.len(), 28);
    cases.into_iter().for_each(check_count);
}

fn check_count(case: &ResNetCase) {
    let what = format!("{} of depth {} for {} classes", case.architecture, case.depth, case.classes);
    let config = ModelConfig::new(case.architecture, case.depth);
    let model = init(&config, case.classes, &QuantizationPolicy::full_precision());
    let of_role = |last: bool| {
        let layers = model.plan.layers.iter().filter(|layer| (layer.role == LayerRole::Last) == last);
        layers.map(|layer| layer.n_parameters).sum::<usize>()
    };
    let plan = (of_role(false), model.plan.n_norm_parameters, of_role(true), model.plan.n_parameters());
    assert_eq!(plan, (case.conv, case.batch_norm, case.linear, case.parameters), "{what}");
    // BatchNorm's mean and variance count as parameters of a module, as many as its weights and biases.
    assert_eq!(model.network.num_params() - case.batch_norm, case.parameters, "{what}: module");
}

fn init(config: &ModelConfig, n_classes: usize, policy: &QuantizationPolicy) -> lowbit_models::Model {
    let input = InputShape { channels: 3, height: 32, width: 32 };
    config.init(input, n_classes, policy, 0, &default_device()).expect("the network is defined")
}

/// He16 table 6 gives 0.27 million for ResNet-20 on CIFAR-10, LQ-Nets' VGG-small has 4.66 million.
#[test]
fn published_parameter_counts() {
    for (config, millions) in
        [(ModelConfig::new(Family::ResNet, 20), "0.27"), (ModelConfig::vgg_small(), "4.66")]
    {
        let n_parameters = init(&config, 10, &QuantizationPolicy::full_precision()).plan.n_parameters();
        assert_eq!(format!("{:.2}", n_parameters as f64 / 1e6), millions, "{config:?}");
    }
}

/// What a quantizer learns or keeps is in the module, and nowhere in the count of the plan.
#[test]
fn quantizer_parameters_are_not_counted_by_the_plan() {
    let two = Precision::bits(2).unwrap();
    let config = ModelConfig::new(Family::PreResNet, 8);
    // 3 blocks of two convolutions and 2 shortcuts, whose output channels add up to 16, 32, 64 twice and 32, 64 once.
    let (layers, channels) = (8, 2 * (16 + 32 + 64) + 32 + 64);
    for (method, granularity, expected) in [
        (Method::DoReFa, Granularity::PerTensor, 0),
        (Method::Pact, Granularity::PerTensor, layers),
        (Method::Lsq, Granularity::PerTensor, 2 * layers),
        (Method::Lsq, Granularity::PerChannel, layers + channels),
        (Method::MinMax, Granularity::PerChannel, 2 * layers),
    ] {
        let base =
            LayerQuantization { weight_granularity: granularity, ..LayerQuantization::new(method, two, two) };
        let model = init(&config, 10, &QuantizationPolicy::new(base));
        let extra = model.network.num_params() - model.plan.n_norm_parameters - model.plan.n_parameters();
        assert_eq!(extra, expected, "{method} {granularity}");
    }
}

/// The ranges of two batches together, by hand.
#[test]
fn calibration_over_two_batches() {
    let two = Precision::bits(2).unwrap();
    let batches: [&[f32]; 2] = [&[-1.0, 3.0], &[4.0, 4.0]];
    for Backend { name, device } in backends() {
        let calibrated = |method| {
            let quantization = LayerQuantization::new(method, two, two);
            let quantizer = ActivationQuantizer::new(&quantization, &device).expect("2 bits are taken");
            let mut quantizer = quantizer.expect("the activations are quantized");
            quantizer.start_calibration();
            for batch in batches {
                quantizer.observe::<2>(&tensor(batch, [1, 2], &device));
            }
            quantizer.finish_calibration();
            let grid = quantizer.grid().expect("a grid");
            (grid.units().to_vec(), grid.zero_point())
        };
        // LSQ: 2 mean|x| / sqrt(3), the mean being that of the batches' means, 2 and 4.
        let (scale, zero_point) = calibrated(Method::Lsq);
        assert_close(&format!("lsq on {name}"), &scale, &[6.0 / 3.0f32.sqrt()], FEW_ULP);
        assert_eq!(zero_point, 0, "lsq on {name}");
        // Min-max: the range from -1 to 4 in three steps, of which zero is a code.
        let (scale, zero_point) = calibrated(Method::MinMax);
        assert_close(&format!("minmax on {name}"), &scale, &[5.0 / 3.0], FEW_ULP);
        assert_eq!(zero_point, 1, "minmax on {name}");
    }
}

/// What is known of a network before it is built is what it is built of.
#[test]
fn plans_are_those_of_the_built_networks() {
    let depths =
        [(Layout::Cifar, vec![8, 14, 20, 32, 44, 56, 110]), (Layout::ImageNet, vec![18, 34, 50, 101])];
    let mut configs = Vec::new();
    for family in [Family::ResNet, Family::PreResNet] {
        for (layout, depths) in &depths {
            let of_depth = |depth: &usize| match layout {
                Layout::Cifar => ModelConfig::new(family, *depth),
                Layout::ImageNet => ModelConfig::imagenet(family, *depth),
            };
            configs.extend(depths.iter().map(of_depth).map(|config| config.with_width(0.05)));
        }
        configs.push(ModelConfig { stem_stride: 2, ..ModelConfig::new(family, 8) });
    }
    configs.push(ModelConfig::new(Family::ResNet, 8).with_width(0.01));
    configs.push(ModelConfig::vgg_small().with_width(0.1));
    configs.extend(
        [Layout::Cifar, Layout::ImageNet].map(|layout| ModelConfig::mobilenet_v2(layout).with_width(0.1)),
    );
    configs.push(ModelConfig::new(Family::ResNet, 8).with_logit_scale());
    for layout in [Layout::Cifar, Layout::ImageNet] {
        let config = ModelConfig::alexnet(layout).with_width(0.05);
        configs.extend([config.clone().without_norm(), config]);
    }
    let policy = QuantizationPolicy::full_precision();
    for config in configs {
        let [height, width] = match (config.family, config.layout) {
            (Family::AlexNet, Layout::ImageNet) => [67, 64],
            _ => [11, 9],
        };
        let input = InputShape { channels: 3, height, width };
        let model = config.init(input, 10, &policy, 0, &default_device()).expect("the network is defined");
        let network = model.network;
        let plan = config.plan(input, 10, &policy).expect("the network is defined");
        let built: Vec<_> =
            network.layers().map(|(path, layer)| (path.to_string(), layer.weight_shape())).collect();
        let planned: Vec<_> =
            plan.layers.iter().map(|layer| (layer.path.clone(), layer.shape.clone())).collect();
        assert_eq!(planned, built, "{config:?}");
        // The module counts the running statistics too, as many as the parameters of BatchNorm.
        let n_parameters = plan.n_parameters() + plan.n_norm_parameters;
        assert_eq!(n_parameters, network.num_params(), "{config:?}");
        let n_norm_parameters: usize = network.norms().map(|(_, norm)| norm.gamma.val().dims()[0] * 2).sum();
        assert_eq!(plan.n_norm_parameters, n_norm_parameters, "{config:?}");
        let layers = config.layers().expect("the network is defined").into_iter();
        let planned: Vec<_> = plan.layers.into_iter().map(|layer| (layer.path, layer.role)).collect();
        assert_eq!(layers.map(|layer| (layer.path, layer.role)).collect::<Vec<_>>(), planned, "{config:?}");
    }
}

/// A network of 39 billion parameters has a plan in no time and no memory to speak of.
#[test]
fn a_plan_takes_no_network() {
    let config = ModelConfig::vgg_small().with_width(64.0);
    let input = InputShape { channels: 3, height: 224, width: 224 };
    let plan =
        config.plan(input, 1000, &QuantizationPolicy::full_precision()).expect("the network is defined");
    assert!(plan.n_parameters() > 30_000_000_000, "{}", plan.n_parameters());
}
