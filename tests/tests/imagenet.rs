//! The ImageNet-style networks: paths, shapes and counts are torchvision's, logits and gradients PyTorch's (`golden/`),
//! on every backend; they train at every precision.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor, TensorData};
use lowbit_core::Precision;
use lowbit_models::{Family, InputShape, Layout, Model, ModelConfig, Network};
use lowbit_quantizers::{
    LayerOverride, LayerQuantization, LayerRole, Method, QuantizationPolicy, QuantizedNetwork,
};
use lowbit_strategies::loss::{cross_entropy, target_probabilities};
use lowbit_tests::golden::{AlexNetFile, ImageNetCase, ImageNetFile, load};
use lowbit_tests::{
    Backend, Tolerance, assert_close, assert_close_f64, backends, centered, default_device, gradients,
    normal, rng, tensor, value, values,
};

const FAMILIES: [Family; 2] = [Family::ResNet, Family::PreResNet];
const FULL_SIZE: InputShape = InputShape { channels: 3, height: 224, width: 224 };

fn init(config: &ModelConfig, input: InputShape, policy: &QuantizationPolicy, device: &Device) -> Model {
    config.init(input, 5, policy, 0, device).expect("the network is defined")
}

/// The dotted path of a tensor as torchvision has it: with its names of BatchNorm's parameters.
#[derive(Default)]
struct TorchPath(Vec<String>);

impl TorchPath {
    fn name(&self) -> String {
        let parts = self.0.iter().map(|part| match part.as_str() {
            "gamma" => "weight",
            "beta" => "bias",
            part => part,
        });
        parts.collect::<Vec<_>>().join(".")
    }
}

/// Names and shapes of all tensors.
fn shapes(network: &Network) -> BTreeMap<String, Vec<usize>> {
    #[derive(Default)]
    struct Collect(TorchPath, BTreeMap<String, Vec<usize>>);
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.0.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.insert(self.0.name(), param.val().dims().to_vec());
        }
    }
    let mut collect = Collect::default();
    network.visit(&mut collect);
    collect.1
}

/// Names and shapes of the tensors of torchvision's ResNet for 1000 classes, by the definition of the architecture;
/// torchvision counts batches (`num_batches_tracked`) as well.
fn torchvision(depth: usize) -> BTreeMap<String, Vec<usize>> {
    let mut tensors = BTreeMap::new();
    let mut conv = |name: &str, out: usize, input: usize, kernel: usize| {
        tensors.insert(format!("{name}.weight"), vec![out, input, kernel, kernel]);
        let norm = match name.strip_suffix("downsample.0") {
            Some(block) => format!("{block}downsample.1"),
            None => name.replace("conv", "bn"),
        };
        for part in ["weight", "bias", "running_mean", "running_var"] {
            tensors.insert(format!("{norm}.{part}"), vec![out]);
        }
    };
    conv("conv1", 64, 3, 7);
    let mut input = 64;
    let blocks = if depth == 18 { [2, 2, 2, 2] } else { [3, 4, 6, 3] };
    for (layer, (n_blocks, planes)) in (1..).zip(blocks.into_iter().zip([64, 128, 256, 512])) {
        for block in 0..n_blocks {
            let path = format!("layer{layer}.{block}");
            let out = if depth == 50 {
                conv(&format!("{path}.conv1"), planes, input, 1);
                conv(&format!("{path}.conv2"), planes, planes, 3);
                conv(&format!("{path}.conv3"), 4 * planes, planes, 1);
                4 * planes
            } else {
                conv(&format!("{path}.conv1"), planes, input, 3);
                conv(&format!("{path}.conv2"), planes, planes, 3);
                planes
            };
            if block == 0 && (layer > 1 || depth == 50) {
                conv(&format!("{path}.downsample.0"), out, input, 1);
            }
            input = out;
        }
    }
    tensors.insert("fc.weight".into(), vec![1000, input]);
    tensors.insert("fc.bias".into(), vec![1000]);
    tensors
}

/// Published by torchvision: parameters, learned tensors, and billions of multiply-accumulates.
#[test]
fn paths_shapes_and_counts_are_torchvisions() {
    for (depth, n_parameters, n_learned, gigamacs) in
        [(18, 11_689_512, 62, "1.81"), (34, 21_797_672, 110, "3.66"), (50, 25_557_032, 161, "4.09")]
    {
        let policy = QuantizationPolicy::full_precision();
        let config = ModelConfig::imagenet(Family::ResNet, depth);
        let Model { network, plan } =
            config.init(FULL_SIZE, 1000, &policy, 0, &default_device()).expect("the network is defined");
        let expected = torchvision(depth);
        assert_eq!(shapes(&network), expected, "ResNet-{depth}");
        let learned = || expected.iter().filter(|(name, _)| !name.contains("running"));
        assert_eq!(learned().count(), n_learned, "ResNet-{depth}");
        let n_elements: usize = learned().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!((n_elements, plan.n_parameters()), (n_parameters, n_parameters), "ResNet-{depth}");
        assert_eq!(format!("{:.2}", plan.macs() as f64 / 1e9), gigamacs, "ResNet-{depth}");
        for layer in &plan.layers {
            assert_eq!(expected[&format!("{}.weight", layer.path)], layer.shape, "ResNet-{depth}");
        }
    }
}

/// AlexNet without BatchNorm has the layers of torchvision, which says 61,100,840 parameters and 0.71 billion
/// multiply-accumulates; BatchNorm has two parameters a channel in the place of one bias.
#[test]
fn alexnet_is_torchvisions() {
    let policy = QuantizationPolicy::full_precision();
    let plain = ModelConfig::alexnet(Layout::ImageNet).without_norm();
    let plan = plain.plan(FULL_SIZE, 1000, &policy).expect("the network is defined");
    let layers: Vec<(&str, Vec<usize>)> =
        plan.layers.iter().map(|layer| (layer.path.as_str(), layer.shape.clone())).collect();
    let expected = [
        ("features.0", vec![64, 3, 11, 11]),
        ("features.3", vec![192, 64, 5, 5]),
        ("features.6", vec![384, 192, 3, 3]),
        ("features.8", vec![256, 384, 3, 3]),
        ("features.10", vec![256, 256, 3, 3]),
        ("classifier.1", vec![4096, 9216]),
        ("classifier.4", vec![4096, 4096]),
        ("classifier.6", vec![1000, 4096]),
    ];
    assert_eq!(layers, expected);
    assert_eq!((plan.n_parameters(), plan.n_norm_parameters), (61_100_840, 0));
    assert_eq!(format!("{:.3}", plan.macs() as f64 / 1e9), "0.714");
    let roles: Vec<LayerRole> = plan.layers.iter().map(|layer| layer.role).collect();
    assert_eq!((roles[0], roles[7]), (LayerRole::First, LayerRole::Last));
    assert!(roles[1..7].iter().all(|role| *role == LayerRole::Hidden));

    let normalized = ModelConfig::alexnet(Layout::ImageNet);
    let plan = normalized.plan(FULL_SIZE, 1000, &policy).expect("the network is defined");
    let n_channels = 64 + 192 + 384 + 256 + 256 + 4096 + 4096;
    assert_eq!((plan.n_parameters(), plan.n_norm_parameters), (61_100_840 + n_channels, 2 * n_channels));

    // The tensors of the module are those that torchvision's file has.
    let network = init(&plain.with_width(1.0 / 16.0), FULL_SIZE, &policy, &default_device()).network;
    let names: BTreeSet<String> = shapes(&network).into_keys().collect();
    let expected =
        expected.iter().flat_map(|(path, _)| ["weight", "bias"].map(|name| format!("{path}.{name}")));
    assert_eq!(names, expected.collect());
    assert_eq!(
        normalized.tap_shapes(FULL_SIZE),
        Ok(vec![[64, 27, 27], [192, 13, 13], [256, 6, 6]]),
        "torchvision's maps after its pools"
    );
}

#[test]
fn parameter_counts_are_pytorchs() {
    let counts = load::<ImageNetFile>("imagenet").counts;
    assert_eq!(counts.len(), 6);
    for case in counts {
        let config = ModelConfig::imagenet(case.family, case.depth);
        let policy = QuantizationPolicy::full_precision();
        let model =
            config.init(FULL_SIZE, 1000, &policy, 0, &default_device()).expect("the network is defined");
        assert_eq!(model.plan.n_parameters(), case.parameters, "{}-{}", case.family, case.depth);
    }
}

/// `network` with the tensors of `case`, which must be all that it has.
fn with_values(network: Network, case: &ImageNetCase) -> Network {
    struct Load<'a>(TorchPath, BTreeMap<&'a str, (usize, &'a str)>);
    impl ModuleMapper for Load<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.0.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.0.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let name = self.0.name();
            let (idx, expected) =
                self.1.remove(name.as_str()).unwrap_or_else(|| panic!("PyTorch has no {name}"));
            param.map(|old| {
                let shape = old.dims();
                assert_eq!(shape.map(|n| n.to_string()).join("x"), expected, "{name}");
                let data = TensorData::new(value(idx, &name, &shape), shape);
                Tensor::from_data(data, &old.device()).set_require_grad(old.is_require_grad())
            })
        }
    }
    let names = case.tensors.iter().enumerate();
    let mut load = Load(
        TorchPath::default(),
        names.map(|(idx, tensor)| (tensor.name.as_str(), (idx, tensor.shape.as_str()))).collect(),
    );
    let network = network.map(&mut load);
    assert!(load.1.is_empty(), "only PyTorch has {:?}", load.1);
    network
}

/// Single against double precision, over up to 50 layers with fixed statistics.
const LOGITS: Tolerance = Tolerance { relative: 1e-5, absolute: 1e-6 };

/// With the statistics of the batch, every layer magnifies what the ones before it have rounded: PyTorch's own logits in
/// single precision are off by 1e-6 at depth 18 and 1.3e-5 at depth 50, its gradients, relative to their norm, by 5e-6 and
/// 2e-4. Over 50 layers that is enough to bring some value of some maps to the other side of a ReLU's kink, which changes
/// a gradient by a percent; a path that is missing changes it by much more. The gradients of the last block have passed few
/// kinks.
fn training_tolerances(depth: usize, name: &str) -> (Tolerance, f64) {
    match depth {
        // Normalizations over the three values of a batch magnify more.
        0 => (Tolerance::relative(1e-4), 1e-3),
        18 => (Tolerance::relative(1e-5), 1e-4),
        _ if name.starts_with("layer4.2.") || name.starts_with("fc.") => {
            (Tolerance::relative(1e-4), LAST_BLOCK)
        }
        _ => (Tolerance::relative(1e-4), 5e-2),
    }
}

const LAST_BLOCK: f64 = 1e-3;

#[test]
fn logits_and_gradients_are_pytorchs() {
    let file: ImageNetFile = load("imagenet");
    assert_eq!(file.cases.len(), 4);
    for backend in backends() {
        for case in &file.cases {
            let what = format!("{}-{} on {}", case.family, case.depth, backend.name);
            let config = ModelConfig::imagenet(case.family, case.depth).with_width(file.width);
            check_golden(&what, &config, file.images, case, &backend);
        }
    }
}

/// AlexNet with BatchNorm in both layouts, and as torchvision has it.
#[test]
fn alexnets_are_those_of_pytorch() {
    let file: AlexNetFile = load("alexnet");
    assert_eq!(file.cases.len(), 3);
    for backend in backends() {
        for case in &file.cases {
            let what = format!("alexnet {:?}, norm {}, on {}", case.layout, case.norm, backend.name);
            let config = ModelConfig::alexnet(case.layout).with_width(file.width);
            let config = if case.norm { config } else { config.without_norm() };
            check_golden(&what, &config, case.images, &case.network, &backend);
        }
    }
}

fn check_golden(what: &str, config: &ModelConfig, shape: [usize; 4], case: &ImageNetCase, backend: &Backend) {
    let [_, channels, height, width] = shape;
    let input = InputShape { channels, height, width };
    let n_tensors = case.tensors.len();
    let run = |device: &Device| {
        let network = init(config, input, &QuantizationPolicy::full_precision(), device).network;
        let network = with_values(network, case);
        let pixels = centered(2 * n_tensors, shape.iter().product());
        let logits = network.forward(tensor(&pixels, shape, device));
        (network, logits)
    };
    let (_, evaluated) = run(&backend.device);
    assert_close_f64(&format!("{what}: evaluated"), &values(evaluated), &case.evaluated, LOGITS);

    let device = backend.device.clone().autodiff();
    let (network, logits) = run(&device);
    let (of_logits, _) = training_tolerances(case.depth, "");
    assert_close_f64(&format!("{what}: logits"), &values(logits.clone()), &case.logits, of_logits);
    let pattern = tensor(&centered(2 * n_tensors + 1, case.logits.len()), logits.dims(), &device);
    let backward = (logits * pattern).sum().backward();
    let mut found: BTreeMap<String, Vec<f32>> = gradients(&network, &backward)
        .into_iter()
        .map(|(path, gradient)| (path, gradient.unwrap_or_else(|| panic!("{what}: no gradient"))))
        .map(|(path, gradient)| (path.replace(".gamma", ".weight").replace(".beta", ".bias"), gradient))
        .collect();
    for (idx, tensor) in case.tensors.iter().enumerate() {
        let (Some(norm), Some(dot)) = (tensor.gradient_norm, tensor.gradient_dot) else { continue };
        let name = &tensor.name;
        let gradient = found.remove(name).unwrap_or_else(|| panic!("{what}: {name} has no gradient"));
        let pattern = centered(idx + n_tensors, gradient.len());
        let double = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
        let (gradient, pattern) = (double(&gradient), double(&pattern));
        let (_, of_gradient) = training_tolerances(case.depth, name);
        let got_norm = gradient.iter().map(|value| value * value).sum::<f64>().sqrt();
        let got_dot: f64 = gradient.iter().zip(&pattern).map(|(a, b)| a * b).sum();
        // What AlexNet's last map is shifted by, the normalization of the linear layer after it takes away: a gradient of zero.
        let size = if case.family == Family::AlexNet { norm.max(0.1) } else { norm };
        assert!((got_norm - norm).abs() <= of_gradient * size, "{what}: {name}: norm {got_norm}, not {norm}");
        assert!(
            (got_dot - dot).abs() <= of_gradient * size,
            "{what}: {name}: {got_dot} along the pattern, not {dot}"
        );
    }
    assert!(found.is_empty(), "{what}: only ours: {:?}", found.keys());
}

/// Sizes of the feature maps: every stride rounds up.
#[test]
fn feature_maps_have_the_documented_shapes() {
    let device = default_device();
    let sides = |sides: [[usize; 2]; 4]| sides;
    for (depth, stem_stride, [height, width], expected) in [
        (18, 2, [224, 224], sides([[56, 56], [28, 28], [14, 14], [7, 7]])),
        (50, 2, [33, 70], sides([[9, 18], [5, 9], [3, 5], [2, 3]])),
        (50, 1, [33, 70], sides([[17, 35], [9, 18], [5, 9], [3, 5]])),
        (18, 2, [1, 1], sides([[1, 1]; 4])),
    ] {
        for family in FAMILIES {
            let config =
                ModelConfig { stem_stride, ..ModelConfig::imagenet(family, depth).with_width(1.0 / 16.0) };
            let input = InputShape { channels: 2, height, width };
            let network = init(&config, input, &QuantizationPolicy::full_precision(), &device).network;
            let taps = network.forward_features(Tensor::zeros([1, 2, height, width], &device)).taps;
            let channels = if depth == 18 { [4, 8, 16, 32] } else { [16, 32, 64, 128] };
            let expected: Vec<[usize; 3]> =
                channels.into_iter().zip(expected).map(|(n, [height, width])| [n, height, width]).collect();
            let got =
                taps.iter().map(Tensor::dims).map(|[_, channels, height, width]| [channels, height, width]);
            assert_eq!(got.collect::<Vec<_>>(), expected, "{config:?}");
            assert_eq!(config.tap_shapes(input), Ok(expected), "{config:?}");
            assert_eq!(config.tap_names(), ["layer1", "layer2", "layer3", "layer4"]);
            assert_eq!(network.tap_names(), config.tap_names());
        }
    }
}

#[test]
fn plans_name_layers_as_torchvision_does() {
    let bits = |bits| Precision::bits(bits).expect("1 to 8");
    let mut policy = QuantizationPolicy::new(LayerQuantization::new(Method::DoReFa, bits(2), bits(2)));
    policy.shortcut = LayerOverride { weight_bits: Some(bits(8)), ..LayerOverride::default() };
    for family in FAMILIES {
        let config = ModelConfig::imagenet(family, 50).with_width(0.25);
        let plan = init(&config, FULL_SIZE, &policy, &default_device()).plan;
        let layer = |path: &str| {
            let found = plan.layers.iter().find(|layer| layer.path == path);
            let layer = found.unwrap_or_else(|| panic!("{family} has no {path}"));
            (layer.role, layer.weight_bits, layer.act_bits, layer.shape.clone(), layer.macs)
        };
        let fp32 = Precision::FullPrecision;
        assert_eq!(
            layer("conv1"),
            (LayerRole::First, fp32, fp32, vec![16, 3, 7, 7], 112 * 112 * 16 * 3 * 49)
        );
        let middle = (LayerRole::Hidden, bits(2), bits(2), vec![32, 32, 3, 3], 28 * 28 * 32 * 32 * 9);
        assert_eq!(layer("layer2.0.conv2"), middle);
        let shortcut = (LayerRole::Shortcut, bits(8), bits(2), vec![128, 64, 1, 1], 28 * 28 * 128 * 64);
        assert_eq!(layer("layer2.0.downsample.0"), shortcut);
        assert_eq!(layer("fc"), (LayerRole::Last, fp32, fp32, vec![5, 512], 5 * 512));
        let known = config.layers().expect("the network is defined");
        let built: Vec<_> = plan.layers.iter().map(|layer| (&layer.path, layer.role)).collect();
        assert_eq!(known.iter().map(|layer| (&layer.path, layer.role)).collect::<Vec<_>>(), built);
        assert!(plan.to_string().lines().all(|line| line.len() <= 84), "{plan}");
    }
}

#[test]
fn undefined_networks_are_refused() {
    let message = |config: ModelConfig| {
        let policy = QuantizationPolicy::full_precision();
        let refused = config.init(FULL_SIZE, 5, &policy, 0, &default_device());
        refused.map(|_| ()).unwrap_err().to_string()
    };
    let resnet = ModelConfig::imagenet(Family::ResNet, 18);
    assert_eq!(
        message(ModelConfig { depth: Some(20), ..resnet.clone() }),
        "no depth 20 in the imagenet layout; it has 18, 34, 50 or 101"
    );
    assert_eq!(
        message(ModelConfig { layout: Layout::Cifar, ..resnet.clone() }),
        "no depth 18 in the cifar layout; it has 6n+2 up to 9998: 8, 14, 20, 32, 44, 56 or 110"
    );
    assert_eq!(
        message(ModelConfig { depth: None, ..resnet.clone() }),
        "resnet needs a depth of 18, 34, 50 or 101"
    );
    let vgg = ModelConfig { layout: Layout::ImageNet, ..ModelConfig::vgg_small() };
    assert_eq!(message(vgg), "vgg-small has a fixed layout: remove layout = \"imagenet\"");
    let small = ModelConfig::alexnet(Layout::ImageNet).plan(
        InputShape { height: 62, ..FULL_SIZE },
        5,
        &QuantizationPolicy::full_precision(),
    );
    let small = small.map(|_| ()).unwrap_err().to_string();
    assert_eq!(small, "alexnet needs images of at least 63x63 pixels, got 62x224");
    assert_eq!(
        message(ModelConfig { norm: Some(false), ..resnet.clone() }),
        "resnet has BatchNorm: remove norm = false"
    );
    assert_eq!(
        message(ModelConfig { stem_stride: 3, ..resnet }),
        "stem_stride of resnet in the imagenet layout must be one of [2, 1], got 3"
    );
}

/// Every parameter has a gradient, which is finite and not zero, and a step changes it. In full precision, where the loss of a batch
/// is smooth, a small step along the gradient lowers it by what the gradient promises. Rounding makes the loss of a
/// quantized network jump, and a gradient straight through it promises nothing of the kind.
#[test]
fn every_parameter_learns() {
    let two = Precision::bits(2).expect("1 to 8");
    let fp32 = Precision::FullPrecision;
    for (method, bits) in [(Method::DoReFa, fp32), (Method::DoReFa, two), (Method::Lsq, two)] {
        let policy = QuantizationPolicy::new(LayerQuantization::new(method, bits, bits));
        let alexnets = [Layout::Cifar, Layout::ImageNet].map(ModelConfig::alexnet);
        // Without normalization, sums of weights up to 1 leave the range of DoReFa's activations: no gradient is left.
        let has_range = bits == fp32 || method != Method::DoReFa;
        let plain = alexnets.clone().map(ModelConfig::without_norm).into_iter().filter(|_| has_range);
        let residual = FAMILIES.into_iter().flat_map(|f| [18, 50].map(|d| ModelConfig::imagenet(f, d)));
        for config in residual.chain(alexnets.clone()).chain(plain) {
            let what = format!("{config:?} by {method} at {bits}");
            check_learning(&what, &config.with_width(0.25), &policy, &default_device());
        }
    }
}

fn check_learning(what: &str, config: &ModelConfig, policy: &QuantizationPolicy, device: &Device) {
    let device = device.clone().autodiff();
    let input = InputShape { channels: 3, height: 64, width: 64 };
    let mut network = init(config, input, policy, &device).network;
    let images = tensor(&normal(4 * 3 * 64 * 64, 0.0, 1.0, &mut rng(3)), [4, 3, 64, 64], &device);
    network.calibrate(|_| true, |network| drop(network.forward(images.clone())));
    let targets = target_probabilities(&[0, 1, 2, 3], 5, 0.0, &device);
    let loss = |network: &Network| cross_entropy(network.forward(images.clone()), targets.clone());
    let before = loss(&network);
    let value = f64::from(before.clone().into_scalar::<f32>());
    let backward = before.backward();
    let (mut all, mut square) = (BTreeSet::new(), 0.0);
    for (path, gradient) in gradients(&network, &backward) {
        let gradient = gradient.unwrap_or_else(|| panic!("{what}: {path} has no gradient"));
        assert!(gradient.iter().all(|value| value.is_finite()), "{what}: gradient of {path}");
        square += gradient.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
        assert!(gradient.iter().any(|&value| value != 0.0), "{what}: only zeros as gradient of {path}");
        all.insert(path);
    }

    let step = |rate: f64| {
        let update = GradientsParams::from_grads(loss(&network).backward(), &network);
        SgdConfig::new().init().step(rate, network.clone(), update)
    };
    let (old, new) = (parameters(&network), parameters(&step(1.0)));
    let changed: BTreeSet<String> =
        old.into_iter().filter(|(path, old)| new[path] != *old).map(|(path, _)| path).collect();
    assert_eq!(changed, all, "{what}: what a step changes");
    if policy.base.weight_bits == Precision::FullPrecision {
        // So far that the loss is to fall by a thousandth.
        let promised = value / 1000.0;
        let fall = value - f64::from(loss(&step(promised / square)).into_scalar::<f32>());
        assert!((0.9..1.1).contains(&(fall / promised)), "{what}: the loss falls by {fall}, not {promised}");
    }
}

/// All parameters that are learned, by path.
fn parameters(network: &Network) -> BTreeMap<String, Vec<f32>> {
    #[derive(Default)]
    struct Collect(Vec<String>, BTreeMap<String, Vec<f32>>);
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.val().is_require_grad() {
                self.1.insert(self.0.join("."), values(param.val()));
            }
        }
    }
    let mut collect = Collect::default();
    network.visit(&mut collect);
    collect.1
}

/// Two backends compute the same logits from the same seed.
#[test]
fn initial_networks_agree() {
    let input = InputShape { channels: 3, height: 40, width: 33 };
    let pixels = normal(2 * 3 * 40 * 33, 0.0, 1.0, &mut rng(5));
    for config in FAMILIES.map(|family| ModelConfig::imagenet(family, 34).with_width(1.0 / 16.0)) {
        let logits = |device: &Device| {
            let network = init(&config, input, &QuantizationPolicy::full_precision(), device).network;
            values(network.forward(tensor(&pixels, [2, 3, 40, 33], device)))
        };
        let backends = backends();
        let expected = logits(&backends[0].device);
        for Backend { name, device } in &backends[1..] {
            assert_close(&format!("{config:?} on {name}"), &logits(device), &expected, LOGITS);
        }
    }
}
