use std::fs;
use std::path::Path;

use lowbit_core::Precision;
use lowbit_data::{Geometry, RandomResizedCrop};

use super::*;
use crate::strategy::{Key, STRATEGIES, Strategy};

const MINIMAL: &str = r#"
schema = 1
name = "test"
[data]
dataset = "digits"
[model]
family = "preresnet"
depth = 8
[quantization]
method = "dorefa"
weight_bits = 2
act_bits = 2
[train]
epochs = 3
learning_rate = 0.1
"#;

fn parse(overrides: &[&str]) -> Result<Recipe, RecipeError> {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Recipe::parse(MINIMAL, "test.toml", &overrides)
}

/// The mistakes of the minimal recipe with `overrides`, as "key: message".
fn mistakes(overrides: &[&str]) -> Vec<String> {
    match parse(overrides) {
        Err(RecipeError::Invalid { problems, .. }) => {
            problems.iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect()
        }
        other => panic!("expected mistakes, got {other:?}"),
    }
}

#[test]
fn embedded_recipes_are_valid_and_named_apart() {
    let names: std::collections::BTreeSet<&str> =
        embedded().iter().map(|recipe| recipe.name.as_str()).collect();
    assert_eq!(names.len(), BASES.len() * (1 + BIT_WIDTHS.len() * (1 + METHODS.len())));
    assert!(names.contains(DEFAULT));
    for recipe in embedded() {
        let parsed = Recipe::embedded(&recipe.name, &[]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(parsed.name, recipe.name);
        assert!(recipe.text.starts_with('#') && recipe.summary().len() > 10, "{} has no header", recipe.name);
    }
}

#[test]
fn a_resolved_recipe_reads_back_as_itself() {
    let elaborate = [
        "train.epochs=5",
        "train.optimizer={kind='adamw', beta1=0.8}",
        "train.schedule={kind='multi-step', milestones=[1, 2]}",
        "train.ema_decay=0.99",
        "train.gradient_clip=1.5",
        "train.compute='bf16'",
        "quantization.grad_bits=6",
        "quantization.layers=[{pattern='stages.*.0.*', weight_bits=4, method='lsq'}]",
        "quantization.last={method='minmax', weight_bits=8, act_bits=8, weight_granularity='per-channel'}",
        "data.augment={pad=1, flip=true}",
        "checkpoint.every_steps=7",
        "init='runs/earlier'",
        "reference='full precision: 99 %'",
        "strategy.two_stage=true",
        "strategy.progressive={ladder=['fp32', 5]}",
        "strategy.stochastic_precision={unit='channel-group', groups=8, probability={kind='stepped'}}",
        "strategy.joint={mode='student-only', distance={kind='logits-mse'}, teacher={depth=14, learning_rate_scale=0.2}, students=[{weight_bits=4, act_bits=4}]}",
        "strategy.hint={weight=0.5, taps=['stages.1']}",
        "phases={w5a32={epochs=7, schedule={kind='constant'}, optimizer_state='kept', quantizer_state='rescaled'}}",
    ];
    let mut recipes: Vec<Recipe> =
        embedded().iter().map(|recipe| Recipe::embedded(&recipe.name, &[]).unwrap()).collect();
    recipes.push(parse(&elaborate).unwrap());
    for recipe in recipes {
        let text = recipe.to_toml();
        assert_eq!(Recipe::parse(&text, "resolved", &[]).unwrap_or_else(|e| panic!("{e}\n{text}")), recipe);
    }
}

#[test]
fn every_mistake_is_reported_with_key_value_and_what_is_allowed() {
    let found = mistakes(&[
        "train.learning_rat=0.1",
        "train.epochs=0",
        "quantization.weight_bits=9",
        "quantization.act_bits='full'",
        "quantization.method='dorefe'",
        "model.depth=9",
        "data.batch_size='many'",
        "colour=1",
    ]);
    assert_eq!(
        found,
        [
            "data.batch_size: expected an integer from 1 to 65536, got \"many\"",
            "model.depth: expected 6n+2 up to 9998: 8, 14, 20, 32, 44, 56 or 110, got 9",
            "quantization.method: expected one of \"dorefa\", \"pact\", \"lsq\", \"minmax\", \"ewgs\", \"lsq-plus\", \"tqt\", \"apot\", \"qil\", \"lq-nets\", \"dsq\", \"n2uq\", \"hwgq\", \"xnor\", \"twn\", got \"dorefe\"; did you mean \"dorefa\"?",
            "quantization.weight_bits: expected a bit width from 1 to 8, or \"fp32\", got 9",
            "quantization.act_bits: expected a bit width from 1 to 8, or \"fp32\", got \"full\"",
            "train.epochs: expected an integer from 1 to 100000, got 0",
            "train.learning_rat: unknown key, set to 0.1; did you mean \"learning_rate\"?",
            "colour: unknown key, set to 1; the keys here are schema, name, seed, reference, init, data, model, quantization, train, strategy, checkpoint, early_stopping, phases",
        ]
    );
}

#[test]
fn keys_of_other_tables_are_found() {
    let cases = [
        (
            "learning_rate=0.1",
            "learning_rate: unknown key, set to 0.1; did you mean \"train.learning_rate\"?",
        ),
        ("epochs=3", "epochs: unknown key, set to 3; did you mean \"train.epochs\"?"),
        ("train.batch_size=8", "train.batch_size: unknown key, set to 8; did you mean \"data.batch_size\"?"),
        (
            "model.act_bits=4",
            "model.act_bits: unknown key, set to 4; did you mean \"quantization.act_bits\"?",
        ),
        (
            "learning_rte='x'",
            "learning_rte: unknown key, set to \"x\"; did you mean \"train.learning_rate\"?",
        ),
        ("modl={}", "modl: unknown key, set to a table; did you mean \"model\"?"),
    ];
    for (change, expected) in cases {
        assert_eq!(mistakes(&["quantization.last={act_bits=8}", change]), [expected]);
    }
}

#[test]
fn bits_that_a_method_cannot_do_are_refused_where_they_stand() {
    assert_eq!(
        mistakes(&["quantization.last={method='minmax', weight_bits=1}"]),
        [
            "quantization.last.weight_bits: minmax cannot quantize weights to 1 bits: it takes 2 to 8 bits, or \"fp32\""
        ]
    );
    assert_eq!(
        mistakes(&["quantization.layers=[{pattern='fc', weight_granularity='per-channel'}]"]),
        [
            "quantization.layers[0].weight_granularity: dorefa quantizes weights per-tensor only, got per-channel"
        ]
    );
    for bits in ["0", "-1", "33", "2.5", "true"] {
        assert_eq!(mistakes(&[&format!("quantization.weight_bits={bits}")]).len(), 1, "{bits}");
    }
}

/// What counts is what a layer gets in the end, and a mistake is where the last word on it was said.
#[test]
fn layers_are_checked_as_they_are_resolved() {
    let valid: [&[&str]; 3] = [
        &[
            "quantization.layers=[{pattern='**', method='lsq'}, {pattern='stages.0.**', weight_granularity='per-channel'}]",
        ],
        &[
            "quantization.last={method='minmax', weight_bits=1}",
            "quantization.layers=[{pattern='fc', weight_bits=2}]",
        ],
        &["quantization.first={weight_bits=8}"],
    ];
    for overrides in valid {
        parse(overrides).unwrap_or_else(|error| panic!("{error}"));
    }
    let one_bit = "minmax cannot quantize weights to 1 bits: it takes 2 to 8 bits, or \"fp32\"";
    let per_channel = "dorefa quantizes weights per-tensor only, got per-channel";
    let cases: [(&[&str], String); 8] = [
        (
            &["quantization.shortcut={weight_method='xnor'}"],
            "quantization.shortcut.weight_method: xnor cannot quantize weights to 2 bits: it takes 1 bit, or \"fp32\"".into(),
        ),
        (
            &["quantization.layers=[{pattern='stages.**', act_method='apot', act_bits=8}]"],
            "quantization.layers[0].act_bits: apot cannot quantize activations to 8 bits: it takes 2 to 4 bits, or \"fp32\"".into(),
        ),
        (
            &["quantization.last={method='minmax'}", "quantization.layers=[{pattern='fc', weight_bits=1}]"],
            format!("quantization.layers[0].weight_bits: {one_bit}"),
        ),
        (
            &["quantization.weight_bits=1", "quantization.shortcut={method='minmax'}"],
            format!("quantization.shortcut.method: {one_bit}"),
        ),
        (&["quantization.weight_granularity='per-channel'"], format!("quantization.weight_granularity: {per_channel}")),
        (
            &[
                "quantization.method='lsq'",
                "quantization.weight_granularity='per-channel'",
                "quantization.layers=[{pattern='stages.**', act_bits=4}, {pattern='stages.0.**', method='dorefa'}]",
            ],
            format!("quantization.layers[1].method: {per_channel}"),
        ),
        (
            &["quantization.method='minmax'", "strategy.joint={students=[{weight_bits=4, act_bits=4}, {weight_bits=1, act_bits=2}]}"],
            format!("strategy.joint.students[1].weight_bits: {one_bit}"),
        ),
        (
            &["quantization.first={act_bits=8}"],
            "quantization.first.act_bits: dorefa quantizes what is not negative, and would cut off half of the normalized \
             image at stem: take act_method = \"minmax\" for it, or act_bits = \"fp32\""
                .into(),
        ),
    ];
    for (overrides, message) in cases {
        assert_eq!(mistakes(overrides), [message], "{overrides:?}");
    }
    parse(&["quantization.first={method='minmax', act_bits=8}"]).unwrap();
    // Of a network that is not defined, too.
    let both = ["model.depth=9", "quantization.last={method='minmax', weight_bits=1}"];
    assert_eq!(mistakes(&both).len(), 2);
}

#[test]
fn every_pattern_without_a_layer_is_reported() {
    let layers = "quantization.layers=[{pattern='a.*', weight_bits=4}, {pattern='fc', weight_bits=4}, {pattern='b[', weight_bits=4}, {pattern='stages.3.**', weight_bits=4}]";
    let found = mistakes(&[layers, "train.epochs=0"]);
    assert_eq!(
        found,
        [
            "quantization.layers[2].pattern: is not a pattern: error parsing glob 'b[': unclosed character class; missing ']'",
            "quantization.layers[0].pattern: \"a.*\" matches no layer; the layers are stem, stages.0.0.conv1, \
             stages.0.0.conv2, stages.1.0.conv1, stages.1.0.conv2, stages.1.0.shortcut, stages.2.0.conv1, \
             stages.2.0.conv2, stages.2.0.shortcut, fc",
            "quantization.layers[3].pattern: \"stages.3.**\" matches no layer",
            "train.epochs: expected an integer from 1 to 100000, got 0",
        ]
    );
}

/// To try a recipe out is to train it for an epoch a phase. With fewer it is refused: it would train longer than was asked
/// for.
#[test]
fn every_recipe_takes_an_epoch_a_phase_and_no_fewer() {
    for recipe in embedded() {
        let n_phases = Recipe::embedded(&recipe.name, &[]).unwrap().phases().len();
        let with = |epochs: usize| Recipe::embedded(&recipe.name, &[format!("train.epochs={epochs}")]);
        let short = with(n_phases).unwrap_or_else(|error| panic!("{error}"));
        assert!(short.phases().iter().all(|phase| phase.train.epochs == 1), "{}", recipe.name);
        assert!(n_phases == 1 || with(n_phases - 1).is_err(), "{}", recipe.name);
    }
    let change = "phases={w2a2={epochs=1}, w2a32={schedule={kind='multi-step', milestones=[9]}}}";
    let multi_step = "train.schedule={kind='multi-step', milestones=[80, 120]}";
    parse(&["strategy.two_stage=true", change, multi_step]).unwrap();
}

#[test]
fn more_phases_than_epochs_are_refused_with_what_to_write() {
    let ladder = "strategy={two_stage=true, progressive={ladder=['fp32', 4]}}";
    assert_eq!(
        mistakes(&[ladder]),
        [
            "strategy: train.epochs=3 is too few for 5 phases (w32a32, w4a32, w4a4, w2a4, w2a2): at least 5, or give \
             [phases.NAME] epochs of their own, or drop a part of [strategy]"
        ]
    );
    let own =
        "phases={w32a32={epochs=1}, w4a32={epochs=1}, w4a4={epochs=1}, w2a4={epochs=1}, w2a2={epochs=1}}";
    assert_eq!(parse(&[ladder, own]).unwrap().total_epochs(), 5);
    for epochs in 5..40 {
        let recipe = parse(&[ladder, &format!("train.epochs={epochs}")]).unwrap();
        assert_eq!(recipe.total_epochs(), epochs);
    }
}

/// Over all bit widths and ladders: no precision comes twice, none of the two operands gets bits back, and the last phase
/// has what was asked for.
#[test]
fn phases_only_ever_lower_bits() {
    let floor = |weight_bits: u32, act_bits: u32| {
        let bits = |bits: u32| match bits {
            32 => Precision::FullPrecision,
            bits => Precision::bits(bits).unwrap(),
        };
        PrecisionFloor { weight_bits: bits(weight_bits), act_bits: bits(act_bits) }
    };
    let rungs = [32, 8, 7, 6, 5, 4, 3, 2, 1];
    let widths = [32, 8, 4, 3, 2, 1];
    let train = parse(&[]).unwrap().train;
    for subset in 0u32..1 << rungs.len() {
        let kept = rungs.iter().enumerate().filter(|(i, _)| subset >> i & 1 == 1);
        let ladder = kept.map(|(_, &bits)| floor(bits, bits).weight_bits).collect();
        let progressive = crate::strategy::Progressive { ladder, low_bit_rate_scale: 1.0 };
        for target in widths.iter().flat_map(|&weight| widths.map(|act| floor(weight, act))) {
            check_descent(&[&progressive, &crate::strategy::TwoStage], target, &train);
        }
    }
}

fn check_descent(strategies: &[&dyn Strategy], target: PrecisionFloor, train: &TrainRecipe) {
    let single = crate::strategy::Phase {
        name: crate::strategy::phase_name(target.weight_bits, target.act_bits),
        floor: target,
        train: train.clone(),
        optimizer_state: Default::default(),
        quantizer_state: Default::default(),
    };
    let phases = strategies.iter().fold(vec![single], |phases, strategy| strategy.phases(phases));
    let names: Vec<&str> = phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(phases.last().unwrap().floor, target, "{names:?}");
    for (before, after) in phases.iter().zip(&phases[1..]) {
        let (before, after) = (before.floor, after.floor);
        let [[w1, a1], [w2, a2]] =
            [before, after].map(|floor| [floor.weight_bits, floor.act_bits].map(|bits| bits.stored_bits()));
        assert!(w2 <= w1 && a2 <= a1, "{names:?}");
        assert_ne!(before, after, "{names:?}");
        // Two stages: never both at once, unless weights or activations stay in full precision from the start.
        assert!(after.weight_bits == before.weight_bits || after.act_bits == before.act_bits, "{names:?}");
    }
}

/// A strategy of the caller's is held to the same, and what it says of epochs counts.
#[test]
fn phases_of_own_strategies_are_checked_and_keep_their_epochs() {
    #[derive(Debug)]
    struct Epochs(&'static [(&'static str, u64)]);
    impl Strategy for Epochs {
        fn name(&self) -> &str {
            "own"
        }
        fn settings(&self) -> crate::strategy::Settings {
            crate::strategy::Settings::of(&self.0)
        }
        fn phases(&self, phases: Vec<crate::strategy::Phase>) -> Vec<crate::strategy::Phase> {
            let phase = |&(name, epochs): &(&str, u64)| {
                let mut phase = phases[0].clone();
                (phase.name, phase.train.epochs) = (name.into(), epochs);
                phase
            };
            self.0.iter().map(phase).collect()
        }
    }
    let recipe = parse(&["train.epochs=10"]).unwrap();
    let phases = |epochs: &'static [(&str, u64)]| {
        let phases = recipe.phases_with(&[Box::new(Epochs(epochs))]).map_err(|error| error.to_string())?;
        Ok::<_, String>(phases.iter().map(|phase| phase.train.epochs).collect::<Vec<_>>())
    };
    assert_eq!(phases(&[("a", 1), ("b", 1), ("c", 8)]), Ok(vec![1, 1, 8]));
    let other = "train.epochs=10, but the phases have 11 epochs together, as the strategies give them (10 of a, 1 of b): set train.epochs=11, or \
                 give each of [phases.NAME] its epochs";
    assert_eq!(phases(&[("a", 10), ("b", 1)]), Err(other.into()));
    assert_eq!(phases(&[("a", 10), ("b", 10)]), Ok(vec![5, 5]));
    let repeated = "strategy \"own\" makes two phases named \"a\": each needs a name of its own";
    assert_eq!(phases(&[("a", 10), ("b", 10), ("a", 10)]), Err(repeated.into()));
    assert_eq!(phases(&[("a", 0), ("b", 10)]), Err("the strategies give phase \"a\" no epoch".into()));
    assert_eq!(phases(&[]), Err("strategy \"own\" leaves no phase to train in".into()));
    // What is said of a phase that it makes another of would have no effect.
    let changed = parse(&["phases.w2a2.learning_rate=0.5"]).unwrap();
    assert_eq!(changed.phases_with(&[Box::new(Epochs(&[("w2a2", 3)]))]).unwrap()[0].train.learning_rate, 0.5);
    let error = changed.phases_with(&[Box::new(Epochs(&[("a", 10), ("b", 10)]))]).unwrap_err();
    assert_eq!(error.to_string(), "phases.w2a2: the strategies make no such phase; the phases are a, b");
}

/// What reading takes grows with a recipe, not with its square.
#[test]
fn a_recipe_of_many_keys_is_refused_at_once() {
    let lines: String = (0..200_000).map(|i| format!("key{i} = {i}\n")).collect();
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("many.toml");
    fs::write(&path, format!("schema = 1\nname = \"many\"\nextends = \"{DEFAULT}\"\n[data]\n{lines}"))
        .unwrap();
    let start = std::time::Instant::now();
    let Err(RecipeError::Invalid { problems, .. }) =
        RecipeSource::file(&path).and_then(|source| source.recipe(&[]))
    else {
        panic!("it is read")
    };
    assert_eq!(problems.len(), 200_000);
    let last = problems.iter().find(|problem| problem.key == "data.key199999").unwrap();
    assert_eq!(last.place.as_deref(), Some("line 200004"));
    // Seconds; with the square, it would be many minutes.
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

/// A number that single precision makes 0, 1 or infinite is none in the range.
#[test]
fn ranges_hold_in_single_precision() {
    for text in [
        "train.optimizer={kind='adam', beta2=0.999999999}",
        "train.optimizer={kind='adam', epsilon=1e-60}",
        "train.weight_decay=1e300",
        "train.gradient_clip=1e-300",
        "train.learning_rate=1e39",
        "train.ema_decay=0.9999999999",
    ] {
        let found = mistakes(&[text]);
        assert!(found.len() == 1 && found[0].contains(": expected a number "), "{found:?}");
    }
    parse(&["train.optimizer={kind='adam', beta2=0.9999999, epsilon=1e-30}"]).unwrap();
}

#[test]
fn missing_and_contradictory_keys_are_refused() {
    let Err(RecipeError::Invalid { problems, .. }) = Recipe::parse("schema = 1", "empty.toml", &[]) else {
        panic!("an empty recipe is not valid");
    };
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    for key in ["name", "data.dataset", "model.family", "quantization.weight_bits", "train.learning_rate"] {
        assert!(keys.contains(&key), "{key} not in {keys:?}");
    }
    let one_mistake = [
        "data.labels='coarse'",
        "data.batch_size=2000",
        "train.warmup_epochs=4",
        "train.optimizer={kind='adamw', momentum=0.9}",
        "train.optimizer={kind='sgd', momentum=0.0, nesterov=true}",
        "train.schedule={kind='multi-step', milestones=[2, 1]}",
        "train.schedule={kind='cosine', gamma=0.1}",
        "model.stem_stride=3",
        "name='a/b'",
        "schema=2",
    ];
    for text in one_mistake {
        assert_eq!(mistakes(&[text]).len(), 1, "{text}: {:?}", mistakes(&[text]));
    }
    let vgg = mistakes(&["model.family='vgg-small'"]);
    assert_eq!(vgg, ["model.depth: vgg-small has a fixed depth: remove this key"]);
}

#[test]
fn layouts_have_their_own_depths_and_feature_maps() {
    let imagenet = "model.layout='imagenet'";
    let recipe = parse(&[
        imagenet,
        "model.depth=18",
        "quantization.layers=[{pattern='layer4.*.conv2', weight_bits=4}]",
        "strategy.joint={teacher={depth=50}}",
        "strategy.hint={weight=1.0, taps=['layer2', 'layer4']}",
    ])
    .unwrap();
    assert_eq!(recipe.model, ModelConfig::imagenet(Family::PreResNet, 18));
    let teacher = &recipe.strategy.joint.as_ref().unwrap().teacher.model;
    assert_eq!(*teacher, ModelConfig::imagenet(Family::PreResNet, 50));
    assert_eq!(recipe.strategy.hint.as_ref().unwrap().taps, ["layer2", "layer4"]);
    assert!(recipe.to_toml().contains("taps = [\"layer2\", \"layer4\"]"));
    assert_eq!(Recipe::parse(&recipe.to_toml(), "resolved", &[]).unwrap(), recipe);

    let cases: [(&[&str], &str); 8] = [
        (
            &["model.depth=18"],
            "model.depth: expected 6n+2 up to 9998: 8, 14, 20, 32, 44, 56 or 110, got 18; layout = \"imagenet\" has it",
        ),
        (&[imagenet], "model.depth: expected 18, 34, 50 or 101, got 8; layout = \"cifar\" has it"),
        (&[imagenet, "model.depth=19"], "model.depth: expected 18, 34, 50 or 101, got 19"),
        (
            &["model.layout='image-net'"],
            "model.layout: expected one of \"cifar\", \"imagenet\", got \"image-net\"; did you mean \"imagenet\"?",
        ),
        (
            &["model={family='vgg-small', layout='imagenet'}"],
            "model.layout: vgg-small has none: remove this key",
        ),
        (
            &["strategy.joint={teacher={layout='imagenet'}}"],
            "strategy.joint.teacher.depth: is missing; expected 18, 34, 50 or 101",
        ),
        (
            &[
                imagenet,
                "model.depth=18",
                "strategy.joint={}",
                "strategy.hint={weight=1.0, taps=['stages.1']}",
            ],
            "strategy.hint.taps: expected a list of some of \"layer1\", \"layer2\", \"layer3\", \"layer4\", got \
             [\"stages.1\"]",
        ),
        (
            &[
                "model={family='resnet', layout='imagenet', depth=18, stem_stride=1}",
                "strategy.joint={teacher={layout='cifar', depth=20, stem_stride=2}}",
                "strategy.hint={weight=1.0, taps=['layer1', 'layer4']}",
            ],
            "strategy.hint: map layer4 of the student has no counterpart, the teacher has 3 maps: leave it out of taps, or \
             change the teacher",
        ),
    ];
    for (overrides, message) in cases {
        assert_eq!(mistakes(overrides), [message], "{overrides:?}");
    }
    // Both layouts have a depth of 50.
    parse(&["model.depth=50"]).unwrap();
    let other = parse(&[imagenet, "model.depth=18", "strategy.joint={teacher={family='resnet', depth=34}}"]);
    let teacher = other.unwrap().strategy.joint.unwrap().teacher.model;
    assert_eq!(teacher, ModelConfig::imagenet(Family::ResNet, 34));
}

#[test]
fn overrides_take_values_texts_and_tables() {
    let recipe =
        parse(&["train.learning_rate = 0.5", "quantization.act_bits=fp32", "train.ema_decay=0.9"]).unwrap();
    assert_eq!(recipe.train.learning_rate, 0.5);
    assert_eq!(recipe.quantization.policy.base.act_bits, Precision::FullPrecision);
    assert_eq!(recipe.quantization.summary(), "W2A32");
    assert_eq!(recipe.train.ema_decay, Some(0.9));
    assert_eq!(parse(&["train . learning_rate = 0.5"]).unwrap().train.learning_rate, 0.5);
    let malformed = ["train.epochs", "=3", "train..epochs=3", "seed=1\ntrain=2", "train.epochs=0"];
    assert_eq!(
        mistakes(&malformed),
        [
            "setting \"train.epochs\": is not of the form key=value, as in train.epochs=3",
            "setting \"=3\": is not of the form key=value, as in train.epochs=3",
            "setting \"train..epochs=3\": is not of the form key=value, as in train.epochs=3",
            "setting \"seed=1\\ntrain=2\": has more than one key: give each a setting of its own",
            "train.epochs: expected an integer from 1 to 100000, got 0",
        ]
    );
    assert!(matches!(Recipe::parse("a = = 1", "broken.toml", &[]), Err(RecipeError::Syntax { .. })));
    let unknown = Recipe::embedded("digits-preresnet8-w2a3", &[]).unwrap_err().to_string();
    let meant = "take \"digits-preresnet8-w2a2\" with the settings quantization.weight_bits=2 and quantization.act_bits=3; `";
    assert!(unknown.contains(meant), "{unknown}");
    let weights_only = Recipe::embedded("digits-preresnet8-w4a32", &[]).unwrap_err().to_string();
    let meant = "take \"digits-preresnet8-w2a2\" with the settings quantization.weight_bits=4 and quantization.act_bits=fp32; `";
    assert!(weights_only.contains(meant), "{weights_only}");
    for name in ["digits-preresnet8-w32a32", "digits-preresnet8-w32a32-joint"] {
        let full = Recipe::embedded(name, &[]).unwrap_err().to_string();
        assert!(full.contains("did you mean \"digits-preresnet8-fp32\"?"), "{full}");
    }
    let none = Recipe::embedded("digits-preresnet8-w9a9", &[]).unwrap_err().to_string();
    assert!(none.contains("bits are from 1 to 8"), "{none}");
}

/// A mistake hides only what may follow from it.
#[test]
fn mistakes_that_have_nothing_to_do_with_each_other_are_told_together() {
    let phase = "phases={w2a22={epochs=2}}";
    let no_phase = "phases.w2a22: no such phase; the phases are w2a2";
    for other in ["train.epochs=0", "data.batch_size=0", "checkpoint.keep_last=0", "seed=-1"] {
        let found = mistakes(&[other, phase]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.contains(&no_phase.to_string()), "{found:?}");
    }
    // The phase may be one of the precision that is meant.
    assert_eq!(mistakes(&["quantization.act_bits=99", phase]).len(), 1);
    let full = ["quantization.weight_bits='fp32'", "quantization.act_bits='fp32'", "strategy.two_stage=true"];
    assert_eq!(mistakes(&full).len(), 1);
    assert_eq!(mistakes(&[&full[..], &["data.batch_size=0"]].concat()).len(), 2);
}

/// The ladder of the paper, in its own words.
#[test]
fn full_precision_has_three_spellings_and_16_bits_none() {
    for text in ["32", "'none'", "'fp32'", "none"] {
        let recipe = parse(&[&format!("quantization.act_bits={text}")]).unwrap();
        assert_eq!(recipe.quantization.policy.base.act_bits, Precision::FullPrecision, "{text}");
        assert!(recipe.to_toml().contains("act_bits = \"fp32\""), "{text}");
    }
    assert_eq!(names(&["strategy.progressive={ladder=[32, 8, 4, 2]}"]), ["w32a32", "w8a8", "w4a4", "w2a2"]);
    assert_eq!(names(&["strategy.progressive={ladder=['none', 4]}"]), ["w32a32", "w4a4", "w2a2"]);
    assert_eq!(
        mistakes(&["strategy.progressive={ladder=[32, 16, 8, 4, 2]}", "quantization.first={weight_bits=16}"]),
        [
            "quantization.first.weight_bits: expected a bit width from 1 to 8, or \"fp32\", got 16; 16 bits train like \
             full precision and are not offered: take \"fp32\"",
            "strategy.progressive.ladder: expected a list of bit widths from 1 to 8, or \"fp32\", got [32, 16, 8, 4, 2]; 16 \
             bits train like full precision and are not offered: leave them out",
        ]
    );
    let repeated = mistakes(&["strategy.progressive={ladder=[32, 'fp32', 4]}"]);
    assert_eq!(
        repeated,
        ["strategy.progressive.ladder: expected descending bit widths, got [fp32, fp32, 4]"]
    );
}

/// Name and epochs of every phase of the minimal recipe with `overrides`.
fn phases(overrides: &[&str]) -> Vec<(String, u64)> {
    let recipe = parse(overrides).unwrap_or_else(|error| panic!("{error}"));
    let phases = recipe.phases().into_iter();
    phases.map(|phase| (phase.name, phase.train.epochs)).collect()
}

fn names(overrides: &[&str]) -> Vec<String> {
    phases(&[overrides, &["train.epochs=20"]].concat()).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn strategies_divide_a_training_into_phases() {
    assert_eq!(phases(&[]), [("w2a2".into(), 3)]);
    assert_eq!(names(&["strategy.two_stage=true"]), ["w2a32", "w2a2"]);
    let epochs =
        |overrides: &[&str]| phases(overrides).into_iter().map(|(_, epochs)| epochs).collect::<Vec<_>>();
    assert_eq!(epochs(&["train.epochs=20", "strategy.progressive={}"]), [3, 3, 4, 10]);
    assert_eq!(epochs(&["train.epochs=4", "strategy.progressive={}"]), [1, 1, 1, 1]);
    assert_eq!(epochs(&["train.epochs=7", "strategy.progressive={}"]), [1, 1, 1, 4]);
    let stretched = parse(&[
        "train.epochs=200",
        "train.warmup_epochs=4",
        "train.schedule={kind='multi-step', milestones=[80, 120]}",
        "strategy.progressive={}",
    ])
    .unwrap();
    let trains: Vec<_> = stretched.phases().into_iter().map(|phase| phase.train).collect();
    assert_eq!(trains[0].schedule, ScheduleRecipe::MultiStep { milestones: vec![13, 20], gamma: 0.1 });
    assert_eq!(trains[3].schedule, ScheduleRecipe::MultiStep { milestones: vec![40, 60], gamma: 0.1 });
    assert_eq!((trains[0].epochs, trains[3].epochs, trains[3].warmup_epochs), (33, 100, 2.0));
    assert_eq!(names(&["strategy.progressive={}"]), ["w32a32", "w8a8", "w4a4", "w2a2"]);
    let three_bits = ["strategy.progressive={}", "quantization.weight_bits=3", "quantization.act_bits=3"];
    assert_eq!(names(&three_bits), ["w32a32", "w8a8", "w4a4", "w3a3"]);
    let mixed = ["strategy.progressive={ladder=[8, 4, 2]}", "quantization.weight_bits=1"];
    assert_eq!(names(&mixed), ["w8a8", "w4a4", "w2a2", "w1a2"]);
    let weights_only = ["strategy.progressive={ladder=[4, 3]}", "quantization.act_bits=fp32"];
    assert_eq!(names(&weights_only), ["w4a32", "w3a32", "w2a32"]);
    assert_eq!(
        names(&["strategy.two_stage=true", "strategy.progressive={ladder=['fp32', 4]}"]),
        ["w32a32", "w4a32", "w4a4", "w2a4", "w2a2"]
    );
    let nested = |weight_bits: u32, act_bits: u32, ladder: &str| {
        let bits =
            [format!("quantization.weight_bits={weight_bits}"), format!("quantization.act_bits={act_bits}")];
        names(&["strategy.two_stage=true", &format!("strategy.progressive={{{ladder}}}"), &bits[0], &bits[1]])
    };
    assert_eq!(nested(4, 2, "ladder=['fp32', 4]"), ["w32a32", "w4a32", "w4a4", "w4a2"]);
    assert_eq!(nested(8, 2, ""), ["w32a32", "w8a32", "w8a8", "w8a4", "w8a2"]);
    assert_eq!(nested(3, 2, "ladder=['fp32', 4]"), ["w32a32", "w4a32", "w4a4", "w3a4", "w3a2"]);
    assert_eq!(nested(1, 4, ""), ["w32a32", "w8a32", "w8a8", "w4a8", "w4a4", "w2a4", "w1a4"]);
}

#[test]
fn phases_take_settings_of_their_own_and_a_floor_that_patterns_respect() {
    let recipe = parse(&[
        "train.epochs=4",
        "strategy.two_stage=true",
        "strategy.progressive={ladder=[4]}",
        "quantization.first={method='minmax', weight_bits=8, act_bits=8}",
        "quantization.layers=[{pattern='stages.0.**', weight_bits=1}]",
        "phases={w4a32={epochs=7, learning_rate=0.5}, w2a2={schedule={kind='cosine'}, optimizer_state='kept'}}",
    ])
    .unwrap();
    let phases = recipe.phases();
    let settings: Vec<_> = phases
        .iter()
        .map(|phase| (phase.name.as_str(), phase.train.epochs, phase.train.learning_rate))
        .collect();
    assert_eq!(settings, [("w4a32", 7, 0.5), ("w4a4", 1, 0.1), ("w2a4", 1, 0.1), ("w2a2", 1, 0.1)]);
    assert_eq!(phases[3].train.schedule, ScheduleRecipe::Cosine);
    assert_eq!(recipe.total_epochs(), 10);
    let bits = |phase: usize, path: &str, role| {
        let resolved = recipe.quantization.policy_at(phases[phase].floor).resolve(path, role);
        (resolved.weight_bits.stored_bits(), resolved.act_bits.stored_bits())
    };
    use lowbit_quantizers::LayerRole::{First, Hidden, Last};
    let path = "stages.0.0.conv1";
    assert_eq!([0, 1, 2, 3].map(|phase| bits(phase, path, Hidden)), [(4, 32), (4, 4), (1, 4), (1, 2)]);
    assert_eq!([0, 3].map(|phase| bits(phase, "stem", First)), [(8, 32), (8, 8)]);
    assert_eq!([0, 3].map(|phase| bits(phase, "fc", Last)), [(32, 32), (32, 32)]);
}

/// What is counted in epochs goes by those of the phase, its share or its own.
#[test]
fn a_schedule_is_scaled_to_the_epochs_of_its_phase() {
    let recipe = parse(&[
        "train.epochs=200",
        "train.warmup_epochs=10",
        "train.schedule={kind='multi-step', milestones=[60, 120]}",
        "strategy.progressive={ladder=['fp32', 4]}",
        "phases={w32a32={epochs=200}, w4a4={epochs=3}, w2a2={epochs=400, warmup_epochs=1}}",
    ])
    .unwrap();
    let phases = recipe.phases();
    let settings = phases.iter().map(|phase| {
        let ScheduleRecipe::MultiStep { milestones, .. } = &phase.train.schedule else { unreachable!() };
        (phase.train.epochs, milestones.clone(), phase.train.warmup_epochs)
    });
    let expected = [(200, vec![60, 120], 10.0), (3, vec![1, 2], 0.15), (400, vec![120, 240], 1.0)];
    assert_eq!(settings.collect::<Vec<_>>(), expected);
    assert_eq!(
        mistakes(&["strategy.two_stage=true", "phases={w2a32={epochs=3, warmup_epochs=5}}"]),
        ["phases.w2a32.warmup_epochs: 5 is more than all 3 epochs"]
    );
}

#[test]
fn strategies_that_make_no_sense_are_refused_with_the_reason() {
    let fp32 = ["quantization.weight_bits=fp32", "quantization.act_bits=fp32"];
    let with = |change: &'static str| mistakes(&[fp32[0], fp32[1], change]);
    assert_eq!(
        with("strategy.progressive={}"),
        [
            "strategy.progressive: lowers bit widths step by step, but nothing is quantized: remove it, or lower the bits"
        ]
    );
    assert_eq!(with("strategy.two_stage=true").len(), 1);
    assert_eq!(with("strategy.stochastic_precision={}").len(), 1);
    assert_eq!(with("strategy.joint={teacher={}}").len(), 1);
    let cases = [
        (
            "strategy.hint={weight=1.0}",
            "strategy.hint: draws feature maps to a teacher's: it needs [strategy.joint]",
        ),
        (
            "strategy.progressive={ladder=[4, 8]}",
            "strategy.progressive.ladder: expected descending bit widths, got [4, 8]",
        ),
        ("strategy.progressive={ladder=[2]}", "strategy.progressive.ladder: has no rung above W2A2: got [2]"),
        (
            "strategy.joint={mode='frozen'}",
            "strategy.joint.teacher.init: is missing; a frozen teacher needs the run directory of a trained network",
        ),
        (
            "strategy.joint={mode='student-only', teacher_distill_weight=0.5}",
            "strategy.joint.teacher_distill_weight: has no effect unless mode = \"mutual\": remove this key",
        ),
        ("phases={w4a4={epochs=2}}", "phases.w4a4: no such phase; the phases are w2a2"),
        (
            "strategy.stochastic_precision={groups=4}",
            "strategy.stochastic_precision.groups: is the number of groups for unit = \"channel-group\": remove this key",
        ),
        (
            "strategy.stochastic_precision={probability={kind='stepped', values=[1.0, 0.5]}}",
            "strategy.stochastic_precision.probability.values: expected ascending numbers from 0 to 1, got [1.0, 0.5]",
        ),
        (
            "strategy.joint={students=[{weight_bits=4, act_bits=4}, {weight_bits='fp32', act_bits=32}]}",
            "strategy.joint.students[1]: has nothing quantized: the full-precision network is the teacher",
        ),
        (
            "strategy.joint={students=[{weight_bits=9, act_bits=32}]}",
            "strategy.joint.students[0].weight_bits: expected a bit width from 1 to 8, or \"fp32\", got 9",
        ),
        (
            "strategy.joint={student_label_weight=0.0, student_distill_weight=0.0}",
            "strategy.joint: student_label_weight and student_distill_weight are both 0: the student would learn from \
             neither the labels nor the teacher",
        ),
        (
            "strategy.joint={mode='frozen', teacher_label_weight=0.5, teacher={init='runs/teacher'}}",
            "strategy.joint.teacher_label_weight: has no effect on a frozen teacher: remove this key",
        ),
        (
            "strategy.joint={mode='frozen', teacher={init='runs/teacher', learning_rate_scale=0.5}}",
            "strategy.joint.teacher.learning_rate_scale: has no effect on a frozen teacher: remove this key",
        ),
    ];
    for (change, message) in cases {
        assert_eq!(mistakes(&[change]), [message], "{change}");
    }
    let both = mistakes(&[
        "strategy.joint={mode='frozen', teacher={init='runs/teacher', stem_stride=2}}",
        "strategy.hint={weight=1.0, target='both', taps=['stages.2']}",
    ]);
    assert_eq!(
        both,
        [
            "strategy.hint: target = \"both\" trains the teacher, but it is frozen",
            "strategy.hint: map stages.2 of the student has 2x2 positions, the teacher's 1x1: leave it out of taps, or change the teacher",
        ]
    );
    let weights_only = ["quantization.act_bits=fp32", "strategy.two_stage=true"];
    assert_eq!(
        mistakes(&weights_only),
        [
            "strategy.two_stage: quantizes the weights first and then the activations, but there are not both to quantize: \
             remove it, or lower the bits"
        ]
    );
    let hot = parse(&["strategy.joint={distance={kind='kl', temperature=4.0}}"]).unwrap();
    assert_eq!(hot.warnings().len(), 1);
    assert!(parse(&["strategy.joint={}"]).unwrap().warnings().is_empty());
}

/// What counts is what the layers get, by whatever key; phases are made from the bits of the base.
#[test]
fn strategies_look_at_all_layers() {
    let fp32 = ["quantization.weight_bits=fp32", "quantization.act_bits=fp32"];
    let some = "quantization.layers=[{pattern='stages.**', weight_bits=2, act_bits=2}]";
    let stochastic = "strategy.stochastic_precision={selector='roulette'}";
    for strategy in [stochastic, "strategy.joint={}"] {
        parse(&[fp32[0], fp32[1], some, strategy]).unwrap_or_else(|error| panic!("{error}"));
    }
    let message = "goes by quantization.weight_bits and act_bits, and has nothing to do at fp32: lower these, and give \
                   \"fp32\" to the layers that stay in full precision";
    for (key, strategy) in [
        ("strategy.two_stage", "strategy.two_stage=true"),
        ("strategy.progressive", "strategy.progressive={}"),
    ] {
        assert_eq!(mistakes(&[fp32[0], fp32[1], some, strategy]), [format!("{key}: {message}")]);
    }
    let none = "quantization.layers=[{pattern='**', weight_bits='fp32', act_bits='fp32'}]";
    for strategy in [stochastic, "strategy.joint={}", "strategy.progressive={}", "strategy.two_stage=true"] {
        let found = mistakes(&[none, strategy]);
        assert!(
            found[0].ends_with("quantize: remove it, or lower the bits")
                || found[0].contains("nothing is quantized"),
            "{found:?}"
        );
    }
    let no_activations = "quantization.layers=[{pattern='**', act_bits=32}]";
    assert_eq!(mistakes(&[no_activations, "strategy.two_stage=true"]).len(), 1);
}

#[test]
fn a_teacher_has_of_the_student_what_its_layout_has() {
    let teacher = |overrides: &[&str]| parse(overrides).unwrap().strategy.joint.unwrap().teacher.model;
    let other_family = teacher(&["model.stem_stride=2", "strategy.joint={teacher={family='resnet'}}"]);
    assert_eq!(other_family, ModelConfig { stem_stride: 2, ..ModelConfig::new(Family::ResNet, 8) });
    // The hint's maps have the same size.
    let hint = ["model.stem_stride=2", "strategy.hint={weight=1.0}"];
    teacher(&[hint[0], hint[1], "strategy.joint={teacher={family='resnet', depth=14}}"]);
    // Both layouts have a depth of 50, but each a stem of its own.
    let other_layout = teacher(&["model.depth=50", "strategy.joint={teacher={layout='imagenet'}}"]);
    assert_eq!(other_layout, ModelConfig::imagenet(Family::PreResNet, 50));
    let vgg = teacher(&["model.stem_stride=2", "strategy.joint={teacher={family='vgg-small'}}"]);
    assert_eq!((vgg.family, vgg.depth, vgg.stem_stride), (Family::VggSmall, None, 1));
    assert_eq!(
        mistakes(&["model={family='vgg-small'}", "strategy.joint={teacher={family='resnet'}}"]),
        ["strategy.joint.teacher.depth: is missing; expected 6n+2 up to 9998: 8, 14, 20, 32, 44, 56 or 110"]
    );
}

#[test]
fn families_have_settings_of_their_own() {
    let alexnet = |overrides: &[&str]| {
        let model = ["model={family='alexnet'}"];
        parse(&[&model[..], overrides].concat()).map(|recipe| recipe.model)
    };
    assert_eq!(alexnet(&[]).unwrap(), ModelConfig::alexnet(Layout::Cifar));
    assert_eq!(alexnet(&["model.norm=false"]).unwrap().norm, Some(false));
    let student = "model={family='alexnet', norm=false, width=0.5}";
    let teacher = parse(&[student, "strategy.joint={}"]).unwrap().strategy.joint.unwrap().teacher.model;
    assert_eq!((teacher.norm, teacher.width), (Some(false), 0.5));
    let teacher =
        parse(&["strategy.joint={teacher={family='alexnet'}}"]).unwrap().strategy.joint.unwrap().teacher;
    assert_eq!(teacher.model, ModelConfig::alexnet(Layout::Cifar));
    for (overrides, expected) in [
        (&["model.norm=false"][..], "model.norm: preresnet has BatchNorm: remove this key"),
        (&["model={family='alexnet', depth=8}"], "model.depth: alexnet has a fixed depth: remove this key"),
        (
            &["model={family='alexnet', stem_stride=2}"],
            "model.family: alexnet needs images of at least 15x15 pixels, got 8x8",
        ),
        (
            &["model={family='alexnet', layout='imagenet'}"],
            "model.family: alexnet needs images of at least 63x63 pixels, got 8x8",
        ),
        (
            &["model={family='alexnet', layout='imagenet', stem_stride=2}"],
            "model.stem_stride: alexnet has none: remove this key",
        ),
        (
            &["strategy.joint={teacher={family='alexnet', layout='imagenet'}}"],
            "strategy.joint.teacher.family: alexnet needs images of at least 63x63 pixels, got 8x8",
        ),
        (
            &["model={family='alexnet'}", "data.batch_size=1"],
            "data.batch_size: 1 image leaves BatchNorm of alexnet a single value a channel, where it is 1x1: take at least 2",
        ),
    ] {
        assert_eq!(mistakes(overrides), [expected], "{overrides:?}");
    }
    parse(&["model={family='alexnet', norm=false}", "data.batch_size=1"]).unwrap();
}

/// Zhuang et al. 2021: the settings of joint distillation by the logits' distance.
#[test]
fn logits_mse_has_weights_of_its_own() {
    let recipe = Recipe::embedded("cifar100-resnet20-w2a2-joint-mse", &[]).unwrap();
    let losses = recipe.strategy.joint.unwrap().losses;
    assert_eq!(losses.distance, crate::strategy::DistillLoss::LogitsMse);
    assert_eq!((losses.student_label_weight, losses.teacher_label_weight), (0.3, 1.0));
    let milestones = vec![60, 120];
    assert_eq!(recipe.train.schedule, ScheduleRecipe::MultiStep { milestones, gamma: 0.1 });
}

#[test]
fn a_teacher_is_like_the_student_unless_it_is_said_otherwise() {
    let recipe = parse(&["model.width=0.5", "strategy.joint={teacher={depth=14}}"]).unwrap();
    let teacher = recipe.strategy.joint.unwrap().teacher.model;
    assert_eq!((teacher.depth, teacher.width), (Some(14), 0.5));
    assert_eq!(teacher.family, recipe.model.family);
}

/// A table for which something else was written: the message shows one that can be copied.
#[test]
fn tables_that_are_none_get_an_example_that_is_valid() {
    let cases = [
        ("train.schedule=cosine", "write train.schedule={kind=\"cosine\"}"),
        ("train.schedule=multi-step", "write train.schedule={kind=\"multi-step\", milestones=[80, 120]}"),
        ("train.optimizer=adam", "write train.optimizer={kind=\"adam\"}"),
        ("train.optimizer=rmsprop", "write train.optimizer={kind=\"sgd\"}"),
        ("quantization.first=8", "write quantization.first={method=\"minmax\", weight_bits=8, act_bits=8}"),
        ("quantization.first=fp32", "write quantization.first={weight_bits=\"fp32\", act_bits=\"fp32\"}"),
        ("quantization.last=4", "write quantization.last={weight_bits=4, act_bits=4}"),
        (
            "quantization.layers=4",
            "write quantization.layers=[{pattern=\"stages.0.**\", weight_bits=4, act_bits=4}]",
        ),
        ("data.augment=true", "write data.augment={pad=4, flip=true}"),
        ("train.quantizers=0.5", "write train.quantizers={learning_rate_scale=0.5}"),
        ("strategy.joint=true", "write strategy.joint={}"),
        ("strategy.progressive=true", "write strategy.progressive={}"),
        ("strategy.stochastic_precision=true", "write strategy.stochastic_precision={}"),
        ("strategy.stochastic_precision.probability=cosine", "{kind=\"cosine\"}"),
        ("strategy.joint.distance=logits-mse", "write strategy.joint.distance={kind=\"logits-mse\"}"),
        ("strategy.joint.teacher=20", "write strategy.joint.teacher={depth=20}"),
        ("strategy.joint.students=3", "write strategy.joint.students=[{weight_bits=3, act_bits=3}]"),
        ("strategy=two_stage", "write strategy={two_stage=true}"),
        ("phases=3", "write phases={w2a2={epochs=10}}"),
        ("phases.w2a2=3", "write phases.w2a2={epochs=3}"),
        ("checkpoint=1", "write checkpoint={every_epochs=1}"),
        ("data=mnist", "write data.dataset=\"mnist\""),
        ("model=resnet", "write model.family=\"resnet\""),
        ("quantization=lsq", "write quantization.method=\"lsq\""),
        ("train=3", "write train.epochs=3"),
    ];
    for (written, expected) in cases {
        let found = mistakes(&[written, "train.epochs=30"]);
        let found = if written.starts_with("train=") { mistakes(&[written]) } else { found };
        let (_, example) = found[0].split_once("; write ").unwrap_or_else(|| panic!("{written}: {found:?}"));
        assert!(found[0].contains(expected), "{written}: {found:?}");
        parse(&[example, "train.epochs=30"]).unwrap_or_else(|error| panic!("{example}: {error}"));
    }
}

#[test]
fn names_of_other_programs_are_understood() {
    for (written, expected) in [
        ("train.lr=1", "did you mean \"learning_rate\"?"),
        ("lr=1", "did you mean \"train.learning_rate\"?"),
        ("train.bs=8", "did you mean \"data.batch_size\"?"),
        ("data.batch=8", "did you mean \"batch_size\"?"),
        ("train.wd=1", "did you mean \"weight_decay\"?"),
        ("bits=2", "did you mean \"quantization.weight_bits\"?"),
        ("train.epoch=2", "did you mean \"epochs\"?"),
        ("num-epochs=2", "did you mean \"train.epochs\"?"),
        ("train.momentum=0.8", "write train.optimizer={kind=\"sgd\", momentum=0.9, nesterov=true}"),
        ("arch=resnet", "did you mean \"model.family\"?"),
        ("pretrained=runs/a", "did you mean \"init\"?"),
        ("two_stage=true", "did you mean \"strategy.two_stage\"?"),
    ] {
        let found = mistakes(&[written]);
        assert!(found[0].ends_with(expected), "{written}: {found:?}");
    }
}

#[test]
fn an_unknown_name_suggests_the_recipe_that_is_meant() {
    let suggested = |name: &str| Recipe::embedded(name, &[]).unwrap_err().to_string();
    for (name, expected) in [
        ("digits-preresnet8-w2", "digits-preresnet8-w2a2"),
        ("digits", "digits-preresnet8-fp32"),
        ("digits-w2a2", "digits-preresnet8-w2a2"),
        ("cifar10-w4a4-ts", "cifar10-resnet20-w4a4-ts"),
        ("digits-preresnet8-w2a2-tspq", "digits-preresnet8-w2a2-ts-pq"),
        ("Digits-PreResNet8-W2A2", "digits-preresnet8-w2a2"),
        ("digit-preresnet8-w2a7", "digits-preresnet8-w2a2"),
    ] {
        assert!(suggested(name).contains(&format!("did you mean {expected:?}?")), "{}", suggested(name));
    }
    assert!(!suggested("").contains("did you mean") && !suggested("--").contains("did you mean"));
}

/// A clip value that is not decayed never comes down to where activations are.
#[test]
fn clip_values_are_decayed_with_the_weights_unless_it_is_said_otherwise() {
    let decay = |overrides: &[&str]| {
        parse(&[&["train.weight_decay=0.0005"], overrides].concat()).unwrap().train.quantizers.weight_decay
    };
    assert_eq!(decay(&[]), 0.0);
    assert_eq!(decay(&["quantization.method=lsq"]), 0.0);
    assert_eq!(decay(&["quantization.method=pact"]), 0.0005);
    assert_eq!(decay(&["quantization.layers=[{pattern='stages.0.**', method='pact'}]"]), 0.0005);
    assert_eq!(decay(&["quantization.method=pact", "train.quantizers={learning_rate_scale=0.5}"]), 0.0005);
    assert_eq!(decay(&["quantization.method=pact", "train.quantizers={weight_decay=0.0}"]), 0.0);
    let resolved = parse(&["quantization.method=pact", "train.weight_decay=0.0005"]).unwrap().to_toml();
    assert!(
        resolved.contains("[train.quantizers]\nlearning_rate_scale = 1.0\nweight_decay = 0.0005"),
        "{resolved}"
    );
}

#[test]
fn a_moving_average_warms_up() {
    let train = parse(&["train.ema_decay=0.99"]).unwrap().train;
    let decays = [0, 1, 8, 889, 891, 10_000].map(|t| train.ema_decay_at(t).unwrap());
    assert_eq!(decays, [0.1, 2.0 / 11.0, 0.5, 890.0 / 899.0, 0.99, 0.99]);
    let constant = parse(&["train.ema_decay=0.99", "train.ema_warmup=false"]).unwrap().train;
    assert_eq!(constant.ema_decay_at(0), Some(0.99));
    assert_eq!(parse(&[]).unwrap().train.ema_decay_at(0), None);
    assert_eq!(
        mistakes(&["train.ema_warmup=true"]),
        ["train.ema_warmup: has no effect without ema_decay: remove this key"]
    );
}

#[test]
fn gradients_have_bits_where_something_is_quantized() {
    let fp32 = parse(&[]).unwrap();
    assert_eq!(fp32.quantization.grad_bits, Precision::FullPrecision);
    assert!(fp32.to_toml().contains("\ngrad_bits = \"fp32\"\n"), "{}", fp32.to_toml());
    for bits in 1..=8 {
        let recipe = parse(&[&format!("quantization.grad_bits={bits}")]).unwrap();
        assert_eq!(recipe.quantization.grad_bits, Precision::bits(bits).unwrap());
        let [difference] = &recipe.differences(&fp32)[..] else { panic!("one key differs") };
        assert_eq!(
            (difference.key.as_str(), &difference.values[0]),
            ("quantization.grad_bits", &bits.to_string())
        );
    }
    assert_eq!(
        mistakes(&["quantization.grad_bits=9"]),
        ["quantization.grad_bits: expected a bit width from 1 to 8, or \"fp32\", got 9"]
    );
    assert_eq!(
        mistakes(&["quantization.grad_bits=16"]),
        [
            "quantization.grad_bits: expected a bit width from 1 to 8, or \"fp32\", got 16; 16 bits train like full precision and \
          are not offered: take \"fp32\""
        ]
    );
    let nothing = ["quantization.weight_bits=fp32", "quantization.act_bits=fp32"];
    assert_eq!(
        mistakes(&[nothing[0], nothing[1], "quantization.grad_bits=8"]),
        [
            "quantization.grad_bits: rounds the gradients of quantized layers, but nothing is quantized: remove it, or lower \
          the bits"
        ]
    );
    parse(&[nothing[0], "quantization.grad_bits=8"]).unwrap();
    let some = "quantization.layers=[{pattern='stages.0.**', weight_bits=2}]";
    parse(&[nothing[0], nothing[1], some, "quantization.grad_bits=8"]).unwrap();
    parse(&[nothing[0], nothing[1], "quantization.grad_bits=fp32"]).unwrap();
}

#[test]
fn the_arithmetic_of_a_training_is_chosen_by_name() {
    let fp32 = parse(&[]).unwrap();
    assert_eq!(fp32.train.compute, Compute::Fp32);
    assert!(fp32.to_toml().contains("\ncompute = \"fp32\"\n"), "{}", fp32.to_toml());
    let bf16 = parse(&["train.compute=bf16"]).unwrap();
    assert_eq!(bf16.train.compute, Compute::Bf16);
    assert!(bf16.phases().iter().all(|phase| phase.train.compute == Compute::Bf16));
    let [difference] = &bf16.differences(&fp32)[..] else { panic!("one key differs") };
    assert_eq!(difference.key, "train.compute");
    assert_eq!(
        mistakes(&["train.compute=fp16"]),
        ["train.compute: expected one of \"fp32\", \"bf16\", got \"fp16\"; did you mean \"bf16\"?"]
    );
}

/// A figure of another training is not shown beside this one.
#[test]
fn a_reference_is_shown_only_beside_the_training_that_it_is_of() {
    let name = "digits-preresnet8-w2a2";
    let of = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Recipe::embedded(name, &overrides).unwrap().reference
    };
    assert!(of(&[]).is_some_and(|reference| reference.contains('%')));
    for same in
        ["seed=7", "checkpoint.every_steps=5", "checkpoint.keep_last=9", "name=mine", "train.epochs=30"]
    {
        assert_eq!(of(&[same]), of(&[]), "{same}");
    }
    for other in [
        "data.dataset=mnist",
        "data.train_limit=64",
        "model.depth=14",
        "quantization.method=lsq",
        "train.epochs=1",
        "train.learning_rate=0.1",
        "strategy.two_stage=true",
        "phases={w2a2={learning_rate=0.01}}",
        "init=runs/a",
    ] {
        assert_eq!(of(&[other]), None, "{other}");
    }
    assert_eq!(of(&["train.epochs=1", "reference=mine"]).as_deref(), Some("mine"));

    // A copy, as it is and edited, and its resolved form.
    let text = &embedded().iter().find(|recipe| recipe.name == name).unwrap().text;
    let parsed = |text: &str| Recipe::parse(text, "copy.toml", &[]).unwrap();
    assert_eq!(parsed(&text.replace(&format!("name = {name:?}"), "name = \"copy\"")).reference, of(&[]));
    let resolved = parsed(text).to_toml();
    assert_eq!(parsed(&resolved).reference, of(&[]));
    for (written, edited) in [("epochs = 30", "epochs = 3"), ("\"digits\"", "\"mnist\"")] {
        let edited = resolved.replace(written, edited);
        assert_ne!(edited, resolved);
        assert_eq!(parsed(&edited).reference, None);
    }

    // One's own figure is one's own business, until an override makes it that of something else.
    let own =
        |overrides: &[&str]| parse(&[&["reference='ours: 97 %'"], overrides].concat()).unwrap().reference;
    assert_eq!(own(&["train.epochs=9"]).as_deref(), Some("ours: 97 %"), "given with the override");
    let mine = MINIMAL.replace("name = \"test\"", "name = \"test\"\nreference = \"ours: 97 %\"");
    let mine = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Recipe::parse(&mine, "mine.toml", &overrides).unwrap().reference
    };
    assert_eq!(mine(&["seed=3"]).as_deref(), Some("ours: 97 %"));
    assert_eq!(mine(&["train.epochs=9"]), None);
}

fn documentation(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documentation has what is said of a strategy beside it: all of its keys, and its row among the strategies.
#[test]
fn strategies_are_documented() {
    let (recipes, methods) = (documentation("recipes.md"), documentation("methods/strategies.md"));
    for about in STRATEGIES {
        let heading = format!("# `[{}]`\n", about.section);
        let (_, section) = recipes.split_once(&heading).unwrap_or_else(|| panic!("no section {heading}"));
        let section = section.split("\n#").next().unwrap();
        let table = about.table();
        assert!(
            section.contains(&table),
            "docs/recipes.md, {heading}lacks the table\n{table}it has{section}"
        );
        let link = format!("| [{}](#", about.title);
        let row = methods.lines().find(|line| line.starts_with(&link));
        let row = row.unwrap_or_else(|| panic!("docs/methods/strategies.md has no row of {}", about.title));
        let anchor = row[link.len()..].split(')').next().unwrap();
        assert_eq!(format!("{row}\n"), about.row(anchor));
        let title = |line: &str| line.strip_prefix("## ").map(|title| title.to_lowercase().replace(' ', "-"));
        assert!(methods.lines().filter_map(title).any(|title| title == anchor), "no section {anchor}");
    }
}

/// What has nothing to do, or does not go together, is one mistake that says what to do.
#[test]
fn strategies_of_weights_are_refused_where_they_do_nothing() {
    let full = ["quantization.weight_bits='fp32'", "quantization.act_bits='fp32'"];
    for name in ["soft_weights", "damping", "transition_rate", "freezing", "sharpness"] {
        let table = format!("strategy.{name}={{}}");
        // Inputs alone are not enough.
        for bits in [&full[..], &full[..1]] {
            let overrides = [bits, &["quantization.method='lsq'", &table]].concat();
            let problems = mistakes(&overrides);
            assert!(
                matches!(problems.as_slice(), [one] if one.starts_with(&format!("strategy.{name}"))
                    && one.contains("no weights are quantized: remove it, or lower weight_bits")),
                "{problems:?}"
            );
        }
    }
    for (overrides, expected) in [
        (
            &["strategy.freezing={}"][..],
            "dorefa may give another code: take weight_method = \"lsq\", \"lsq-plus\", \"tqt\"",
        ),
        (
            &["quantization.method='apot'", "strategy.soft_weights={}"],
            "levels at equal distances, which those of apot are not",
        ),
        (&["strategy.soft_weights={}", "strategy.stochastic_precision={}"], "take one of them"),
        (
            &[
                "quantization.method='lsq'",
                "quantization.weight_standardization=true",
                "strategy.freezing={}",
            ],
            "quantization.weight_standardization moves again: take one of them",
        ),
        (
            &["quantization.method='lsq'", "strategy.freezing={from=0.1, to=0.2}"],
            "expected at most from, which is 0.1, got 0.2",
        ),
        (
            &["strategy.transition_rate={target=1.5}"],
            "expected a number greater than 0 (from 1.2e-38) to 1, got 1.5",
        ),
        (&["strategy.sharpness={radius=0}"], "expected a number greater than 0"),
        (
            &["strategy.stochastic_precision={unit='weight', selector='roulette'}"],
            "\"roulette\" draws layers or more",
        ),
        (
            &[full[0], "strategy.stochastic_precision={unit='weight'}"],
            "draws single quantized weights, and there are none",
        ),
        (
            &[full[0], "quantization.weight_standardization=true"],
            "standardizes quantized weights, but no weights are quantized",
        ),
    ] {
        let problems = mistakes(overrides);
        assert!(problems.len() == 1 && problems[0].contains(expected), "{overrides:?}: {problems:?}");
    }
}

/// A rate for low bits is that of the phases that have them, unless a phase has its own.
#[test]
fn phases_of_low_bits_have_a_rate_of_their_own() {
    let rates = |overrides: &[&str]| -> Vec<(String, f64)> {
        let base = [
            "train.epochs=9",
            "train.learning_rate=0.5",
            "strategy.two_stage=true",
            "strategy.progressive={ladder=['fp32', 4], low_bit_rate_scale=0.1}",
        ];
        let recipe = parse(&[&base[..], overrides].concat()).unwrap();
        assert_eq!(Recipe::parse(&recipe.to_toml(), "again", &[]).unwrap(), recipe);
        recipe.phases().into_iter().map(|phase| (phase.name, phase.train.learning_rate)).collect()
    };
    let named = |rates: [(&str, f64); 5]| rates.map(|(name, rate)| (name.to_string(), rate)).to_vec();
    let expected = [("w32a32", 0.5), ("w4a32", 0.5), ("w4a4", 0.5), ("w2a4", 0.5 * 0.1), ("w2a2", 0.5 * 0.1)];
    assert_eq!(rates(&[]), named(expected));
    let own = [("w32a32", 0.5), ("w4a32", 0.5), ("w4a4", 0.5), ("w2a4", 0.5 * 0.1), ("w2a2", 0.3)];
    assert_eq!(rates(&["phases={w2a2={learning_rate=0.3}}"]), named(own));
}

/// What a recipe's reader looks for in the section of a strategy is what is said of it, no more and no less.
#[test]
fn keys_of_strategies_are_those_that_are_read() {
    let mut known = Vec::new();
    let stochastic = |probability| {
        format!(
            "strategy.stochastic_precision={{unit='channel-group', probability={{kind='{probability}'}}}}"
        )
    };
    // One of both decides how weights are rounded.
    for (rounding, other) in [
        (stochastic("linear"), "soft_weights"),
        (stochastic("stepped"), "soft_weights"),
        ("strategy.soft_weights={}".into(), "stochastic_precision"),
    ] {
        let overrides = [
            "train.epochs=9".to_string(),
            "quantization.method='lsq'".into(),
            "strategy.two_stage=true".into(),
            "strategy.progressive={ladder=[4]}".into(),
            rounding,
            "strategy.joint={distance={kind='kl'}, students=[{weight_bits=4, act_bits=4}]}".into(),
            "strategy.hint={weight=1.0}".into(),
            "strategy.damping={}".into(),
            "strategy.transition_rate={}".into(),
            "strategy.freezing={}".into(),
            "strategy.sharpness={}".into(),
        ];
        let mut table: Table = MINIMAL.parse().unwrap();
        for text in &overrides {
            source::set(&mut table, text).unwrap();
        }
        let problems = Problems::default();
        let recipe = read(table, &problems);
        let names: Vec<String> =
            recipe.strategies().iter().map(|strategy| strategy.name().to_string()).collect();
        let all = STRATEGIES.map(|about| about.name).into_iter().filter(|name| *name != other);
        assert_eq!(names, all.collect::<Vec<_>>(), "composed in another order");
        known.extend(problems.known.borrow().iter().cloned());
        assert_eq!(problems.into_vec(), []);
    }
    let sections = STRATEGIES.map(|about| about.section);
    let is_of_network = |name: &str| known.contains(&format!("model.{name}"));
    for about in STRATEGIES {
        let name_of = |key: &Key| key.name.trim_matches(['[', ']']).to_string();
        let read = known.iter().filter_map(|path| path.strip_prefix(about.section)?.strip_prefix('.'));
        for path in read.filter(|path| !sections.contains(&format!("strategy.{path}").as_str())) {
            // Keys of `strategy` itself are of the strategies that have no table.
            if about.section == "strategy" && path.contains('.') {
                continue;
            }
            let parts = path.rsplit_once('.');
            let is_said = about.keys.iter().any(|key| match parts {
                _ if name_of(key) == path => true,
                Some((table, name)) => {
                    let is_named = [key.range, key.effect].iter().any(|text| text.contains(name));
                    let is_like_model = key.range.contains("keys of `[model]`") && is_of_network(name);
                    table.starts_with(&name_of(key)) && (is_named || is_like_model)
                }
                None => false,
            });
            assert!(is_said, "key {path:?} of {} is read, but nothing is said of it", about.section);
        }
        for key in about.keys {
            let path = format!("{}.{}", about.section, name_of(key));
            assert!(known.contains(&path), "{path} is described, but not read");
        }
    }
}

/// Texts in files of a directory of their own.
struct Files(tempfile::TempDir);

impl Files {
    fn new(texts: &[(&str, &str)]) -> Self {
        let files = Self(tempfile::TempDir::new().unwrap());
        for (name, text) in texts {
            let path = files.path(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        RecipeSource::file(&self.path(name))?.recipe(&overrides)
    }

    /// The message of a recipe that is refused, without the name of the directory.
    fn error(&self, name: &str, overrides: &[&str]) -> String {
        let error = self.read(name, overrides).unwrap_err().to_string();
        error.replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// A run that a recipe's file names is relative to the file; one of an override to the current directory.
#[test]
fn runs_to_begin_with_are_relative_to_the_recipe_that_names_them() {
    let teacher = "[strategy.joint]\nteacher = { init = \"../runs/t\" }\n";
    let text = MINIMAL.replace("name = \"test\"", "name = \"test\"\ninit = \"../runs/a\"") + teacher;
    let extending = "schema = 1\nname = \"two\"\nextends = \"configs/mine.toml\"\n";
    let files = Files::new(&[
        ("configs/mine.toml", &text),
        ("two.toml", extending),
        ("other.toml", &format!("{extending}init = \"b\"\n")),
    ]);
    let paths = |name: &str, overrides: &[&str]| {
        let mut recipe = files.read(name, overrides).unwrap();
        let paths = recipe.init_paths_mut().map(|path| path.display().to_string());
        paths.map(|path| path.replace(&files.0.path().display().to_string(), "DIR")).collect::<Vec<_>>()
    };
    let of_file = ["DIR/configs/../runs/a", "DIR/configs/../runs/t"];
    assert_eq!(paths("configs/mine.toml", &[]), of_file);
    assert_eq!(paths("configs/mine.toml", &["init=runs/b"]), ["runs/b", of_file[1]]);
    let both = ["init=/abs", "strategy.joint.teacher={init='runs/u'}"];
    assert_eq!(paths("configs/mine.toml", &both), ["/abs", "runs/u"]);
    assert_eq!(paths("two.toml", &[]), of_file);
    assert_eq!(paths("other.toml", &[]), ["DIR/b", of_file[1]]);
}

/// Tables merge key by key, whatever else is replaced; name and reference are of one recipe alone.
#[test]
fn a_recipe_extends_another() {
    let files = Files::new(&[
        (
            "a/base.toml",
            r#"schema = 1
            name = "base"
            seed = 7
            reference = "ours: 97 %"
            extends = "digits-preresnet8-w2a2"
            [train]
            epochs = 9
            schedule = { kind = "multi-step", milestones = [3, 6], gamma = 0.5 }
            [data]
            augment = { flip = true }
            [quantization]
            layers = [{ pattern = "stages.0.**", weight_bits = 4 }, { pattern = "stem", weight_bits = 8 }]
            "#,
        ),
        (
            "b/mine.toml",
            r#"schema = 1
            name = "mine"
            extends = "../a/base.toml"
            [train]
            learning_rate = 0.02
            schedule = { kind = "cosine" }
            [quantization]
            layers = [{ pattern = "stages.1.**", weight_bits = 3 }]
            "#,
        ),
    ]);
    let of = |name: &str, overrides: &[&str]| files.read(name, overrides).unwrap();
    let digits = Recipe::embedded("digits-preresnet8-w2a2", &[]).unwrap();
    let base = of("a/base.toml", &[]);
    assert_eq!((base.name.as_str(), base.seed, base.reference.as_deref()), ("base", 7, Some("ours: 97 %")));
    assert_eq!((base.train.epochs, base.train.learning_rate), (9, digits.train.learning_rate));
    let augment = base.data.augment.unwrap();
    assert_eq!((augment.pad, augment.flip), (digits.data.augment.unwrap().pad, true));
    assert_eq!(base.data.batch_size, digits.data.batch_size);
    let mine = of("b/mine.toml", &["train.weight_decay=0.5"]);
    assert_eq!((mine.name.as_str(), mine.seed, mine.reference.as_deref()), ("mine", 7, None));
    assert_eq!(
        mine.train,
        TrainRecipe {
            learning_rate: 0.02,
            weight_decay: 0.5,
            // What another kind of schedule has means nothing to this one.
            schedule: ScheduleRecipe::Cosine,
            ..base.train
        }
    );
    let patterns: Vec<&str> = mine.quantization.policy.patterns.iter().map(|(glob, _)| glob.glob()).collect();
    assert_eq!(patterns, ["stages.1.**"]);
    let source = RecipeSource::file(&files.path("b/mine.toml")).unwrap();
    let base = files.path("b/../a/base.toml").display().to_string();
    assert_eq!(source.extends(), [base.as_str(), "digits-preresnet8-w2a2", "digits-preresnet8-fp32"]);
    // Of one kind, a table is merged.
    let gamma = "schema=1\nname='c'\nextends='a/base.toml'\ntrain.schedule={kind='multi-step', gamma=0.25}\n";
    std::fs::write(files.path("c.toml"), gamma).unwrap();
    let expected = ScheduleRecipe::MultiStep { milestones: vec![3, 6], gamma: 0.25 };
    assert_eq!(of("c.toml", &[]).train.schedule, expected);
    // What is written down of it does not depend on the other files.
    let text = mine.to_toml();
    assert!(!text.contains("extends"), "{text}");
    assert_eq!(Recipe::parse(&text, "resolved", &[]).unwrap(), mine);
}

#[test]
fn mistakes_are_told_with_file_and_line() {
    let files = Files::new(&[
        (
            "base.toml",
            "schema = 1\nname = \"base\"\nextends = \"digits-preresnet8-w2a2\"\n\n[train]\nepochs = 0\nwd = 1\n",
        ),
        (
            "mine.toml",
            "schema = 1\nname = \"mine\"\nextends = \"base.toml\"\n[train]\nlr = 0.1\nwarmup_epochs = -1\n[model]\ndepth = 9\n\
             [[quantization.layers]]\npattern = \"stem\"\nweight_bits = 9\n",
        ),
    ]);
    let message = files.error("mine.toml", &["train.eval_every=0", "model.width=65"]);
    let mut lines = message.lines();
    assert_eq!(lines.next(), Some("mine.toml has 8 mistakes:"));
    let places: Vec<&str> = lines.map(|line| line.trim().split(':').next().unwrap()).collect();
    assert_eq!(
        places,
        [
            "model.width",
            "model.depth (line 8)",
            "quantization.layers[0].weight_bits (line 11)",
            "train.epochs (base.toml, line 6)",
            "train.warmup_epochs (line 6)",
            "train.eval_every",
            "train.lr (line 5)",
            "train.wd (base.toml, line 7)",
        ]
    );
    // What is missing would be in its table; what a text of the program has, in no file.
    let missing = MINIMAL.replace("epochs = 3\n", "");
    assert_ne!(missing, MINIMAL);
    std::fs::write(files.path("missing.toml"), missing).unwrap();
    let line = 1 + MINIMAL.lines().position(|line| line == "[train]").unwrap();
    assert!(files.error("missing.toml", &[]).contains(&format!("train.epochs (line {line}): is missing")));
    let embedded =
        "schema=1\nname='x'\nextends='digits-preresnet8-w2a2'\n[quantization]\nfirst={act_bits=2}\n";
    std::fs::write(files.path("embedded.toml"), embedded).unwrap();
    let message = files.error("embedded.toml", &["model.family=alexnet"]);
    assert!(
        message.contains("model.depth (recipe digits-preresnet8-fp32): alexnet has a fixed depth"),
        "{message}"
    );
    let message = Recipe::embedded("digits-preresnet8-w2a2", &["model.family=alexnet".into()]).unwrap_err();
    assert!(message.to_string().contains("model.depth"), "{message}");
}

#[test]
fn what_cannot_be_extended_is_told_in_a_line() {
    let text = |extends: &str| format!("schema = 1\nname = \"x\"\nextends = {extends}\n");
    let files = Files::new(&[
        ("itself.toml", &text("\"./itself.toml\"")),
        ("one.toml", &text("\"two.toml\"")),
        ("two.toml", &text("\"sub/../one.toml\"")),
        ("sub/x", ""),
        ("unknown.toml", &text("\"digits-preresnet8-w2a3\"")),
        ("number.toml", &text("3")),
        ("list.toml", &text("[\"a\", \"b\"]")),
        ("missing.toml", &text("\"none.toml\"")),
        ("folder.toml", &text("\"./sub\"")),
        ("home.toml", &text("\"~/base.toml\"")),
        ("broken.toml", "schema = \n"),
        ("of-broken.toml", &text("\"broken.toml\"")),
        ("later.toml", "schema = 2\nname = \"later\"\n"),
        ("of-later.toml", &text("\"later.toml\"")),
    ]);
    for (name, expected) in [
        ("itself.toml", "itself.toml, line 3: extends: ./itself.toml is this recipe, or one that extends it"),
        ("one.toml", "two.toml, line 3: extends: sub/../one.toml is this recipe, or one that extends it"),
        ("unknown.toml", "unknown.toml, line 3: extends: no recipe named \"digits-preresnet8-w2a3\"; "),
        (
            "number.toml",
            "number.toml, line 3: extends: expected the name of a recipe, or the path of its file, got 3",
        ),
        (
            "list.toml",
            "list.toml, line 3: extends: expected the name of a recipe, or the path of its file, got [\"a\", ",
        ),
        ("missing.toml", "missing.toml, line 3: extends: cannot read none.toml: "),
        ("folder.toml", "folder.toml, line 3: extends: cannot read ./sub: "),
        (
            "home.toml",
            "home.toml, line 3: extends: no shell replaces ~ in a recipe: write the path of \"~/base.toml\" out",
        ),
        ("of-broken.toml", "broken.toml is not valid TOML: "),
        ("of-later.toml", "of-later.toml, line 3: extends: later.toml has no schema = 1, as every recipe"),
        ("none.toml", "failed to read recipe none.toml: "),
    ] {
        let message = files.error(name, &[]);
        assert!(message.starts_with(expected), "{name}: {message}, expected {expected}");
        assert!(message.lines().count() == 1 || name == "of-broken.toml", "{message}");
    }
    // To some depth.
    for i in 0..30 {
        std::fs::write(files.path(&format!("{i}.toml")), text(&format!("\"{}.toml\"", i + 1))).unwrap();
    }
    std::fs::write(files.path("30.toml"), text("\"digits-preresnet8-fp32\"")).unwrap();
    let message = files.error("0.toml", &[]);
    assert_eq!(
        message,
        "15.toml, line 3: extends: 16 recipes extend one another already: at most so many can"
    );
    assert!(files.read("16.toml", &[]).is_ok());
    // A text that is in no file knows no other file, and no override says what is extended.
    let error = Recipe::parse(&text("\"one.toml\""), "text", &[]).unwrap_err().to_string();
    assert!(
        error.starts_with("text, line 3: extends: \"one.toml\" is a file, and this text is in none"),
        "{error}"
    );
    assert!(Recipe::parse(&text("\"digits-preresnet8-fp32\""), "text", &[]).is_ok());
    let message = parse(&["extends=digits-preresnet8-fp32"]).unwrap_err().to_string();
    assert!(message.contains("can stand in a recipe's file only"), "{message}");
}

#[test]
fn a_norm_has_more_than_one_value_a_channel() {
    let imagenet = "model={family='resnet', layout='imagenet', depth=18}";
    let teacher = "strategy.joint={teacher={family='resnet', layout='imagenet', depth=18}}";
    for small in [imagenet, teacher] {
        assert_eq!(
            mistakes(&[small, "data.batch_size=1"]),
            [
                "data.batch_size: 1 image leaves BatchNorm of resnet a single value a channel, where it is 1x1: take at least 2"
            ]
        );
        parse(&[small, "data.batch_size=2"]).unwrap();
    }
    // 2x2 at the end.
    parse(&["data.batch_size=1"]).unwrap();
    parse(&["data.batch_size=1", "model={family='vgg-small'}"]).unwrap();
}

/// Feature maps of a PreResNet are no activations.
#[test]
fn files_decide_how_many_images_a_batch_can_have() {
    let read = |name: &str| Recipe::embedded(name, &["data.batch_size=65536".into()]);
    assert!(read("fashion-mnist-preresnet8-w2a2").is_ok(), "published are 60000, but files may hold more");
    let error = read("digits-preresnet8-w2a2").unwrap_err().to_string();
    assert!(error.contains("65536 is more than the 1438 training images"), "{error}");
}

#[test]
fn hints_on_sums_without_normalization_are_warned_of() {
    let hint = ["strategy={joint={}, hint={weight=0.5}}"];
    let warnings = |model: &str| parse(&[hint[0], model]).unwrap().warnings();
    assert_eq!(warnings("model.family=resnet"), [""; 0]);
    let found = warnings("model.family=preresnet");
    assert!(
        found.len() == 1 && found[0].starts_with("strategy.hint compares feature maps in [0, 1]"),
        "{found:?}"
    );
}

#[test]
fn a_plain_network_by_dorefa_is_warned_of() {
    let warnings = |changes: &[&str]| {
        let plain = ["model={family='alexnet', norm=false}"];
        parse(&[&plain, changes].concat()).unwrap().warnings()
    };
    let found = warnings(&[]);
    assert!(
        found.len() == 1
            && found[0]
                .starts_with("model.norm = false leaves classifier.4 and all before it without a gradient"),
        "{found:?}"
    );
    for fine in [
        "model.norm=true",
        "quantization.method=lsq",
        "quantization.act_bits=fp32",
        "quantization.weight_bits=fp32",
    ] {
        assert_eq!(warnings(&[fine]), [""; 0], "{fine}");
    }
}

/// A linear bottleneck is negative as often as not.
#[test]
fn what_cuts_off_a_bottleneck_is_refused() {
    let mobilenet = "model={family='mobilenetv2'}";
    let found = mistakes(&[mobilenet]);
    assert!(
        found.len() == 1
            && found[0].contains(
                "would cut off half of what linear bottlenecks make: take act_method = \"lsq-plus\", "
            ),
        "{found:?}"
    );
    for fine in ["quantization.act_method=lsq-plus", "quantization.act_bits=fp32"] {
        assert!(parse(&[mobilenet, fine]).is_ok(), "{fine}");
    }
}

#[test]
fn a_scale_of_the_logits_is_a_part_of_the_network() {
    let parameters = |overrides: &[&str]| {
        let recipe = parse(overrides).unwrap();
        crate::plan(&recipe).unwrap().n_parameters()
    };
    assert_eq!(parameters(&["model.logit_scale=true"]), parameters(&[]) + 1);
}

const OWN: [&str; 3] = ["data.dataset=own", "data.shape=[3, 48, 40]", "data.classes=1000"];

/// The recipe says of the program's images what decides the network, and holds it resolved.
#[test]
fn images_of_the_program_are_described_by_the_recipe() {
    let normalization = "data.normalization={mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 1]}";
    let recipe = parse(&[&OWN[..], &[normalization, "data.augment={pad=40}"]].concat()).unwrap();
    assert_eq!((recipe.data.input_shape().dims(), recipe.data.n_classes()), ([3, 48, 40], 1000));
    assert_eq!(recipe.data.normalization.as_ref().unwrap().mean[0], 0.485);
    let text = recipe.to_toml();
    for line in ["dataset = \"own\"", "shape = [3, 48, 40]", "classes = 1000", "mean = [0.485, 0.456, 0.406]"]
    {
        assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
    }
    assert_eq!(Recipe::parse(&text, "test", &[]).unwrap(), recipe);
    // A data set may be normalized in another way too.
    let digits = parse(&["data.normalization={mean=[0.25], std=[0.5]}"]).unwrap();
    assert_eq!(Recipe::parse(&digits.to_toml(), "test", &[]).unwrap(), digits);
    assert!(digits.to_toml().contains("std = [0.5]\n"));
}

#[test]
fn mistakes_in_the_description_of_images_are_told() {
    let own = |changes: &[&str]| mistakes(&[&OWN[..], changes].concat());
    let sides = "expected channels, height and width, each from 1 to 65535, as in [3, 32, 32]";
    assert_eq!(
        mistakes(&OWN[..1]),
        [
            format!("data.shape: is missing; {sides}"),
            "data.classes: is missing; expected the number of classes".into()
        ]
    );
    assert_eq!(own(&["data.shape=[3, 48]"]), [format!("data.shape: {sides}, got [3, 48]")]);
    assert_eq!(own(&["data.shape=[3, 48, 0]"]), [format!("data.shape: {sides}, got [3, 48, 0]")]);
    assert_eq!(own(&["data.shape=48"]), ["data.shape: expected a list of integers, got 48"]);
    assert_eq!(
        own(&["data.classes=65537"]),
        ["data.classes: expected an integer from 1 to 65536, got 65537"]
    );
    assert_eq!(
        own(&["data.augment={pad=41}"]),
        ["data.augment.pad: expected an integer from 0 to 40, got 41"]
    );
    assert_eq!(own(&["data.labels=coarse"]), ["data.labels: only cifar100 has coarse labels, not own"]);
    assert_eq!(
        own(&["data.normalization={mean=[0, 0.5], std=[1, 1, 0]}"]),
        [
            "data.normalization.mean: expected 3 numbers, one for each channel, got 2",
            "data.normalization.std: expected numbers greater than 0, got [1.0, 1.0, 0.0]",
        ]
    );
    assert_eq!(
        own(&["data.normalization={mean=[0, 0, 0]}"]),
        ["data.normalization.std: is missing; expected a list of numbers"]
    );
    // A network without layers for it, by the shape that is said.
    let small = own(&["data.shape=[3, 2, 2]", "model={family='vgg-small'}"]);
    assert!(small.len() == 1 && small[0].starts_with("model.family: "), "{small:?}");
    assert_eq!(
        mistakes(&["data.shape=[1, 8, 8]", "data.classes=10"]),
        [
            "data.shape: that of digits is known: remove this key",
            "data.classes: that of digits is known: remove this key"
        ]
    );
}

/// The size of the network's input is said by the recipe, by which all its images are brought to it.
#[test]
fn images_are_brought_to_a_size() {
    let augment = "data.augment={crop='random-resized', scale=[0.25, 1], flip=true, lighting=0.1, \
                   jitter={brightness=0.4, hue=0.1}}";
    let own = ["data.dataset=own", "data.classes=9", "data.size=64", "data.workers=3", augment];
    let recipe = parse(&own).unwrap();
    assert_eq!(recipe.data.input_shape().dims(), [3, 64, 64]);
    assert_eq!(recipe.data.geometry, Some(Geometry { channels: 3, size: 64, resize: 74 }));
    assert_eq!(recipe.data.workers, Some(3));
    let changes = recipe.data.augment.unwrap();
    assert_eq!(changes.crop.unwrap().scale, [0.25, 1.0]);
    assert_eq!(changes.crop.unwrap().ratio, RandomResizedCrop::default().ratio);
    assert_eq!((changes.lighting, changes.jitter.unwrap().brightness), (0.1, 0.4));
    let text = recipe.to_toml();
    for line in ["size = 64", "resize = 74", "workers = 3", "crop = \"random-resized\"", "lighting = 0.1"] {
        assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
    }
    assert_eq!(Recipe::parse(&text, "test", &[]).unwrap(), recipe);
    let middle = parse(&["data.dataset=own", "data.classes=9", "data.size=224", "data.channels=1"]).unwrap();
    assert_eq!(middle.data.geometry, Some(Geometry { channels: 1, size: 224, resize: 256 }));
    // A data set keeps its channels.
    let digits = parse(&["data.size=16", "data.augment={crop='random-resized'}"]).unwrap();
    assert_eq!(digits.data.input_shape().dims(), [1, 16, 16]);
}

#[test]
fn mistakes_in_sizes_and_changes_of_images_are_told() {
    assert_eq!(
        mistakes(&["data.resize=9", "data.augment={crop='random-resized'}"]),
        [
            "data.resize: images keep their size: remove this key, or set data.size to that of the network's input",
            "data.augment.crop: the size to which parts are resized is missing: set data.size to that of the network's input",
        ]
    );
    assert_eq!(
        mistakes(&["data.size=16", "data.resize=15"]),
        ["data.resize: expected an integer from 16 to 8192, got 15"]
    );
    assert_eq!(
        mistakes(&["data.workers=1025"]),
        ["data.workers: expected an integer from 0 to 1024, got 1025"]
    );
    assert_eq!(
        mistakes(&["data.augment={scale=[0.5, 0.4], jitter={hue=0.6}, lighting=0.1}"]),
        [
            "data.augment.scale: nothing is cropped: remove this key, or set data.augment.crop=\"random-resized\"",
            "data.augment.scale: expected the smallest and the largest, above 0 and up to 1, got [0.5, 0.4]",
            "data.augment.jitter.hue: expected a number from 0 to 0.5, got 0.6",
            "data.augment.lighting: grey images have no colors: remove this key",
        ]
    );
    assert_eq!(
        mistakes(&[&OWN[..], &["data.size=32", "data.channels=2"]].concat()),
        [
            "data.channels: expected 1 (grey) or 3 (red, green and blue), got 2",
            "data.shape: images are brought to data.size: remove this key",
        ]
    );
}

/// Weights and activations have methods of their own; one key is the preset of both.
#[test]
fn operands_have_methods_of_their_own() {
    let methods = |overrides: &[&str], path: &str| {
        let recipe = parse(overrides).unwrap_or_else(|error| panic!("{error}"));
        // What is written is read as the same.
        let again =
            Recipe::parse(&recipe.to_toml(), "again.toml", &[]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(again, recipe, "{overrides:?}");
        let layer = recipe.quantization.policy.resolve(path, LayerRole::Hidden);
        [layer.weight_method.name(), layer.act_method.name()]
    };
    let path = "stages.0.0.conv1";
    assert_eq!(methods(&["quantization.method='pact'"], path), ["pact"; 2]);
    assert_eq!(methods(&["quantization.act_method='pact'"], path), ["dorefa", "pact"]);
    assert_eq!(methods(&["quantization.weight_method='lsq'"], path), ["lsq", "dorefa"]);
    let both = ["quantization.weight_method='tqt'", "quantization.act_method='ewgs'"];
    assert_eq!(methods(&both, path), ["tqt", "ewgs"]);
    let of_layer = "quantization.layers=[{pattern='stages.0.**', method='lsq'}, {pattern='**.conv1', act_method='lsq-plus'}]";
    assert_eq!(methods(&[of_layer], path), ["lsq", "lsq-plus"]);
    assert_eq!(methods(&[of_layer], "stages.1.0.conv1"), ["dorefa", "lsq-plus"]);
}

/// A folder says how many classes it has; the recipe may say so too.
#[test]
fn folders_of_images_are_described() {
    let folder =
        ["data.dataset=folder", "data.size=32", "data.validation=0.1", "data.test=0.2", "data.split_seed=3"];
    let recipe = parse(&folder).unwrap();
    assert_eq!(recipe.data.dataset, DatasetChoice::Folder { form: FolderForm::Classes, n_classes: None });
    assert_eq!(recipe.data.input_shape().dims(), [3, 32, 32]);
    let text = recipe.to_toml();
    for line in ["dataset = \"folder\"", "validation = 0.1", "test = 0.2", "split_seed = 3"] {
        assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
    }
    assert_eq!(Recipe::parse(&text, "test", &[]).unwrap(), recipe);
    let imagenet =
        ["data.dataset=imagenet", "data.size=32", "data.classes=1000", "data.skip_unreadable=true"];
    let recipe = parse(&imagenet).unwrap();
    assert_eq!(recipe.data.n_classes(), 1000);
    assert_eq!(Recipe::parse(&recipe.to_toml(), "test", &[]).unwrap(), recipe);

    assert_eq!(
        mistakes(&["data.dataset=folder", "data.shape=[3, 8, 8]"]),
        [
            "data.shape: images of a folder are brought to data.size: remove this key",
            "data.size: is missing; expected the side that images are brought to, as in 224",
        ]
    );
    // What depends on a size that is wrong or missing is not told too.
    let dependent = ["data.dataset=folder", "data.augment={crop=\"random-resized\", pad=4}"];
    assert_eq!(
        mistakes(&[&dependent[..], &["data.size=0", "data.resize=40"]].concat()),
        ["data.size: expected an integer from 1 to 8192, got 0"]
    );
    assert_eq!(
        mistakes(&["data.dataset=folder", "data.augment={pad=4}"]),
        ["data.size: is missing; expected the side that images are brought to, as in 224"]
    );
    assert_eq!(
        mistakes(&["data.test=0.2", "data.skip_unreadable=true", "data.split_seed=1"]),
        [
            "data.test: is for data.dataset=\"folder\" or \"imagenet\": remove this key",
            "data.skip_unreadable: is for data.dataset=\"folder\" or \"imagenet\": remove this key",
        ]
    );
    assert_eq!(
        mistakes(&["data.validation=-0.1"]),
        ["data.validation: expected a number from 0 and less than 1 (in 32 bits), got -0.1"]
    );
}

/// A method that has other bits than the recipe takes its own, and says so; bits that are asked for are never changed.
#[test]
fn a_method_takes_its_own_bits() {
    let source = RecipeSource::embedded("digits-preresnet8-w2a2").unwrap();
    let bits = |set: &[&str]| {
        let set: Vec<String> = set.iter().map(ToString::to_string).collect();
        let recipe = source.recipe(&set)?;
        let base = recipe.quantization.policy.base;
        let bits = [base.weight_bits, base.act_bits].map(|bits| bits.bit_width().unwrap().get());
        Ok::<_, RecipeError>((bits, source.own_bits(&set)))
    };
    assert_eq!(bits(&["quantization.method=lsq"]).unwrap(), ([2, 2], vec![]));
    let (own, said) = bits(&["quantization.method=xnor"]).unwrap();
    assert_eq!(own, [1, 2]);
    assert_eq!(
        said,
        ["quantization.weight_bits is 1, not 2 as in the recipe: xnor has no weights of 2 bits"]
    );
    assert_eq!(bits(&["quantization.weight_method=\"hwgq\"", "quantization.act_bits=4"]).unwrap().0, [1, 4]);
    for asked in ["quantization.weight_bits=2", "quantization.weight_bits=3"] {
        let error = bits(&["quantization.method=xnor", asked]).unwrap_err().to_string();
        assert!(error.contains("xnor"), "{error}");
    }
    for method in lowbit_quantizers::Method::ALL {
        assert!(bits(&[&format!("quantization.method={method}")]).is_ok(), "{method}");
    }
    // Full precision by its number is no bit width to change, and what is none at all stays a mistake.
    let written = |act_bits: &str| {
        let text = format!(
            "schema = 1\nextends = \"digits-preresnet8-w2a2\"\nname = \"mine\"\n[quantization]\nweight_bits = 1\nact_bits = {act_bits}\n"
        );
        Recipe::parse(&text, "mine.toml", &["quantization.method=xnor".into()])
    };
    assert_eq!(written("32").unwrap().quantization.policy.base.act_bits, Precision::FullPrecision);
    assert!(written("16").is_err() && written("0").is_err());
}

/// A recipe that lowbit has written out takes another method with the granularity of its paper.
#[test]
fn a_resolved_recipe_takes_another_method() {
    use lowbit_core::Granularity::{PerChannel, PerTensor};
    let set = |method: &str| vec![format!("quantization.method={method}")];
    for (first, then, granularity) in [("n2uq", "dorefa", PerTensor), ("dorefa", "n2uq", PerChannel)] {
        let resolved = Recipe::embedded("digits-preresnet8-w2a2", &set(first)).unwrap().to_toml();
        let recipe = Recipe::parse(&resolved, "recipe.toml", &set(then)).unwrap();
        assert_eq!(recipe.quantization.policy.base.weight_granularity, granularity, "{first}, then {then}");
    }
    // Another one was asked for, and stays.
    let asked = [set("lsq"), vec!["quantization.weight_granularity='per-channel'".into()]].concat();
    let resolved = Recipe::embedded("digits-preresnet8-w2a2", &asked).unwrap().to_toml();
    let recipe = Recipe::parse(&resolved, "recipe.toml", &set("tqt")).unwrap();
    assert_eq!(recipe.quantization.policy.base.weight_granularity, PerChannel);
}

/// A method needs the bits of every rung before anything is trained.
#[test]
fn rungs_have_bits_that_the_method_has() {
    let read = |method: &str, ladder: &str| {
        let set = [format!("quantization.method={method}"), format!("strategy.progressive.ladder={ladder}")];
        Recipe::embedded("digits-preresnet8-w2a2-pq", &set)
    };
    assert!(read("n2uq", "[4, 3]").is_ok());
    for (method, ladder) in [("n2uq", "[8, 4]"), ("twn", "[4]"), ("xnor", "[\"fp32\", 4]")] {
        let message = read(method, ladder).unwrap_err().to_string();
        assert!(message.contains("strategy.progressive.ladder") && message.contains(method), "{message}");
    }
}

/// Parts of a batch have an image each at least, and two where BatchNorm would have one value.
#[test]
fn a_batch_has_no_more_parts_than_images() {
    let read = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Recipe::embedded("digits-preresnet8-w2a2", &overrides).map(|recipe| recipe.train.accumulate)
    };
    assert_eq!(read(&[]).unwrap(), 1);
    assert_eq!(read(&["data.batch_size=4", "train.accumulate=4"]).unwrap(), 4);
    let message = read(&["data.batch_size=4", "train.accumulate=5"]).unwrap_err().to_string();
    assert!(message.contains("train.accumulate") && message.contains("a batch of 4 images"), "{message}");
    let no_norm = ["model.stem_stride=2", "data.batch_size=4", "train.accumulate=4"];
    let message = read(&no_norm).map_or_else(|error| error.to_string(), |n| format!("{n} parts are taken"));
    assert!(message.contains("at most half of data.batch_size"), "{message}");
}

/// `docs/recipes.md` has every key that is read, of all kinds of recipes.
#[test]
fn every_key_is_documented() {
    let page = include_str!("../../../../docs/recipes.md");
    // Words of the page that can be keys, and paths of keys: between backticks, or before an equals sign there.
    let code = page.split('`').skip(1).step_by(2);
    let words: BTreeSet<&str> = code
        .flat_map(|code| code.split(|c: char| !(c.is_alphanumeric() || c == '_')))
        .filter(|word| !word.is_empty())
        .collect();
    let all_parts = [
        "strategy.two_stage=true",
        "strategy.progressive={}",
        "strategy.stochastic_precision={unit='channel-group'}",
        "strategy.soft_weights={}",
        "strategy.joint={students=[{weight_bits=4, act_bits=4}]}",
        "strategy.hint={weight=1.0}",
        "strategy.damping={}",
        "strategy.transition_rate={}",
        "strategy.freezing={}",
        "strategy.sharpness={}",
        "early_stopping.patience=3",
        "quantization.layers=[{pattern='fc', weight_bits=4}]",
        "data.augment={crop='random-resized', jitter={brightness=0.1}, lighting=0.1}",
        "train.optimizer={kind='adamw'}",
        "train.schedule={kind='multi-step', milestones=[0.5]}",
        "phases.w2a2.epochs=3",
        "checkpoint.every_steps=3",
    ];
    let mut keys = BTreeSet::new();
    for change in all_parts.into_iter().map(Some).chain([None]) {
        let mut table: Table = embedded()[0].table();
        if let Some(change) = change {
            let (key, value) = change.split_once('=').unwrap();
            let value: Table = toml::from_str(&format!("value={value}")).unwrap();
            let mut parts: Vec<&str> = key.split('.').collect();
            let last = parts.pop().unwrap();
            let mut inner = &mut table;
            for part in parts {
                let entry = inner.entry(part).or_insert_with(|| Value::Table(Table::new()));
                inner = entry.as_table_mut().unwrap();
            }
            inner.insert(last.into(), value["value"].clone());
        }
        let problems = Problems::default();
        read(table, &problems);
        keys.extend(problems.known.into_inner());
    }
    assert!(keys.len() > 120, "{}: {keys:?}", keys.len());
    let is_missing = |key: &&String| {
        let leaf = key.rsplit('.').next().unwrap();
        !words.contains(leaf.split('[').next().unwrap())
    };
    let missing: Vec<&String> = keys.iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "docs/recipes.md lacks {missing:?}");
}

/// A learning rate is scaled with the batch only where the recipe says for which batch it is.
#[test]
fn a_learning_rate_is_of_its_batch() {
    let rates = |overrides: &[&str]| -> Vec<f64> {
        let own = ["train.learning_rate=0.1", "strategy.progressive={ladder=[4]}", "train.epochs=8"];
        let overrides: Vec<String> = own.iter().chain(overrides).map(ToString::to_string).collect();
        let recipe = Recipe::embedded("digits-preresnet8-w2a2", &overrides).unwrap();
        let read = Recipe::parse(&recipe.to_toml(), "its own", &[]).unwrap();
        assert_eq!(read.phases(), recipe.phases());
        let whole = recipe.train_over(8).learning_rate;
        recipe.phases().iter().map(|phase| phase.train.learning_rate).chain([whole]).collect()
    };
    assert_eq!(rates(&["data.batch_size=512"]), [0.1, 0.1, 0.1]);
    assert_eq!(rates(&["data.batch_size=512", "train.learning_rate_batch=512"]), [0.1, 0.1, 0.1]);
    assert_eq!(rates(&["data.batch_size=512", "train.learning_rate_batch=128"]), [0.4, 0.4, 0.4]);
    let named = ["data.batch_size=64", "train.learning_rate_batch=128", "phases={w2a2={learning_rate=0.01}}"];
    assert_eq!(rates(&named), [0.05, 0.005, 0.05]);
}
