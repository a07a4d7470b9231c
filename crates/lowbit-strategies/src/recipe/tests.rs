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
fn embedded_recipes_are_valid_sorted_and_named_after_their_file() {
    let names: Vec<&str> = EMBEDDED.iter().map(|recipe| recipe.name).collect();
    assert!(names.is_sorted(), "{names:?}");
    assert!(names.contains(&DEFAULT));
    for recipe in EMBEDDED {
        let parsed = Recipe::embedded(recipe.name, &[]).unwrap_or_else(|error| panic!("{error}"));
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
    ];
    let mut recipes: Vec<Recipe> =
        EMBEDDED.iter().map(|recipe| Recipe::embedded(recipe.name, &[]).unwrap()).collect();
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
            "train.learning_rat: unknown key; did you mean \"learning_rate\"?",
            "colour: unknown key; the keys here are schema, name, seed, data, model, quantization, train, checkpoint",
        ]
    );
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
fn overrides_take_values_texts_and_tables() {
    let recipe =
        parse(&["train.learning_rate = 0.5", "quantization.act_bits=fp32", "train.ema_decay=0.9"]).unwrap();
    assert_eq!(recipe.train.learning_rate, 0.5);
    assert_eq!(recipe.quantization.policy.base.act_bits, Precision::FullPrecision);
    assert_eq!(recipe.quantization.summary(), "W2A32");
    assert_eq!(recipe.train.ema_decay, Some(0.9));
    for malformed in ["train.epochs", "=3", "train..epochs=3"] {
        assert!(matches!(parse(&[malformed]), Err(RecipeError::Override { .. })), "{malformed}");
    }
    assert!(matches!(Recipe::parse("a = = 1", "broken.toml", &[]), Err(RecipeError::Syntax { .. })));
    let unknown = Recipe::embedded("digits-preresnet8-w2a3", &[]).unwrap_err().to_string();
    assert!(unknown.contains("did you mean \"digits-preresnet8-w2a2\"?"), "{unknown}");
}
