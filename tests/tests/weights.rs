//! Weights that PyTorch wrote: what is read of every container it has had, and what torchvision's networks make of images.

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use lowbit_models::{Family, InputShape, Layout, ModelConfig, Network, QuantizationPolicy};
use lowbit_tests::golden::{SmallWeights, TorchvisionFile, TorchvisionNetwork, load};
use lowbit_tests::{Tolerance, assert_close_f64, backends, centered, default_device, tensor, value, values};
use lowbit_train::weights::{self, Container, Fitting, WeightsError, WeightsFile, fits};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Single against double precision, of the largest logit.
const LOGITS: f64 = 1e-5;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/weights").join(name)
}

fn network(model: &ModelConfig, [_, channels, height, width]: [usize; 4], n_classes: usize) -> Network {
    let input = InputShape { channels, height, width };
    let policy = QuantizationPolicy::full_precision();
    model.init(input, n_classes, &policy, 0, &default_device()).unwrap().network
}

/// Compared with the scale of all logits: of few, the largest may be small.
fn check_logits(what: &str, logits: Tensor<2>, expected: &[f64], scale: f64) {
    let tolerance = Tolerance { relative: 0.0, absolute: LOGITS * scale };
    assert_close_f64(what, &values(logits)[..expected.len()], expected, tolerance);
}

#[test]
fn every_container_has_the_logits_of_pytorch() {
    let small: SmallWeights = load("weights/logits");
    let model = ModelConfig::imagenet(Family::ResNet, 18).with_width(small.width);
    let scale = small.logits.iter().fold(0.0f64, |most, logit| most.max(logit.abs()));
    let n_norms = 20;
    for (name, container, n_left_out) in [
        ("zip.pth", Container::PytorchZip, n_norms),
        ("legacy.pth", Container::PytorchLegacy, n_norms + 1),
        ("tar.pth", Container::PytorchTar, n_norms),
        ("mixed.pth", Container::PytorchLegacy, n_norms),
        ("module.pth", Container::PytorchLegacy, n_norms),
    ] {
        let file = WeightsFile::open(&golden(name)).unwrap();
        assert_eq!(file.container(), container, "{name}");
        let (network, fit) = weights::load(&file, network(&model, small.images, small.classes)).unwrap();
        assert_eq!((fit.taken.len(), fit.left_out.len()), (102, n_left_out), "{name}");
        assert_eq!(fit.new_classifier, None, "{name}");
        for backend in backends() {
            let network = burn::module::Module::to_device(network.clone(), &backend.device);
            let pixels = centered(0, small.images.iter().product());
            let logits = network.forward(tensor(&pixels, small.images, &backend.device));
            check_logits(&format!("{name} on {}", backend.name), logits, &small.logits, scale);
        }
        let input = InputShape { channels: small.images[1], height: 224, width: 224 };
        let expected = Fitting { model: model.clone(), input, classes: small.classes };
        assert_eq!(fits(&file), [expected], "{name}");
    }
}

#[test]
fn another_number_of_classes_keeps_the_classifier() {
    let small: SmallWeights = load("weights/logits");
    let model = ModelConfig::imagenet(Family::ResNet, 18).with_width(small.width);
    let file = WeightsFile::open(&golden("zip.pth")).unwrap();
    let fresh = network(&model, small.images, 7);
    let (loaded, fit) = weights::load(&file, fresh.clone()).unwrap();
    let new = fit.new_classifier.unwrap();
    assert_eq!((new.layer.as_str(), new.file_classes, new.classes), ("fc", 5, 7));
    assert_eq!(fit.taken.len(), 100);
    let fc = |network: &Network| -> Vec<f32> {
        use lowbit_quantizers::{LayerRef, QuantizedNetwork};
        let (_, layer) = network.layers().find(|(path, _)| *path == "fc").unwrap();
        let LayerRef::Linear(linear) = layer else { panic!("it is linear") };
        linear.weight.val().into_data().iter::<f32>().collect()
    };
    assert_eq!(fc(&loaded), fc(&fresh));
}

#[test]
fn another_network_is_told_with_all_that_differs() {
    let small: SmallWeights = load("weights/logits");
    let file = WeightsFile::open(&golden("legacy.pth")).unwrap();
    let message = |model: ModelConfig| {
        let error = weights::load(&file, network(&model, small.images, 5)).unwrap_err();
        assert!(matches!(error, WeightsError::Misfit(_)), "{error:?}");
        error.to_string()
    };
    let settings = "it fits model.family=\"resnet\", model.layout=\"imagenet\", model.depth=18, model.width=0.015625 for images \
                    of 1 channel, 5 classes";
    assert_eq!(
        message(ModelConfig::imagenet(Family::ResNet, 34).with_width(small.width)),
        format!(
            "it is of another network: it lacks 80 tensors (layer1.2.conv1.weight, layer1.2.bn1.weight, \
             layer1.2.bn1.bias, layer1.2.bn1.running_mean and 76 more); {settings}"
        )
    );
    let wider = message(ModelConfig::imagenet(Family::ResNet, 18).with_width(2.0 * small.width));
    let shape = "(state_dict.module.conv1.weight is 1x1x7x7, the network has 2x1x7x7, ";
    assert!(
        wider.starts_with(&format!("it is of another network: 101 tensors of another shape {shape}")),
        "{wider}"
    );
    let other = message(ModelConfig::vgg_small().with_width(small.width));
    assert!(other.contains("it lacks 30 tensors (convs.0.weight, norms.0.weight, "), "{other}");
    assert!(other.contains("; it has 100 tensors that the network does not have ("), "{other}");
    let classifier =
        "; 1 tensor of another shape (state_dict.module.fc.weight is 5x8, the network has 5x128); it fits ";
    assert!(other.contains(classifier), "{other}");
}

fn config(name: &str) -> ModelConfig {
    match name {
        "resnet18" => ModelConfig::imagenet(Family::ResNet, 18),
        "resnet34" => ModelConfig::imagenet(Family::ResNet, 34),
        "resnet50" => ModelConfig::imagenet(Family::ResNet, 50),
        "resnet101" => ModelConfig::imagenet(Family::ResNet, 101),
        "alexnet" => ModelConfig::alexnet(Layout::ImageNet).without_norm(),
        "mobilenet_v2" => ModelConfig::mobilenet_v2(Layout::ImageNet),
        other => panic!("no network {other}"),
    }
}

/// A file with all tensors of torchvision's network, by the rule of the generator.
fn written(case: &TorchvisionNetwork, folder: &Path) -> PathBuf {
    let mut idx = 0;
    let tensors: Vec<(&str, Vec<usize>, Vec<u8>, Dtype)> = case
        .tensors
        .iter()
        .map(|tensor| {
            let (name, shape) = tensor.split_once(' ').unwrap();
            let shape: Vec<usize> =
                shape.split('x').filter(|side| !side.is_empty()).map(|side| side.parse().unwrap()).collect();
            if name.ends_with("num_batches_tracked") {
                return (name, shape, vec![0; 8], Dtype::I64);
            }
            let values = value(idx, name, &shape);
            idx += 1;
            (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect(), Dtype::F32)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes, dtype)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let path = folder.join(format!("{}.safetensors", case.name));
    safetensors::serialize_to_file(views, None, &path).unwrap();
    path
}

/// Networks of full width, by the names, shapes and logits of torchvision's own.
#[test]
fn torchvisions_networks_have_their_logits() {
    let folder = tempfile::tempdir().unwrap();
    let file: TorchvisionFile = load("torchvision");
    assert_eq!(file.networks.len(), 6);
    for case in &file.networks {
        let (model, name) = (config(&case.name), &case.name);
        let input = InputShape { channels: 3, height: 224, width: 224 };
        let policy = QuantizationPolicy::full_precision();
        assert_eq!(model.plan(input, 1000, &policy).unwrap().n_parameters(), case.parameters, "{name}");
        let Some(images) = case.images else { continue };
        let path = written(case, folder.path());
        let weights = WeightsFile::open(&path).unwrap();
        assert_eq!(weights.container(), Container::Safetensors);
        // MobileNetV2 has the same shapes in both layouts.
        assert!(fits(&weights).contains(&Fitting { model: model.clone(), input, classes: 1000 }), "{name}");
        let (network, fit) = weights::load(&weights, network(&model, images, 1000)).unwrap();
        let n_tensors = case.tensors.iter().filter(|tensor| !tensor.contains("num_batches_tracked")).count();
        assert_eq!(fit.taken.len(), n_tensors, "{name}");
        let pixels = centered(2 * n_tensors, images.iter().product());
        let logits = network.forward(tensor(&pixels, images, &default_device()));
        check_logits(name, logits, &case.logits, case.scale);
        std::fs::remove_file(path).unwrap();
    }
}

/// A learned factor of the logits, which no file has, stays; other programs get it in the classifier.
#[test]
fn a_scale_of_the_logits_is_part_of_the_exported_classifier() {
    let small: SmallWeights = load("weights/logits");
    let model = ModelConfig::imagenet(Family::ResNet, 18).with_width(small.width);
    let file = WeightsFile::open(&golden("zip.pth")).unwrap();
    let scaled = network(&model.clone().with_logit_scale(), small.images, small.classes);
    let (scaled, fit) = weights::load(&file, scaled).unwrap();
    assert_eq!(fit.taken.len(), 102);
    let pixels = centered(0, small.images.iter().product());
    let images = || tensor(&pixels, small.images, &default_device());
    let expected: Vec<f64> = small.logits.iter().map(|logit| 0.01 * logit).collect();
    let scale = expected.iter().fold(0.0f64, |most, logit| most.max(logit.abs()));
    check_logits("scaled", scaled.forward(images()), &expected, scale);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scaled.safetensors");
    std::fs::write(&path, weights::to_safetensors(&scaled).bytes).unwrap();
    let plain = network(&model, small.images, small.classes);
    let (plain, _) = weights::load(&WeightsFile::open(&path).unwrap(), plain).unwrap();
    check_logits("plain", plain.forward(images()), &expected, scale);
}
