//! A recipe as text; lines after a line of dashes are `--set` overrides. What is read is planned and written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowbit_train::Recipe;

fuzz_target!(|text: &str| {
    let (text, overrides) = text.split_once("\n---\n").unwrap_or((text, ""));
    let overrides: Vec<String> = overrides.lines().map(String::from).collect();
    if let Ok(recipe) = Recipe::parse(text, "fuzz.toml", &overrides) {
        lowbit_train::plan(&recipe).expect("a recipe's network is defined");
        let again =
            Recipe::parse(&recipe.to_toml(), "again.toml", &[]).expect("a recipe is written as it is read");
        assert!(again == recipe, "a recipe reads back as another");
    }
});
