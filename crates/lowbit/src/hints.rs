//! What to write instead of what is often tried on the command line.

use std::ffi::OsString;
use std::path::{Component, Path};

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use lowbit_data::DatasetName;
use lowbit_train::recipe::embedded;
use lowbit_train::shell_quoted;

use crate::recipes;

/// Options of other training programs, with the key of the recipe that does the same and a value for an example.
const SETTINGS: [(&[&str], &str, &str); 17] = [
    (&["epochs", "epoch", "n-epochs", "num-epochs", "max-epochs"], "train.epochs", "3"),
    (&["lr", "learning-rate", "base-lr"], "train.learning_rate", "0.1"),
    (&["batch-size", "batch", "bs", "b"], "data.batch_size", "64"),
    (&["seed", "random-seed"], "seed", "1"),
    (&["bits", "weight-bits", "w-bits", "wbits", "bit-width"], "quantization.weight_bits", "2"),
    (&["act-bits", "activation-bits", "a-bits", "abits"], "quantization.act_bits", "2"),
    (&["grad-bits", "gradient-bits", "g-bits", "gbits"], "quantization.grad_bits", "8"),
    (&["method", "quantizer"], "quantization.method", "lsq"),
    (&["weight-decay", "wd"], "train.weight_decay", "0.0001"),
    (&["gradient-clip", "grad-clip", "clip"], "train.gradient_clip", "1"),
    (&["ema", "ema-decay"], "train.ema_decay", "0.9"),
    (&["warmup", "warmup-epochs"], "train.warmup_epochs", "1"),
    (&["label-smoothing"], "train.label_smoothing", "0.1"),
    (&["dataset", "data-set"], "data.dataset", "mnist"),
    (&["train-limit", "limit"], "data.train_limit", "1000"),
    (&["depth"], "model.depth", "20"),
    (&["init", "pretrained", "weights"], "init", "runs/a"),
];

/// Other options of other programs.
const OPTIONS: [(&[&str], &str); 8] = [
    (
        &["output", "output-dir", "out-dir", "save-dir", "logdir", "run-dir", "o"],
        "the run directory is given by `--out DIR`",
    ),
    (
        &["gpu", "gpus", "cuda", "cpu"],
        "the device is given by `--device`, as in `--device wgpu` or `--device flex`",
    ),
    (
        &["config", "recipe", "file", "c"],
        "the recipe is given without an option, as in `lowbit train my-recipe.toml`",
    ),
    (
        &["continue", "restart", "from-checkpoint", "load", "r"],
        "a run is continued by `lowbit train --resume DIR`",
    ),
    (&["data", "data-path", "data-root", "root", "d"], "the place of data sets is given by `--data-dir DIR`"),
    (&["threads", "jobs", "j"], "threads are set by the environment variable RAYON_NUM_THREADS"),
    (&["workers", "num-workers"], "threads that read images are set by `--set data.workers=2`"),
    (&["silent"], "only errors and the result are shown with `--quiet`"),
];

/// Commands of other programs.
const COMMANDS: [(&[&str], &str); 8] = [
    (&["resume", "continue"], "train --resume DIR"),
    (&["evaluate", "test", "score", "validate", "predict"], "eval DIR"),
    (&["show", "info", "summary", "plan", "describe"], "inspect DIR"),
    (&["load", "convert", "weights"], "import FILE"),
    (&["fetch", "download"], "data fetch NAME"),
    (&["verify", "check"], "data verify NAME"),
    (&["list", "ls", "models"], "recipes"),
    (&["version"], "--version"),
];

/// Replaces clap's tips by what does what was meant, where that is known.
pub fn add_to(error: &mut clap::Error, arguments: &[OsString]) {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let tip = match error.kind() {
        ErrorKind::UnknownArgument => {
            context(ContextKind::InvalidArg).and_then(|option| tip_for_option(&option, arguments))
        }
        ErrorKind::InvalidSubcommand => {
            let meant =
                |name: String| command_for(&name, arguments).map(|command| format!("use `lowbit {command}`"));
            context(ContextKind::InvalidSubcommand).and_then(meant)
        }
        ErrorKind::ArgumentConflict => {
            // Each is named in one of the two places, as in `--set <KEY=VALUE>`.
            let named = [ContextKind::InvalidArg, ContextKind::PriorArg].map(|kind| error.get(kind));
            let named: String = named.into_iter().flatten().map(ToString::to_string).collect();
            let is_new = ["--set", "--out", "RECIPE"].iter().any(|part| named.contains(part));
            if is_new { tip_for_resuming(arguments) } else { None }
        }
        _ => None,
    };
    if error.kind() == ErrorKind::UnknownArgument {
        // That an unknown option can be passed as a value helps nobody.
        error.remove(ContextKind::Suggested);
    }
    if let Some(tip) = tip {
        for kind in
            [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedCommand]
        {
            error.remove(kind);
        }
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    }
}

/// The command that is meant by `name`, which is none there where it stands in `arguments`.
fn command_for(name: &str, arguments: &[OsString]) -> Option<String> {
    let parent = arguments.iter().find(|argument| !argument.to_string_lossy().starts_with('-'));
    let known = COMMANDS.iter().find(|(names, _)| names.contains(&name)).map(|(_, command)| *command);
    let is_recipe = || recipes::is_path(name) || embedded().iter().any(|recipe| recipe.name == name);
    let quoted = shell_quoted(Path::new(name));
    match (parent.and_then(|parent| parent.to_str()), known) {
        (Some("recipes"), Some("recipes")) => Some("recipes list".into()),
        (Some("recipes"), _) => Some(format!("recipes show {quoted}")),
        (Some("data"), Some("recipes")) => Some("data list".into()),
        (Some("data"), Some(command)) => command.starts_with("data ").then(|| command.into()),
        (Some("data"), None) => name.parse::<DatasetName>().is_ok().then(|| format!("data fetch {name}")),
        (_, Some(command)) => Some(command.into()),
        (_, None) => is_recipe().then(|| format!("train {quoted}")),
    }
}

/// What to do where a run is to be resumed with something that it has already.
fn tip_for_resuming(arguments: &[OsString]) -> Option<String> {
    let run = value_of("--resume", arguments)?;
    Some(format!(
        "a run goes on with its own recipe, in its own directory; a new run begins with its weights by `lowbit train RECIPE \
         --set init={run}`"
    ))
}

fn tip_for_option(option: &str, arguments: &[OsString]) -> Option<String> {
    let name = option.trim_start_matches('-').split('=').next()?.replace('_', "-").to_lowercase();
    // A name of data, not a place.
    let value = value_of(option, arguments);
    if let ("data", Some(dataset)) =
        (name.as_str(), value.as_ref().filter(|name| name.parse::<DatasetName>().is_ok()))
    {
        return Some(format!("settings of a recipe are changed by --set: `--set data.dataset={dataset}`"));
    }
    if let Some((_, tip)) = OPTIONS.iter().find(|(names, _)| names.contains(&name.as_str())) {
        return Some((*tip).into());
    }
    let (_, key, example) = SETTINGS.iter().find(|(names, ..)| names.contains(&name.as_str()))?;
    let value = value.unwrap_or_else(|| (*example).into());
    Some(format!("settings of a recipe are changed by --set: `--set {key}={value}`"))
}

/// What follows an option: after `=`, or in the next argument.
fn value_of(option: &str, arguments: &[OsString]) -> Option<String> {
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_string_lossy()).collect();
    let name = option.split('=').next()?;
    let index = arguments.iter().position(|argument| argument.split('=').next() == Some(name))?;
    let value = match arguments[index].split_once('=') {
        Some((_, value)) => value.to_string(),
        None => arguments.get(index + 1)?.to_string(),
    };
    let is_plain = |c: char| c.is_alphanumeric() || "._-/".contains(c);
    (!value.is_empty() && !value.starts_with('-') && value.chars().all(is_plain)).then_some(value)
}

/// Why a path that begins with `~` is none, unless there is something of this name.
pub fn expect_no_tilde(path: &Path) -> Result<(), String> {
    let Some(Component::Normal(first)) = path.components().next() else { return Ok(()) };
    let first = first.to_string_lossy();
    let is_named = first != "~" && Path::new(&*first).exists();
    match first.starts_with('~') && !is_named {
        true => Err(format!(
            "a shell replaces ~ only at the start of a word, not after `=`: write $HOME instead, or ./{first} for a \
             file of this name"
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use lowbit_train::Recipe;
    use lowbit_train::recipe::DEFAULT;

    use super::*;

    /// A hint that names a key which there is not would be worse than none.
    #[test]
    fn hinted_settings_are_accepted() {
        for (_, key, value) in SETTINGS {
            // A network of another depth has to be one that there is; a path is not looked at before the training.
            let base = if key == "model.depth" { "cifar10-preresnet20-w2a2" } else { DEFAULT };
            let set = format!("{key}={value}");
            let recipe = Recipe::embedded(base, std::slice::from_ref(&set));
            assert!(recipe.is_ok(), "{set}: {}", recipe.unwrap_err());
        }
    }

    #[test]
    fn options_have_the_value_that_was_given() {
        let tip = |option: &str, arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            tip_for_option(option, &arguments)
        };
        let set =
            |setting: &str| Some(format!("settings of a recipe are changed by --set: `--set {setting}`"));
        assert_eq!(tip("--epochs", &["train", "--epochs", "5"]), set("train.epochs=5"));
        assert_eq!(tip("--epochs", &["train", "--epochs=5"]), set("train.epochs=5"));
        assert_eq!(tip("--lr", &["train", "--lr", "--quiet"]), set("train.learning_rate=0.1"));
        assert_eq!(tip("--batch_size", &["train", "--batch_size"]), set("data.batch_size=64"));
        assert_eq!(tip("--lr", &["train", "--lr", "$(rm)"]), set("train.learning_rate=0.1"));
        assert!(tip("--output_dir", &[]).unwrap().contains("--out DIR"));
        assert_eq!(tip("--unheard-of", &[]), None);
    }

    #[test]
    fn tilde_is_no_directory() {
        for path in ["~", "~/x", "~nobody-of-this-name/x"] {
            assert!(expect_no_tilde(Path::new(path)).is_err(), "{path}");
        }
        for path in ["x", "./~/x", "/~/x", "a~", "x/~", "../~", ""] {
            assert!(expect_no_tilde(Path::new(path)).is_ok(), "{path}");
        }
    }
}
