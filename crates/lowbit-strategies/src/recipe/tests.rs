use lowbit_core::Precision;

use super::*;

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
        Err(RecipeError::Invalid { problems, .. }) => problems.iter().map(ToString::to_string).collect(),
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
        "train.optimizer={kind='adamw', beta1=0.8}",
        "train.schedule={kind='multi-step', milestones=[1, 2]}",
        "train.ema_decay=0.99",
        "train.gradient_clip=1.5",
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
            "model.depth: expected 6n+2: 8, 14, 20, 32, 44, 56 or 110, got 9",
            "quantization.method: expected one of \"dorefa\", \"pact\", \"lsq\", \"minmax\", got \"dorefe\"; did you mean \"dorefa\"?",
            "quantization.weight_bits: expected a bit width from 1 to 8, or \"fp32\", got 9",
            "quantization.act_bits: expected a bit width from 1 to 8, or \"fp32\", got \"full\"",
            "train.epochs: expected an integer from 1 to 100000, got 0",
            "train.learning_rat: unknown key, set to 0.1; did you mean \"learning_rate\"?",
            "colour: unknown key, set to 1; the keys here are schema, name, seed, reference, init, data, model, quantization, train, strategy, checkpoint, phases",
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
    let cases: [(&[&str], String); 6] = [
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
             image at stem: take method = \"minmax\" for it, or act_bits = \"fp32\""
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

/// To try a recipe out is to train it for an epoch.
#[test]
fn every_recipe_takes_one_epoch() {
    for recipe in embedded() {
        Recipe::embedded(&recipe.name, &["train.epochs=1".into()]).unwrap_or_else(|error| panic!("{error}"));
    }
    let change = "phases={w2a2={epochs=1}, w2a32={schedule={kind='multi-step', milestones=[9]}}}";
    let multi_step = "train.schedule={kind='multi-step', milestones=[80, 120]}";
    parse(&["strategy.two_stage=true", change, multi_step]).unwrap();
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
            "model.depth: expected 6n+2: 8, 14, 20, 32, 44, 56 or 110, got 18; layout = \"imagenet\" has it",
        ),
        (&[imagenet], "model.depth: expected 18, 34 or 50, got 8; layout = \"cifar\" has it"),
        (&[imagenet, "model.depth=19"], "model.depth: expected 18, 34 or 50, got 19"),
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
            "strategy.joint.teacher.depth: is missing; expected 18, 34 or 50",
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
            "--set \"train.epochs\": is not of the form key=value, as in --set train.epochs=3",
            "--set \"=3\": is not of the form key=value, as in --set train.epochs=3",
            "--set \"train..epochs=3\": is not of the form key=value, as in --set train.epochs=3",
            "--set \"seed=1\\ntrain=2\": has more than one key: give each a --set",
            "train.epochs: expected an integer from 1 to 100000, got 0",
        ]
    );
    assert!(matches!(Recipe::parse("a = = 1", "broken.toml", &[]), Err(RecipeError::Syntax { .. })));
    let unknown = Recipe::embedded("digits-preresnet8-w2a3", &[]).unwrap_err().to_string();
    assert!(unknown.contains("did you mean \"digits-preresnet8-w2a2\"?"), "{unknown}");
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
    let phases = recipe.phases(&recipe.strategies()).into_iter();
    phases.map(|phase| (phase.name, phase.train.epochs)).collect()
}

fn names(overrides: &[&str]) -> Vec<String> {
    phases(overrides).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn strategies_divide_a_training_into_phases() {
    assert_eq!(phases(&[]), [("w2a2".into(), 3)]);
    assert_eq!(names(&["strategy.two_stage=true"]), ["w2a32", "w2a2"]);
    let epochs =
        |overrides: &[&str]| phases(overrides).into_iter().map(|(_, epochs)| epochs).collect::<Vec<_>>();
    assert_eq!(epochs(&["train.epochs=20", "strategy.progressive={}"]), [3, 3, 4, 10]);
    assert_eq!(epochs(&["train.epochs=1", "strategy.progressive={}"]), [1, 1, 1, 1]);
    let stretched = parse(&[
        "train.epochs=200",
        "train.warmup_epochs=4",
        "train.schedule={kind='multi-step', milestones=[80, 120]}",
        "strategy.progressive={}",
    ])
    .unwrap();
    let trains: Vec<_> =
        stretched.phases(&stretched.strategies()).into_iter().map(|phase| phase.train).collect();
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
        ["w32a32", "w4a32", "w4a4", "w2a32", "w2a2"]
    );
}

#[test]
fn phases_take_settings_of_their_own_and_a_floor_that_patterns_respect() {
    let recipe = parse(&[
        "strategy.two_stage=true",
        "strategy.progressive={ladder=[4]}",
        "quantization.first={method='minmax', weight_bits=8, act_bits=8}",
        "quantization.layers=[{pattern='stages.0.**', weight_bits=1}]",
        "phases={w4a32={epochs=7, learning_rate=0.5}, w2a2={schedule={kind='cosine'}, optimizer_state='kept'}}",
    ])
    .unwrap();
    let phases = recipe.phases(&recipe.strategies());
    let settings: Vec<_> = phases
        .iter()
        .map(|phase| (phase.name.as_str(), phase.train.epochs, phase.train.learning_rate))
        .collect();
    assert_eq!(settings, [("w4a32", 7, 0.5), ("w4a4", 1, 0.1), ("w2a32", 1, 0.1), ("w2a2", 2, 0.1)]);
    assert_eq!(phases[3].train.schedule, ScheduleRecipe::Cosine);
    assert_eq!(recipe.total_epochs(), 11);
    let bits = |phase: usize, path: &str, role| {
        let resolved = recipe.quantization.policy_at(phases[phase].floor).resolve(path, role);
        (resolved.weight_bits.stored_bits(), resolved.act_bits.stored_bits())
    };
    use lowbit_quantizers::LayerRole::{First, Hidden, Last};
    let path = "stages.0.0.conv1";
    assert_eq!([0, 1, 2, 3].map(|phase| bits(phase, path, Hidden)), [(4, 32), (4, 4), (1, 32), (1, 2)]);
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
    let phases = recipe.phases(&recipe.strategies());
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
    let message = "goes by quantization.weight_bits and act_bits, and has nothing to do at W32A32: lower these, and give \
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
        ["strategy.joint.teacher.depth: is missing; expected 6n+2: 8, 14, 20, 32, 44, 56 or 110"]
    );
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
