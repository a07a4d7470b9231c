//! What networks are made of: shapes of their feature maps, quantized layers, initial weights. That backends agree on what
//! they compute is in `parity`.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use globset::Glob;
use lowbit_core::graph::{Conv, Graph, GraphBuilder, GraphError, LayerRole, Linear, Op};
use lowbit_core::{Granularity, Precision};
use lowbit_models::{Family, InputShape, LayerGrids, Layout, Model, ModelConfig, ModelError, Network, grids};
use lowbit_quantizers::{
    LayerMut, LayerOverride, LayerQuantization, LayerRef, Method, QuantizationPolicy, QuantizedNetwork,
    is_quantizer_state,
};
use lowbit_tests::{
    Backend, Tolerance, assert_close, backends, default_device, gradients, integers, normal, rng, tensor,
    values,
};

const N_CLASSES: usize = 5;
const BATCH: usize = 3;

/// A network of any family with few channels.
fn tiny(family: Family) -> ModelConfig {
    match family {
        Family::VggSmall => ModelConfig::vgg_small().with_width(1.0 / 16.0),
        Family::AlexNet => ModelConfig::alexnet(Layout::Cifar).with_width(1.0 / 16.0),
        family => ModelConfig::new(family, 8).with_width(0.25),
    }
}

const FAMILIES: [Family; 4] = [Family::ResNet, Family::PreResNet, Family::VggSmall, Family::AlexNet];

fn build(config: &ModelConfig, input: InputShape, policy: &QuantizationPolicy, device: &Device) -> Model {
    config.init(input, N_CLASSES, policy, 7, device).expect("the network is defined")
}

fn images(input: InputShape, device: &Device) -> Tensor<4> {
    let InputShape { channels, height, width } = input;
    let pixels = normal(BATCH * channels * height * width, 0.0, 1.0, &mut rng(3));
    tensor(&pixels, [BATCH, channels, height, width], device)
}

fn input(channels: usize, height: usize, width: usize) -> InputShape {
    InputShape { channels, height, width }
}

/// Sizes of the feature maps: strides round up, pools round down.
#[test]
fn feature_maps_have_the_documented_shapes() {
    let policy = QuantizationPolicy::full_precision();
    let device = default_device();
    for (family, input, expected) in [
        (Family::ResNet, input(2, 9, 7), [[BATCH, 4, 9, 7], [BATCH, 8, 5, 4], [BATCH, 16, 3, 2]]),
        (Family::PreResNet, input(3, 32, 32), [[BATCH, 4, 32, 32], [BATCH, 8, 16, 16], [BATCH, 16, 8, 8]]),
        (Family::PreResNet, input(1, 1, 1), [[BATCH, 4, 1, 1], [BATCH, 8, 1, 1], [BATCH, 16, 1, 1]]),
        (Family::VggSmall, input(2, 9, 11), [[BATCH, 8, 4, 5], [BATCH, 16, 2, 2], [BATCH, 32, 1, 1]]),
        (Family::AlexNet, input(2, 19, 11), [[BATCH, 4, 9, 5], [BATCH, 12, 4, 2], [BATCH, 16, 2, 1]]),
    ] {
        let network = build(&tiny(family), input, &policy, &device).network;
        let taps = network.forward_features(images(input, &device)).taps;
        assert_eq!(taps.iter().map(Tensor::dims).collect::<Vec<_>>(), expected, "{family}");
        let without_batch: Vec<[usize; 3]> = expected.iter().map(|[_, c, h, w]| [*c, *h, *w]).collect();
        assert_eq!(tiny(family).tap_shapes(input), Ok(without_batch), "{family}");
        assert_eq!(network.tap_names(), tiny(family).tap_names(), "{family}");
    }
    let too_small = tiny(Family::VggSmall).init(input(2, 9, 7), N_CLASSES, &policy, 0, &device);
    assert_eq!(
        too_small.unwrap_err(),
        ModelError::InputTooSmall { family: Family::VggSmall, least: 8, height: 9, width: 7 }
    );
}

/// The least height and width, as a message says them.
#[test]
fn images_that_are_too_small_are_refused() {
    let alexnet = ModelConfig::alexnet(Layout::Cifar);
    let cases = [
        (ModelConfig::vgg_small(), 8),
        (alexnet.clone(), 8),
        (ModelConfig { stem_stride: 2, ..alexnet }, 15),
        (ModelConfig::alexnet(Layout::ImageNet), 63),
    ];
    for (config, least) in cases {
        let family = config.family;
        let graph = |height, width| config.graph(input(3, height, width), N_CLASSES).map(|_| ());
        assert_eq!(graph(least, least), Ok(()), "{config:?}");
        for (height, width) in [(least - 1, least), (least, least - 1), (1, 1)] {
            let refused = Err(ModelError::InputTooSmall { family, least, height, width });
            assert_eq!(graph(height, width), refused, "{config:?}");
        }
    }
}

/// A plan is made of the networks that can be built, and of no other.
#[test]
fn networks_of_nothing_are_refused() {
    let policy = QuantizationPolicy::full_precision();
    let refused = |config: &ModelConfig, input: InputShape, n_classes: usize| {
        let plan = config.plan(input, n_classes, &policy).map(|_| ()).unwrap_err();
        let init = config.init(input, n_classes, &policy, 0, &default_device()).map(|_| ()).unwrap_err();
        assert_eq!(plan, init);
        plan
    };
    for family in FAMILIES {
        for (input, n_classes) in
            [(input(0, 9, 9), 2), (input(3, 0, 9), 2), (input(3, 9, 0), 2), (input(3, 9, 9), 0)]
        {
            let error = refused(&tiny(family), input, n_classes);
            assert_eq!(error, ModelError::Empty { n_classes, input });
        }
    }
    let message = refused(&tiny(Family::ResNet), input(3, 0, 9), 2).to_string();
    assert_eq!(
        message,
        "a network needs at least 1 class, channel and pixel, got 2 classes and images of 3x0x9 (channels, height, width)"
    );
    let deep = |depth| ModelConfig::new(Family::ResNet, depth).plan(input(3, 8, 8), 2, &policy).is_ok();
    assert_eq!([9_998, 10_004, usize::MAX - 3].map(deep), [true, false, false]);
}

/// Every method at every bit width of both operands: builds, runs, and gives every parameter a gradient.
#[test]
fn quantized_networks_run() {
    let device = default_device().autodiff();
    for &method in Method::ALL {
        for bits in 1..=8 {
            let precision = Precision::bits(bits).unwrap();
            let granularity = match bits % 2 == 0 && method.is_per_channel() {
                true => Granularity::PerChannel,
                false => Granularity::PerTensor,
            };
            let quantization = LayerQuantization {
                weight_granularity: granularity,
                ..LayerQuantization::new(method, precision, precision)
            };
            let what = format!("{method} W{bits}A{bits}");
            for family in [FAMILIES[bits as usize % 3], Family::AlexNet] {
                check_quantized(&format!("{family}: {what}"), quantization, family, &device);
            }
        }
    }
}

fn check_quantized(what: &str, quantization: LayerQuantization, family: Family, device: &Device) {
    let policy = QuantizationPolicy::new(quantization);
    let input = input(1, 8, 8);
    if quantization.check().is_err() {
        let refused = tiny(family).init(input, N_CLASSES, &policy, 0, device);
        assert!(matches!(refused, Err(ModelError::Quantizer { .. })), "{what}");
        return;
    }
    let Model { mut network, plan } = build(&tiny(family), input, &policy, device);
    let quantized =
        plan.layers.iter().filter(|layer| layer.method == Some(quantization.weight_method)).count();
    assert_eq!(
        quantized,
        plan.layers.len() - 2,
        "{what}: all layers but the first and the last are quantized"
    );
    let images = images(input, device);
    network.calibrate(|_| true, |network| drop(network.forward(images.clone())));
    let logits = network.forward(images);
    assert_eq!(logits.dims(), [BATCH, N_CLASSES]);
    let gradients = gradients(&network, &logits.square().sum().backward());
    for (path, gradient) in &gradients {
        let gradient = gradient.as_ref().unwrap_or_else(|| panic!("{what}: {path} has no gradient"));
        assert!(gradient.iter().all(|value| value.is_finite()), "{what}: gradient of {path}");
    }
    let with_gradient = gradients.iter().filter(|(path, _)| is_quantizer_state(path)).count();
    let n_learned = |(_, layer): (&str, LayerRef<'_>)| {
        layer.weight_quantizer().map_or(0, |quantizer| quantizer.learned().len())
            + layer.input_quantizer().map_or(0, |quantizer| quantizer.learned().len())
    };
    let n_learned: usize = network.layers().map(n_learned).sum();
    let fewest = match quantization.weight_method {
        Method::DoReFa | Method::MinMax | Method::LqNets | Method::Hwgq | Method::Xnor | Method::Twn => 0,
        Method::Pact => quantized,
        _ => 2 * quantized,
    };
    assert!(
        with_gradient == n_learned && n_learned >= fewest,
        "{what}: {with_gradient} of {n_learned} learned parameters"
    );
}

/// The initial weights are drawn on the host: every backend and every precision starts from the same.
#[test]
fn initial_weights_do_not_depend_on_backend_or_precision() {
    let two = Precision::bits(2).unwrap();
    let policies = [
        QuantizationPolicy::full_precision(),
        QuantizationPolicy::new(LayerQuantization::new(Method::Lsq, two, two)),
    ];
    for family in FAMILIES {
        let weights = |policy: &QuantizationPolicy, device: &Device| {
            let network = build(&tiny(family), input(1, 8, 8), policy, device).network;
            let weights = network.layers().map(|(_, layer)| match layer {
                LayerRef::Conv(conv) => values(conv.weight.val()),
                LayerRef::Linear(linear) => values(linear.weight.val()),
            });
            weights.collect::<Vec<_>>()
        };
        let expected = weights(&policies[0], &backends()[0].device);
        for Backend { name, device } in backends() {
            for policy in &policies {
                assert_eq!(weights(policy, &device), expected, "{family} on {name}");
            }
        }
    }
}

/// Parameters have the paths of the graph, whatever looks at a network: burn's visitors, its records, layers and norms by path.
#[test]
fn parameters_have_the_paths_of_the_graph() {
    let device = default_device().autodiff();
    for family in FAMILIES {
        let mut network =
            build(&tiny(family), input(3, 32, 32), &QuantizationPolicy::full_precision(), &device).network;
        let images = images(input(3, 32, 32), &device);
        let loss = network.forward(images).square().sum();
        let paths: Vec<String> =
            gradients(&network, &loss.backward()).into_iter().map(|(path, _)| path).collect();
        let mut expected = Vec::new();
        for node in network.graph().nodes() {
            let names: &[&str] = match node.op {
                Op::Conv(conv) if conv.bias => &["weight", "bias"],
                Op::Conv(_) => &["weight"],
                Op::Linear(linear) if linear.bias => &["weight", "bias"],
                Op::Linear(_) => &["weight"],
                Op::Norm { .. } => &["gamma", "beta"],
                _ => &[],
            };
            expected.extend(names.iter().map(|name| format!("{}.{name}", node.path)));
        }
        assert_eq!(paths, expected, "{family}");
        let layers: Vec<String> = network.layers().map(|(path, _)| path.to_string()).collect();
        assert_eq!(layers, network.layers_mut().map(|(path, _)| path.to_string()).collect::<Vec<_>>());
        let norms: Vec<String> = network.norms().map(|(path, _)| path.to_string()).collect();
        assert_eq!(norms, network.norms_mut().map(|(path, _)| path.to_string()).collect::<Vec<_>>());
        assert!(layers.iter().chain(&norms).all(|path| expected.iter().any(|name| name.starts_with(path))));
        let shown = network.to_string();
        assert!(layers.iter().chain(&norms).all(|path| shown.contains(&format!("{path}: "))), "{shown}");
    }
}

/// A record of one network fills another, whose outputs are then the same.
#[test]
fn records_carry_a_network() {
    let device = default_device();
    let policy = QuantizationPolicy::full_precision();
    for family in FAMILIES {
        let network = |seed| {
            tiny(family)
                .init(input(3, 16, 16), N_CLASSES, &policy, seed, &device)
                .expect("it is defined")
                .network
        };
        let (one, other) = (network(1), network(2));
        let logits = |network: &Network| values(network.forward(images(input(3, 16, 16), &device)));
        assert_ne!(logits(&one), logits(&other), "{family}");
        let loaded = other.load_record(one.clone().into_record());
        assert_eq!(logits(&loaded), logits(&one), "{family}");
    }
}

/// A graph of one's own is a network: two branches of the image, one of them grouped, and feature maps that would be fused away.
#[test]
fn graphs_of_ones_own_run() {
    let build = || -> Result<Graph, GraphError> {
        let mut graph = GraphBuilder::default();
        let image = graph.input([2, 6, 5])?;
        let conv = Conv::new([2, 4], 3, LayerRole::First);
        let one = graph.conv("branch.one", conv, image)?;
        let two = graph.conv("branch.two", Conv { groups: 2, ..conv }, image)?;
        let three = graph.conv("branch.three", conv.with_bias(), image)?;
        let sum = graph.add([one, two])?;
        let sum = graph.add([sum, three])?;
        let normalized = graph.norm("norm", sum)?;
        let activated = graph.relu(normalized)?;
        graph.tap("activated", activated)?;
        let twice = graph.add([activated, activated])?;
        let even = Conv::new([4, 4], 2, LayerRole::Hidden).with_stride(2);
        let hidden = graph.conv("last", even, twice)?;
        let pooled = graph.global_avg_pool(hidden)?;
        let logits = graph.linear("fc", Linear::new([4, 3], LayerRole::Last).without_bias(), pooled)?;
        graph.finish(logits)
    };
    let device = default_device();
    let graph = build().expect("the graph fits together");
    let mut policy = QuantizationPolicy::full_precision();
    policy.patterns.push((Glob::new("branch.*").expect("a pattern"), LayerOverride::default()));
    let network = Network::new(graph.clone(), &policy, 1, &device).expect("it is defined");
    policy.patterns.push((Glob::new("branches.*").expect("a pattern"), LayerOverride::default()));
    let refused = Network::new(graph, &policy, 1, &device).map(|_| ()).unwrap_err();
    assert!(
        matches!(&refused, ModelError::UnmatchedPattern { pattern, .. } if pattern == "branches.*"),
        "{refused}"
    );
    let image = images(input(2, 6, 5), &device);
    let features = network.forward_features(image.clone());
    assert_eq!(network.tap_names(), ["activated"]);
    // By hand, from the same layers.
    let layers: Vec<LayerRef<'_>> = network.layers().map(|(_, layer)| layer).collect();
    let [
        LayerRef::Conv(one),
        LayerRef::Conv(two),
        LayerRef::Conv(three),
        LayerRef::Conv(last),
        LayerRef::Linear(fc),
    ] = layers[..]
    else {
        panic!("the graph has four convolutions and a linear layer");
    };
    let (_, norm) = network.norms().next().expect("the graph has a norm");
    let sum = [one, two, three].map(|conv| conv.forward(image.clone())).into_iter().reduce(|a, b| a + b);
    let activated = norm.forward(sum.expect("there are three")).clamp_min(0.0);
    assert_close(
        "map",
        &values(features.taps[0].clone()),
        &values(activated.clone()),
        Tolerance::relative(1e-6),
    );
    let hidden = last.forward(activated * 2.0);
    let logits = fc.forward(hidden.mean_dim(3).mean_dim(2).flatten(1, 3));
    assert_close("logits", &values(features.logits), &values(logits), Tolerance::relative(1e-5));
}

/// The grids of a network are those of its layers, by path and in forward order, and what its layers compute on.
#[test]
fn a_network_tells_the_grids_of_its_layers() {
    let device = default_device();
    let bits = |bits: u32| Precision::bits(bits).unwrap();
    for family in FAMILIES {
        let base = LayerQuantization::new(Method::Lsq, bits(3), bits(4));
        let mut policy = QuantizationPolicy::new(base);
        policy.first = LayerOverride { act_bits: Some(Precision::FullPrecision), ..LayerOverride::default() };
        let input = input(3, 33, 33);
        let network = build(&tiny(family), input, &policy, &device).network;
        let grids = grids(&network).unwrap();
        let paths: Vec<&str> = grids.iter().map(|layer| layer.path.as_str()).collect();
        let expected = network.layers().filter(|(_, layer)| layer.is_quantized());
        assert_eq!(paths, expected.map(|(path, _)| path).collect::<Vec<_>>(), "{family}");
        assert!(grids[0].weight.is_some() && grids[0].input.is_none(), "{family}: {:?}", grids[0]);
        for (LayerGrids { path, weight, input }, (_, layer)) in
            grids.iter().zip(network.layers().filter(|(_, layer)| layer.is_quantized()))
        {
            let weight = weight.as_ref().unwrap();
            assert_eq!(weight.bits().get(), 3, "{path}");
            if let Some(input) = input {
                assert_eq!(*input, layer.input_quantizer().unwrap().grid().unwrap(), "{path}");
            }
            if let LayerRef::Conv(conv) = layer {
                let quantizer = conv.weight_quantizer.as_ref().unwrap();
                let codes = integers(quantizer.codes(conv.weight.val()));
                let expected = values(quantizer.fake_quantize(conv.weight.val()));
                assert_eq!(weight.dequantize_all(&codes), expected, "{family}: {path}");
            }
        }
        // It can be written and read.
        let text = serde_json::to_string(&grids).unwrap();
        assert_eq!(serde_json::from_str::<Vec<LayerGrids>>(&text).unwrap(), grids);
    }
    let policy = QuantizationPolicy::full_precision();
    let mut network = build(&tiny(Family::ResNet), input(3, 8, 8), &policy, &device).network;
    assert_eq!(grids(&network).unwrap(), []);
    // Nor is there one of weights that are not finite.
    let base = LayerQuantization::new(Method::MinMax, bits(2), bits(2));
    network = build(&tiny(Family::ResNet), input(3, 8, 8), &QuantizationPolicy::new(base), &device).network;
    for (path, layer) in network.layers_mut() {
        if let (true, LayerMut::Conv(conv)) = (path == "stages.0.0.conv2", layer) {
            conv.weight = conv.weight.clone().map(|weight| weight.abs() * f32::INFINITY);
        }
    }
    let message = grids(&network).unwrap_err().to_string();
    assert!(message.starts_with("stages.0.0.conv2 has no grid of its weight: "), "{message}");
}
