//! The command line.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PathBufValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgAction, ArgGroup, Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use clap_complete::engine::ArgValueCompleter;
use lowbit_core::BitWidth;
use lowbit_data::{DataError, DatasetName, Locations};
use lowbit_models::{Family, Layout, ModelConfig};
use lowbit_quantizers::Method;
use lowbit_train::Budget;

use crate::complete::{recipes, runs, runs_and_models, runs_and_recipes};
use crate::device::DeviceName;
use crate::exit_code;
use crate::hints::expect_no_tilde;
use crate::sensitivity::parse_budget;

/// Train convolutional networks with weights and activations of 1 to 8 bits.
///
/// Results go to stdout, progress and logs to stderr.
#[derive(Parser)]
#[command(
    version,
    disable_version_flag = true,
    max_term_width = 80,
    after_help = concat_examples(&[
        ("lowbit train", "train the default recipe, in under a minute"),
        ("lowbit eval runs/digits-preresnet8-w2a2", "score its newest checkpoint again"),
        ("lowbit recipes", "list what else there is to train"),
    ], exit_code::HELP)
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Log more to stderr: -v debug, -vv trace
    #[arg(short, long, action = ArgAction::Count, global = true, conflicts_with = "quiet", display_order = 100)]
    verbose: u8,

    /// Show warnings and errors only, and the result
    #[arg(short, long, global = true, display_order = 100)]
    quiet: bool,

    /// Print the version; with --verbose or --json after it, also what it was built from and what it runs on
    #[arg(short = 'V', long, action = ArgAction::Version, global = true, display_order = 101)]
    version: Option<bool>,
}

/// How much is shown on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    Quiet,
    Normal,
    Debug,
    Trace,
}

impl Cli {
    pub fn verbosity(&self) -> Verbosity {
        match self.verbose {
            _ if self.quiet => Verbosity::Quiet,
            0 => Verbosity::Normal,
            1 => Verbosity::Debug,
            _ => Verbosity::Trace,
        }
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// Train a network, or go on with a training
    #[command(after_help = concat_examples(&[
        ("lowbit train", ""),
        ("lowbit train fashion-mnist-preresnet8-w2a2 --out runs/fashion", ""),
        ("lowbit train my-recipe.toml --set train.epochs=3 --set seed=1", ""),
        ("lowbit train --resume runs/fashion", ""),
        ("lowbit train my-recipe.toml --out runs/mine --or-resume --or-previous", ""),
        ("lowbit train --json | jq .top1", ""),
    ], TRAIN_NOTES))]
    Train(TrainArgs),

    /// Score a checkpoint or a packed model on the test images, as its run did
    #[command(after_help = concat_examples(&[
        ("lowbit eval runs/fashion", ""),
        ("lowbit eval fashion.lowbit", ""),
        ("lowbit eval runs/fashion --checkpoint step-00000468 --json", ""),
    ], EVAL_NOTES))]
    Eval(EvalArgs),

    /// Show the layers, precision and state of a run, or of a recipe
    #[command(after_help = concat_examples(&[
        ("lowbit inspect runs/fashion", ""),
        ("lowbit inspect runs/fashion --json | jq -r .state_sha256", ""),
        ("lowbit inspect digits-preresnet8-w2a2 --set quantization.act_bits=4", ""),
    ], INSPECT_NOTES))]
    Inspect(InspectArgs),

    /// Train a recipe with several values of settings, over several seeds, and compare them
    #[command(after_help = concat_examples(&[
        ("lowbit sweep digits-preresnet8-w2a2 --seeds 5", ""),
        ("lowbit sweep digits-preresnet8-w2a2 --set quantization.method=lsq,pact --seeds 3", ""),
        ("lowbit sweep my.toml --set train.learning_rate=0.1,0.05 --set data.validation=0.1", ""),
    ], SWEEP_NOTES))]
    Sweep(SweepArgs),

    /// Measure what the bits of each layer cost, and choose bits for each under a budget
    #[command(after_help = concat_examples(&[
        ("lowbit sensitivity runs/fashion", ""),
        ("lowbit sensitivity runs/fashion --budget w3a3 --out mixed.toml", ""),
        ("lowbit sensitivity runs/fp32 --method lsq --bits 2,4,8 --budget 250k --of bytes", ""),
    ], SENSITIVITY_NOTES))]
    Sensitivity(SensitivityArgs),
    /// List the runs below a directory: what they train, how far they are and what they score
    #[command(after_help = concat_examples(&[
        ("lowbit list runs", ""),
        ("lowbit list runs --sort top1 --reverse", ""),
        ("lowbit list runs --json | jq -r '.runs[] | select(.state == \"stopped\").run_dir'", ""),
    ], LIST_NOTES))]
    List(ListArgs),

    /// Show runs side by side: results, cost, and where recipes and layers differ
    #[command(after_help = concat_examples(&[
        ("lowbit compare runs/plain runs/joint", ""),
        ("lowbit compare runs/seed0 runs/seed1 runs/seed2 --json | jq .groups", ""),
    ], COMPARE_NOTES))]
    Compare(CompareArgs),

    /// Write what there is to see of a run, or of several, as a page
    #[command(after_help = concat_examples(&[
        ("lowbit report runs/fashion", ""),
        ("lowbit report runs/plain runs/joint -o both.html", ""),
        ("lowbit report runs/fashion --json | jq '.runs[0].images.confusion'", ""),
    ], REPORT_NOTES))]
    Report(ReportArgs),

    /// Show what is in a file of weights, and which network it is
    #[command(after_help = concat_examples(&[
        ("lowbit import resnet18.pth", ""),
        ("lowbit import checkpoint.pth.tar --model resnet50", ""),
        ("lowbit import model.safetensors --recipe my-recipe.toml --json", ""),
    ], IMPORT_NOTES))]
    Import(ImportArgs),

    /// Write the network of a run as a packed integer model, or its weights for other programs
    #[command(after_help = concat_examples(&[
        ("lowbit export runs/mine", ""),
        ("lowbit export runs/mine --checkpoint best --out mine.lowbit", ""),
        ("lowbit export runs/mine --format onnx --opset 21", ""),
        ("lowbit export runs/mine --format qonnx", ""),
        ("lowbit export runs/mine --format safetensors", ""),
    ], EXPORT_NOTES))]
    Export(ExportArgs),

    /// Say what a packed model sees in images
    #[command(after_help = concat_examples(&[
        ("lowbit predict flowers.lowbit rose.jpg tulip.png", ""),
        ("lowbit predict flowers.lowbit rose.jpg --json", ""),
    ], PREDICT_NOTES))]
    Predict(PredictArgs),

    /// Time a packed model, and the same network in full precision beside it
    #[command(after_help = concat_examples(&[
        ("lowbit bench flowers.lowbit", ""),
        ("lowbit bench flowers.lowbit --threads 1 --json", ""),
    ], BENCH_NOTES))]
    Bench(BenchArgs),

    /// Show a run while it trains, here or on another machine
    #[command(after_help = concat_examples(&[
        ("lowbit watch runs/fashion", ""),
        ("lowbit watch runs/fashion --once", ""),
        ("lowbit watch runs/fashion | tee epochs.txt", ""),
    ], WATCH_NOTES))]
    Watch(WatchArgs),

    /// Write what a run has recorded as event files of TensorBoard
    #[command(after_help = concat_examples(&[
        ("lowbit tensorboard runs/fashion", ""),
        ("lowbit tensorboard runs/fashion -o boards/fashion", ""),
    ], TENSORBOARD_NOTES))]
    Tensorboard(TensorboardArgs),

    /// List what this program can train on
    #[command(after_help = concat_examples(&[
        ("lowbit devices", ""),
        ("lowbit devices --json | jq -r '.devices[].name'", ""),
    ], DEVICES_NOTES))]
    Devices(DevicesArgs),

    /// List the recipes that come with lowbit, or show one
    #[command(after_help = concat_examples(&[
        ("lowbit recipes", ""),
        ("lowbit recipes show digits-preresnet8-w2a2 > my-recipe.toml", ""),
    ], ""))]
    Recipes(RecipesArgs),

    /// List, fetch and verify data sets, and look at images of your own
    #[command(after_help = concat_examples(&[
        ("lowbit data list", ""),
        ("lowbit data show flowers --out sheet.png", ""),
        ("lowbit data stats flowers --json", ""),
        ("lowbit data fetch cifar100", ""),
        ("lowbit data verify cifar100 --data-dir /data", ""),
    ], DATA_NOTES))]
    Data(DataArgs),

    /// Print a completion script for a shell
    #[command(after_help = concat_examples(&[
        ("lowbit completions bash > ~/.local/share/bash-completion/completions/lowbit", ""),
        ("lowbit completions zsh > ~/.zfunc/_lowbit", ""),
        ("lowbit completions fish > ~/.config/fish/completions/lowbit.fish", ""),
        ("source <(lowbit completions bash --dynamic)", ""),
    ], ""))]
    Completions(CompletionsArgs),
}

const TRAIN_NOTES: &str = "\
A run directory is never overwritten, and nothing in it is lost: what came
after the checkpoint of --checkpoint is kept in its directory `set-aside`.
Ctrl-C stops after the current batch, whatever it is for, and saves a
checkpoint; a second Ctrl-C aborts at once.

With --json, stdout holds one JSON object. A complete training has `status`
\"complete\", `top1` and `top5` (fractions), `loss`, `best`, `epochs`, `seconds`,
`images_per_second`, `recipe`, `device`, `seed`, `started`, `data`, `origin`
(program and machine), `same_origin` (whether all its processes had the same),
`run_dir` and, if there are any, `reference`, `classes` and `validation`
(`top1`, `top5` and `loss` of the validation images; all others are of the test
images, but `best`, which says by which it was chosen); a training that was stopped
has `status` \"interrupted\", `reason` (\"signal\" or \"time-limit\"), `run_dir`,
`step` and `steps`, or only the first two if it had not begun.";

const EVAL_NOTES: &str = "\
The scores are those of the network that the run evaluates: the moving average
of the weights, if the recipe has one. With the build, on the kind of processor
(its instruction sets) and on the device that the run evaluated with, they equal
what it reported, bit for bit; if they do not, the exit code is 6. Elsewhere
they may differ, which is said.

A packed model is scored by its runtime on the test images of its recipe. With
--json, it has `model`, `recipe`, `n_images`, `top1`, `top5`, `loss`, `same_data`,
`integer_layers`, `float_layers` and, if there are any, `classes`.

Of a run, with --json, stdout holds one JSON object: `top1` and `top5` (fractions),
`loss`, `recipe`, `checkpoint`, `step`, `reported` (the scores of the run at
this checkpoint, or null), `reported_on` and `reported_by` (their device, and
their program and machine, or null), `same_data` (whether the test images are
those of the run, or null), `matches` (or null; null on other images),
`may_differ` (why scores that differ are no mistake, or null), `data` (the test
images), `origin` (this program and machine), `started`, `device`, `run_dir`.";

const INSPECT_NOTES: &str = "\
With --json, stdout holds one JSON object with `recipe` and `plan`; for a run
also `steps` (of the whole training), `result` (or null), `state_sha256` (a
digest over all parameters, quantizer, optimizer and BatchNorm state), `info`,
`processes`, `checkpoints`, `best`, `set_aside`, `checkpoint` and `run_dir`.";

const SWEEP_NOTES: &str = "\
Each combination of the values is a row, each seed of it a run in DIR/cells. The
same command after a stop goes on where it was; what is complete is not trained
again. DIR then holds table.md, table.json and the figures accuracy, differences
and curves, as .svg and .png: means of the last epoch with 95 % intervals by
Student's t, and differences from the first row, paired by seed. To choose among rows, hold images back for
validation (`--set data.validation=0.1`): nothing may be chosen by test images.

With --json, stdout holds one JSON object with `title`, `device`, `lowbit`,
`machines`, `cells` (rows, each with `method` (its settings), `weight_bits`,
`act_bits`, `seeds`, `missing`, `top1_mean`, `top1_std`, `top1_interval`, `top1`
and `state_sha256` by seed, `epochs`, `seconds` and, if there are any,
`validation_mean` and `validation_interval`), `comparisons` (each row with the
first: `difference`, `interval`, `p`, and `p_holm`, corrected for their number),
`failed` and `stopped`.";

const SENSITIVITY_NOTES: &str = "\
Images are those that the run holds back for validation (`data.validation`); of
a run that holds none back, training images without augmentation. Test images
are never used: nothing may be chosen by them.

A layer that is not quantized keeps the range of its quantizers and leaves out
their rounding. With --bits, every layer between the first and the last is also
tried at these bits, weights and input alike, one layer at a time, without
training and with the rest of the network as it is. With --budget, the bits are
chosen for which these layers together add the least to the loss within the
budget of the whole network; `w3a3` is what it takes with 3 bits in all these
layers. With --by gradient, each layer computes with two bit widths at once, and
the gradient of the loss by their shares moves bits from layer to layer; the
weights stay as they are. The recipe that --out writes is trained as any other;
`--set init=RUN` begins with the weights of the run.

With --json, stdout holds one JSON object with `recipe`, `checkpoint`, `network`,
`phase`, `images` (validation or training), `n_images`, `all` and `none` (scores
with all and with no layer quantized), `layers` (each with `layer`,
`weight_bits`, `act_bits`, `bit_operations`, `packed_bytes`, `top1_only`,
`loss_only`, `top1_without`, `loss_without`, and `trials` at other bits),
`device`, `run_dir` and, with --budget, `plan` (`bits`, `budget`, `cost` and, by
loss, `loss_increase`) and `file`. By gradient, only the last four are there.";

const LIST_NOTES: &str = "\
A run is `training` while a process trains in it, `stopped` or `finished`. One
that cannot be read is `damaged`, with the reason below the table, and ends
nothing. The best accuracy is that of the last phase, chosen by the images
that it is on.

With --json, stdout holds one JSON object: `dir`, `runs` in the order that was
asked for, and `unread` (directories that could not be looked into). A run has
`name`, `run_dir`, `state`, `problem` (if it is damaged), `recipe`, `network`,
`bits`, `method`, `strategies`, `seed`, `epochs_done`, `epochs`, `test`
(`loss`, `top1` and `top5`, or null), `validation` (if there is some), `best`
(`top1` and `images`, or null), `seconds` and `started`.";

const COMPARE_NOTES: &str = "\
With --json, stdout holds one JSON object: `runs` (as in `lowbit list --json`,
and `cost`: `n_parameters`, `packed_bytes`, `fp32_bytes`, `bit_operations`,
`macs`), `recipe` (each `key` in which recipes differ, with its `values` in
TOML), `layers` (each `path` whose precision differs, with its `bits`: of
weights and input, or null) and `groups` (finished runs whose recipes are
equal but for the seed: `runs`, by their place, and `top1`, `loss` and
`seconds`, each with `mean`, `interval`, which is half of the 95 % interval by
Student's t, and `n`).";

const REPORT_NOTES: &str = "\
The page is one file that loads nothing. For weights and test images, the
newest checkpoint is read, and run on all test images; inputs of layers are
looked at on 64 images at most. Where the images are not to be had, the page
says so and has all else. A file that is there is replaced only if it is a
report.

With --json, the same facts are written as JSON instead, to stdout or to the
file of --out: `schema`, `runs`, `comparison` (as by `lowbit compare --json`,
or null), `made` and `made_by`. A run has what it has in `lowbit list --json`,
and `resolved_recipe`, `info`, `processes`, `cost`, `layers` (as in `plan` of
`lowbit inspect --json`, and `sensitivity`, `weights` and `input`, or null),
`networks`, `reference`, `phases`, `metrics`, `timing`, `warnings`, `images`
(or null: `checkpoint`, `phase`, `n_images`, `n_activation_images`, `top1`,
`confusion` with a row for each class and a column for what it was taken for,
`n_undecided`, `classes`, `mistakes`) and `notes` (what is missing, and why).";

const IMPORT_NOTES: &str = "\
Files of PyTorch (ZIP, legacy, TAR) and safetensors are read by their content;
nothing in them is executed. A training begins with one by `--set init=FILE`.

With --json, stdout holds one JSON object: `file`, `container`, `sha256`,
`n_tensors`, `n_values`, `tensors` (each with `name`, `dtype`, `shape` and
`becomes`, its path in the network or null), `fits` (networks of lowbit that it
is of, each with `model`, `input` and `classes`), `network` (the one that
`becomes` is for), `new_classifier` (or null), `left_out`.";

const EXPORT_NOTES: &str = "\
A packed model has the codes of the network that the run evaluates, and what it
takes to run them: `lowbit predict`, `lowbit eval` and `lowbit bench` read it, and
the crate lowbit-runtime. Before it is written, it is run on the test images beside
the network of the run; if their logits differ, that is exit code 6, and there is no
file. At most 10,000 images are compared.

An ONNX file is of the same network: its weights are integers, normalizations are
part of the convolutions. ONNX Runtime rounds in other places, so that a code may
differ; what is compared before it is written is the packed model.

A QONNX file is of the same network for FINN, hls4ml and the tools of qonnx, for
one image at a time. `Quant` gives weights and inputs of layers their codes, or
`MultiThreshold` does, where `Quant` would round an input to others. The name of
the file ends in .qonnx.onnx.

A file of safetensors has the weights by torchvision's names and in full precision.
The quantizers of the run are left out, which is said: what reads the file computes
in full precision.

With --json, stdout holds one JSON object. Of a model: `file`, `format`,
`run_dir`, `checkpoint`, `network`, `bytes`, `bytes_fp32` (of the same network in
full precision), `verified` and then `n_images`, `max_logit_difference`, `same_top1`, `top1`,
`loss`, `integer_layers`, `float_layers` and `layers`, normalizations too (`path`,
`weight_bits`, `input_bits`, `bytes` in a packed file, of these `bytes_weights`,
`bytes_scales`, `bytes_biases` and `bytes_norms`, `bytes_fp32`, and `bytes_int8` in
ONNX with weights of 8 bits). Of safetensors: `file`, `format`, `run_dir`,
`checkpoint`, `network`, `n_tensors`, `n_bytes`, `n_left_out`.";

const PREDICT_NOTES: &str = "\
An image is brought to the size of the network as the test images of its training
were: its shorter side is resized, and the middle is taken.

With --json, stdout holds one JSON object with `model` and `images`, one for each
file: `file` and `classes`, the five of highest probability or all if they are fewer
(`index`, `name` if it has one, `probability`, `logit`).";

const BENCH_NOTES: &str = "\
The model and the network in full precision run in turns, so that both have the same
machine. Times are medians, with the lowest and the highest.

With --json, stdout holds one JSON object: `model`, `threads`, `batch`, `rounds`,
`load_ms`, `latency_ms` and `fp32_latency_ms` (`median`, `min`, `max`), `ratio` (of the
medians), `images_per_second`, `layers` (`path`, `operation`, `milliseconds`, the
median) and `origin`.";

const WATCH_NOTES: &str = "\
It reads the files of the run, changes none, and needs nothing of the process
that trains. On a terminal: q, Esc or Ctrl-C leave, the arrows choose curves
and layers. Where the terminal shows lines only (TERM=dumb), or in a pipe,
there is a line for each epoch, until the training has ended.";

const TENSORBOARD_NOTES: &str = "\
Scalars are those of metrics.jsonl and timing.jsonl, by the number of steps;
histograms are of the weights in the checkpoints that are there, and, where an
event file of lowbit was there before, those that it had; texts are the recipe
and the plan. The new file takes the place of the one before; other files stay.
`lowbit train --tensorboard` writes the same while it trains.

With --json, stdout holds one JSON object: `run_dir`, `out`, `file`, `epochs`
and `histograms` (how many there are).";

const DEVICES_NOTES: &str = "\
With --json, stdout holds one JSON object: `devices` (each with `name`, as
--device takes it, `kind`, `default` and, as far as known, `model`, `memory` in
bytes, `threads` and `instruction_sets`) and `not_compiled_in`.";

const DATA_NOTES: &str = "\
Data sets are looked for in DIR/NAME and DIR of --data-dir, then in
$XDG_DATA_HOME/lowbit/NAME (~/.local/share/lowbit/NAME), then in
/usr/share/datasets/NAME. What `lowbit data fetch` downloads goes to DIR/NAME of
--data-dir, or to $XDG_DATA_HOME/lowbit/NAME. `lowbit data verify` ends with
exit code 3 if no file is there, and with 6 if one is missing, damaged or not
the published one.";

#[derive(Args)]
#[command(group = ArgGroup::new("resuming").args(["resume", "or_resume"]))]
pub struct TrainArgs {
    /// Recipe: a name from `lowbit recipes`, or a path that has a slash or ends in .toml [default:
    /// digits-preresnet8-w2a2]
    #[arg(add = ArgValueCompleter::new(recipes), value_name = "RECIPE | FILE.toml", value_hint = ValueHint::FilePath)]
    pub recipe: Option<String>,

    /// New run directory [default: runs/NAME of the recipe, or runs/NAME-2, ...]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, value_parser = path())]
    pub out: Option<PathBuf>,

    #[command(flatten)]
    pub set: SetArgs,

    /// Go on with the run in DIR, from its newest checkpoint
    #[arg(
        add = ArgValueCompleter::new(runs),
        long, value_name = "DIR", value_hint = ValueHint::DirPath, value_parser = path(),
        conflicts_with_all = ["recipe", "out", "set"]
    )]
    pub resume: Option<PathBuf>,

    /// Resume from this checkpoint, or from the `best`; what came later is set aside in the run
    #[arg(long, value_name = "NAME", requires = "resume")]
    pub checkpoint: Option<String>,

    /// Go on with the run in --out if it is there; its recipe must be the one given
    #[arg(long, requires = "out", conflicts_with = "resume")]
    pub or_resume: bool,

    /// Pass over checkpoints that nothing can go on from, such as damaged ones
    #[arg(long, requires = "resuming", conflicts_with = "checkpoint")]
    pub or_previous: bool,

    /// Pass over images of a folder that cannot be read, instead of ending there: sets data.skip_unreadable=true
    #[arg(long, conflicts_with = "resume")]
    pub skip_unreadable: bool,

    /// Stop after so long, as in 90m or 1h30m, as Ctrl-C does: with a checkpoint, and exit code 130
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    pub time_limit: Option<Duration>,

    /// How several processes send one another their gradients [default: fp32, or as the run before]
    #[arg(long, value_name = "TYPE", value_parser = clap::builder::PossibleValuesParser::new(["fp32", "bf16"]))]
    pub exchange: Option<String>,

    /// Write event files of TensorBoard into the run while it trains; a run that has them goes on with them
    #[arg(long)]
    pub tensorboard: bool,

    /// Train even if the memory is too small by the estimate, which is a warning then
    #[arg(long)]
    pub ignore_memory: bool,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub data_dir: DataDirArgs,

    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Args)]
pub struct EvalArgs {
    /// Run directory, or a packed model
    #[arg(add = ArgValueCompleter::new(runs_and_models), value_name = "DIR | MODEL", value_hint = ValueHint::AnyPath, value_parser = path())]
    pub run: PathBuf,

    /// Checkpoint, or `best` for that of the highest accuracy on the validation images, or, if there are none, on the test
    /// images [default: the newest]
    #[arg(long, value_name = "NAME")]
    pub checkpoint: Option<String>,

    /// Network of a joint training: teacher, student2, ... [default: student]
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,

    /// Write the images of a packed model, normalized, and their logits to a new file of safetensors
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = path())]
    pub dump: Option<PathBuf>,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub data_dir: DataDirArgs,

    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Args)]
pub struct SweepArgs {
    /// A recipe, as for `lowbit train`
    #[arg(add = ArgValueCompleter::new(recipes), value_name = "RECIPE | FILE.toml", value_hint = ValueHint::FilePath)]
    pub recipe: String,

    /// A setting and its values, as in train.epochs=10,20; one value is for all
    #[arg(long, value_name = "KEY=VALUE,VALUE,...")]
    pub set: Vec<String>,

    /// Train each with the seeds 0 to N-1
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,

    /// Directory of the runs and the report [default: sweeps/NAME of the recipe]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, value_parser = path())]
    pub out: Option<PathBuf>,

    /// Train this many at a time, each on its share of the cores
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub parallel: u16,

    /// Stop after this time, as in 45m or 8h; the same command goes on later
    #[arg(long, value_name = "TIME", value_parser = lowbit_sweep::parse_duration)]
    pub time_limit: Option<Duration>,

    /// Show what would be trained, with the time it would take by a short timing
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub data_dir: DataDirArgs,

    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Args)]
pub struct SensitivityArgs {
    /// Run directory
    #[arg(add = ArgValueCompleter::new(runs), value_name = "RUN", value_hint = ValueHint::DirPath, value_parser = path())]
    pub run: PathBuf,

    /// Checkpoint, or `best` [default: the newest]
    #[arg(long, value_name = "NAME")]
    pub checkpoint: Option<String>,

    /// Network of a joint training: teacher, student2, ... [default: student]
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,

    /// Score the network on at most so many images
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..).map(|n| n as usize))]
    pub images: usize,

    /// Also try each layer at these bits, as in 2,4,8 [default with --budget: 2,3,4,6,8]
    #[arg(long, value_name = "BITS", value_delimiter = ',', value_parser = bit_width)]
    pub bits: Vec<BitWidth>,

    /// Method of these bits [default: that of the recipe]
    #[arg(long, value_name = "METHOD", value_parser = methods())]
    pub method: Option<Method>,

    /// Choose bits for each layer that together take no more than this: uniform bits as in w3a3, or a number as in 1.5M
    #[arg(long, value_name = "BUDGET", value_parser = parse_budget)]
    pub budget: Option<Budget>,

    /// What the budget counts
    #[arg(long, value_enum, default_value = "bit-ops", requires = "budget")]
    pub of: BudgetOf,

    /// How bits are chosen
    #[arg(long, value_enum, default_value = "loss", requires = "budget")]
    pub by: SearchBy,

    /// Steps of a choice by gradient, of 256 images each [default: 200]
    #[arg(long, value_name = "N", requires = "budget", value_parser = clap::value_parser!(u64).range(1..=1_000_000).map(|n| n as usize))]
    pub steps: Option<usize>,

    /// Write the recipe of these bits to a new file
    #[arg(long, value_name = "FILE.toml", requires = "budget", value_hint = ValueHint::FilePath, value_parser = path())]
    pub out: Option<PathBuf>,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub data_dir: DataDirArgs,

    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BudgetOf {
    /// Bit operations for one image
    BitOps,
    /// Bytes of the packed network
    Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SearchBy {
    /// By the loss with each layer at each bit width, one layer at a time
    Loss,
    /// By gradient, all layers at once
    Gradient,
}

fn bit_width(text: &str) -> Result<BitWidth, String> {
    let bits = text.trim().parse().ok().and_then(|bits: u32| BitWidth::new(bits).ok());
    bits.ok_or_else(|| "expected bit widths from 1 to 8, as in 2,4,8".into())
}

/// Reads the name of a method, and lets shells complete it.
fn methods() -> impl TypedValueParser<Value = Method> {
    PossibleValuesParser::new(Method::ALL.iter().map(|method| method.name())).map(|name| {
        let known = Method::ALL.iter().find(|known| known.name() == name);
        *known.expect("invariant: the name is one of the possible values")
    })
}

#[derive(Args)]
pub struct InspectArgs {
    /// Run directory, or a recipe as for `lowbit train`
    #[arg(add = ArgValueCompleter::new(runs_and_recipes), value_name = "DIR | RECIPE | FILE.toml", value_hint = ValueHint::AnyPath)]
    pub target: String,

    /// Checkpoint of the run, or `best` [default: the newest]
    #[arg(long, value_name = "NAME", conflicts_with = "set")]
    pub checkpoint: Option<String>,

    #[command(flatten)]
    pub set: SetArgs,

    #[command(flatten)]
    pub data_dir: DataDirArgs,

    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Args)]
pub struct ListArgs {
    /// Directory
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath, value_parser = path(), default_value = "runs")]
    pub dir: PathBuf,

    /// Order of the runs, the lowest or earliest first; those without a value are last
    #[arg(long, value_name = "KEY", value_enum, default_value = "name")]
    pub sort: SortKey,

    /// The highest or latest first
    #[arg(long)]
    pub reverse: bool,

    #[command(flatten)]
    pub json: JsonArgs,
}

/// By what runs are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SortKey {
    Name,
    Network,
    Bits,
    Method,
    Epochs,
    State,
    Top1,
    Best,
    Seconds,
    Started,
}

#[derive(Args)]
pub struct CompareArgs {
    /// Run directories
    #[arg(add = ArgValueCompleter::new(runs), value_name = "DIR", value_hint = ValueHint::DirPath, value_parser = path(), num_args = 2.., required = true)]
    pub runs: Vec<PathBuf>,

    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Args)]
pub struct ReportArgs {
    /// Run directories
    #[arg(add = ArgValueCompleter::new(runs), value_name = "DIR", value_hint = ValueHint::DirPath, value_parser = path(), required = true)]
    pub runs: Vec<PathBuf>,

    /// The page, or with --json the data [default: report.html; with --json, stdout]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = path())]
    pub out: Option<PathBuf>,

    /// Look at no image: no confusions, mistakes and inputs of layers
    #[arg(long)]
    pub no_images: bool,

    /// Also measure what the bits of each layer cost, as `lowbit sensitivity` does: two passes over 2000 images a layer
    #[arg(long, conflicts_with = "no_images")]
    pub sensitivity: bool,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub data_dir: DataDirArgs,

    /// Write the same facts as one line of JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct ImportArgs {
    /// File of weights
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = path())]
    pub file: PathBuf,

    /// Show what this network would take of it [default: the first that it fits]
    #[arg(long, value_name = "NAME", value_parser = models(), conflicts_with = "recipe")]
    pub model: Option<ModelConfig>,

    /// Show what the network of this recipe would take of it
    #[arg(long, value_name = "RECIPE | FILE.toml", value_hint = ValueHint::FilePath)]
    pub recipe: Option<String>,

    /// Change that recipe: a dotted key and a TOML value; may be repeated
    #[arg(long, value_name = "KEY=VALUE", requires = "recipe")]
    pub set: Vec<String>,

    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Args)]
pub struct ExportArgs {
    /// Run directory
    #[arg(add = ArgValueCompleter::new(runs), value_name = "DIR", value_hint = ValueHint::DirPath, value_parser = path())]
    pub run: PathBuf,

    /// Format of the file [default: by the ending of --out, else packed]
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub format: Option<ExportFormat>,

    /// New file [default: NAME of the recipe with the ending of the format, in the current directory]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = path())]
    pub out: Option<PathBuf>,

    /// Checkpoint, or `best` for that of the highest test accuracy [default: the newest]
    #[arg(long, value_name = "NAME")]
    pub checkpoint: Option<String>,

    /// Network of a joint training: teacher, student2, ... [default: student]
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,

    /// Version of ONNX's operators for --format onnx: 13 for old programs, 21 stores 4 bits, 25 also 2 bits
    #[arg(long, value_name = "N", value_parser = ["13", "21", "25"], default_value = "25")]
    pub opset: String,

    /// Write a model without running it on the test images first
    #[arg(long)]
    pub no_verify: bool,

    #[command(flatten)]
    pub data_dir: DataDirArgs,

    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// Integer weights and all that it takes to run them, for `lowbit predict` and the crate lowbit-runtime
    Packed,
    /// For ONNX Runtime and other programs: integer weights, activations between QuantizeLinear and DequantizeLinear
    Onnx,
    /// For FINN, hls4ml and other programs that read QONNX: weights and activations of any number of bits
    Qonnx,
    /// Weights in full precision by torchvision's names, for other programs
    Safetensors,
}

#[derive(Args)]
pub struct PredictArgs {
    /// Packed model, as `lowbit export` writes it
    #[arg(value_name = "MODEL", value_hint = ValueHint::FilePath, value_parser = path())]
    pub model: PathBuf,

    /// PNG or JPEG files
    #[arg(value_name = "IMAGE", required = true, value_hint = ValueHint::FilePath, value_parser = path())]
    pub images: Vec<PathBuf>,

    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Args)]
pub struct BenchArgs {
    /// Packed model, as `lowbit export` writes it
    #[arg(value_name = "MODEL", value_hint = ValueHint::FilePath, value_parser = path())]
    pub model: PathBuf,

    /// Threads that compute [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,

    /// Images at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: u32,

    /// Rounds: each runs the model and the network in full precision once
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rounds: u32,

    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Args)]
pub struct WatchArgs {
    /// Run directory
    #[arg(add = ArgValueCompleter::new(runs), value_name = "DIR", value_hint = ValueHint::DirPath, value_parser = path())]
    pub run: PathBuf,

    /// Print how the run is now, and end
    #[arg(long)]
    pub once: bool,
}

#[derive(Args)]
pub struct TensorboardArgs {
    /// Run directory
    #[arg(add = ArgValueCompleter::new(runs), value_name = "DIR", value_hint = ValueHint::DirPath, value_parser = path())]
    pub run: PathBuf,

    /// Directory of several runs: the event file is in one of the run's name there [default: `tensorboard` in the run]
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath, value_parser = path())]
    pub out: Option<PathBuf>,

    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Args)]
pub struct DevicesArgs {
    #[command(flatten)]
    pub json: JsonArgs,
}

#[derive(Args)]
pub struct RecipesArgs {
    #[command(subcommand)]
    pub command: Option<RecipesCommand>,

    #[command(flatten)]
    pub json: GlobalJsonArgs,
}

#[derive(Subcommand)]
pub enum RecipesCommand {
    /// List all recipes (what `lowbit recipes` does)
    List,
    /// Print all of a recipe, with every default and what it extends
    Show {
        /// Name of the recipe, or path of a TOML file
        name: String,
    },
}

#[derive(Args)]
pub struct DataArgs {
    #[command(subcommand)]
    pub command: DataCommand,

    /// Where data sets are looked for first, and fetched to
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, value_parser = path(), global = true)]
    pub data_dir: Option<PathBuf>,

    #[command(flatten)]
    pub json: GlobalJsonArgs,
}

#[derive(Subcommand)]
pub enum DataCommand {
    /// List all data sets and where each was found
    List,
    /// Download a data set; what is there already is kept
    Fetch {
        /// Data set
        #[arg(value_parser = dataset_names())]
        name: DatasetName,
    },
    /// Compare the files of a data set with the published checksums, and read them; or read all images of a folder
    Verify {
        /// Data set, or a folder of your own images; a name of a data set is not taken for a folder
        #[arg(value_name = "NAME | DIR", value_hint = ValueHint::DirPath, value_parser = path().try_map(NameOrDir::new))]
        of: NameOrDir,
        #[command(flatten)]
        layout: LayoutArgs,
    },
    /// Look for the images in a folder of your own, and keep an index of them in the cache
    Index {
        /// Folder with train/CLASS/* and val/CLASS/*, or with CLASS/*
        #[arg(value_hint = ValueHint::DirPath, value_parser = path())]
        dir: PathBuf,
        #[command(flatten)]
        layout: LayoutArgs,
    },
    /// Show what is in a folder of your own images: how many of each class, and a sheet of them
    Show {
        /// Folder of images
        #[arg(value_hint = ValueHint::DirPath, value_parser = path())]
        dir: PathBuf,
        /// Write a sheet of images of all classes to this PNG file
        #[arg(long, value_name = "FILE.png", value_hint = ValueHint::FilePath, value_parser = path())]
        out: Option<PathBuf>,
        /// Vary the images of the sheet as this recipe does in training
        #[arg(long, value_name = "RECIPE | FILE.toml", value_hint = ValueHint::FilePath, requires = "out")]
        recipe: Option<String>,
        #[command(flatten)]
        set: SetArgs,
        #[command(flatten)]
        layout: LayoutArgs,
    },
    /// Pack the images of a folder into tar archives, which are read faster where files are many; what was stopped goes on
    Pack {
        /// Folder of images
        #[arg(value_name = "SRC", value_hint = ValueHint::DirPath, value_parser = path())]
        from: PathBuf,
        /// New folder, or one of a packing that was stopped
        #[arg(value_name = "DST", value_hint = ValueHint::DirPath, value_parser = path())]
        to: PathBuf,
        /// Bring the shorter side of larger images to so many pixels, and write them as JPEG
        #[arg(long, value_name = "SIDE", value_parser = clap::value_parser!(u32).range(1..=4096))]
        resize: Option<u32>,
        /// Quality of the JPEG files that are made
        #[arg(long, value_name = "1..100", default_value_t = 95, requires = "resize",
            value_parser = clap::value_parser!(u8).range(1..=100))]
        quality: u8,
        /// Images of each archive
        #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
        per_shard: u32,
        /// Decode every image, and leave out what cannot be decoded, instead of ending there: it is listed in DST/pack.json
        #[arg(long)]
        skip_unreadable: bool,
        #[command(flatten)]
        layout: LayoutArgs,
    },
    /// Measure the images of a folder of your own: their sizes, and mean and deviation for data.normalization
    Stats {
        /// Folder of images
        #[arg(value_hint = ValueHint::DirPath, value_parser = path())]
        dir: PathBuf,
        #[command(flatten)]
        layout: LayoutArgs,
    },
}

/// How the images of a folder are laid out.
#[derive(Args, Clone, Copy, Debug)]
pub struct LayoutArgs {
    /// The folder is ILSVRC-2012 as it is published, for data.dataset="imagenet"
    #[arg(long)]
    pub imagenet: bool,
}

/// What `lowbit data verify` looks at.
#[derive(Clone, Debug)]
pub enum NameOrDir {
    Name(DatasetName),
    Dir(PathBuf),
}

impl NameOrDir {
    /// A name of a data set, or else a path: one that is there, or has more than a name.
    fn new(path: PathBuf) -> Result<Self, DataError> {
        match path.to_str().map(str::parse) {
            Some(Ok(name)) => Ok(Self::Name(name)),
            Some(Err(error)) if path.components().count() == 1 && !path.exists() => Err(error),
            _ => Ok(Self::Dir(path)),
        }
    }
}

#[derive(Args)]
pub struct CompletionsArgs {
    /// Shell
    pub shell: Shell,

    /// Complete names of runs and recipes too: the script asks lowbit at each Tab, and is to be printed anew with another lowbit
    #[arg(long)]
    pub dynamic: bool,
}

#[derive(Args)]
pub struct SetArgs {
    /// Change the recipe: a dotted key and a TOML value, as in train.epochs=3; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Args)]
pub struct DeviceArgs {
    /// Device: flex, ndarray, wgpu, or wgpu:N for the N-th GPU from 0 [default: that of the run, else the fastest that
    /// is compiled in]
    #[arg(long, value_name = "DEVICE", value_parser = DeviceParser, hide_possible_values = true)]
    pub device: Option<DeviceName>,
}

#[derive(Args)]
pub struct DataDirArgs {
    /// Where data sets are looked for first: DIR/NAME, then DIR
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, value_parser = path())]
    pub data_dir: Option<PathBuf>,
}

impl DataDirArgs {
    pub fn locations(&self) -> Locations {
        Locations::default_with(self.data_dir.clone())
    }
}

#[derive(Args)]
pub struct JsonArgs {
    /// Print the result as one line of JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct GlobalJsonArgs {
    /// Print the result as one line of JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// Reads the name of a device, and lets shells complete it, though there are more names.
#[derive(Clone)]
struct DeviceParser;

impl TypedValueParser for DeviceParser {
    type Value = DeviceName;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<DeviceName, clap::Error> {
        DeviceName::from_str.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(DeviceName::names().map(PossibleValue::new)))
    }
}

/// Reads a path; one that begins with `~` is refused, of which a directory would be made.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| expect_no_tilde(&path).map(|()| path))
}

/// Reads how long a training may take.
fn time_limit(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(limit) if limit >= Duration::from_secs(1) => Ok(limit),
        Ok(_) => Err("expected a second or more".into()),
        Err(_) => Err("expected a time with its unit, as in 45s, 90m or 1h30m".into()),
    }
}

type MakeModel = fn() -> ModelConfig;

/// The networks that `lowbit import` knows by name: torchvision's names, and those made of them.
const MODELS: [(&str, MakeModel); 11] = [
    ("resnet18", || ModelConfig::imagenet(Family::ResNet, 18)),
    ("resnet34", || ModelConfig::imagenet(Family::ResNet, 34)),
    ("resnet50", || ModelConfig::imagenet(Family::ResNet, 50)),
    ("resnet101", || ModelConfig::imagenet(Family::ResNet, 101)),
    ("preresnet18", || ModelConfig::imagenet(Family::PreResNet, 18)),
    ("preresnet34", || ModelConfig::imagenet(Family::PreResNet, 34)),
    ("preresnet50", || ModelConfig::imagenet(Family::PreResNet, 50)),
    ("preresnet101", || ModelConfig::imagenet(Family::PreResNet, 101)),
    ("alexnet", || ModelConfig::alexnet(Layout::ImageNet).without_norm()),
    ("mobilenet_v2", || ModelConfig::mobilenet_v2(Layout::ImageNet)),
    ("alexnet-bn", || ModelConfig::alexnet(Layout::ImageNet)),
];

/// Reads the name of a network, and lets shells complete it.
fn models() -> impl TypedValueParser<Value = ModelConfig> {
    PossibleValuesParser::new(MODELS.map(|(name, _)| name)).map(|name| {
        let known = MODELS.iter().find(|(known, _)| *known == name);
        (known.expect("invariant: the name is one of the possible values").1)()
    })
}

/// Reads the name of a data set, and lets shells complete it.
fn dataset_names() -> impl TypedValueParser<Value = DatasetName> {
    PossibleValuesParser::new(DatasetName::ALL.iter().map(|name| name.as_str()))
        .try_map(|name| name.parse::<DatasetName>())
}

/// The end of a help text: `examples` with an explanation each, or none, and `notes`.
fn concat_examples(examples: &[(&str, &str)], notes: &str) -> String {
    let mut text = String::from("Examples:\n");
    let width = examples.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    for (command, explanation) in examples {
        let line = format!("  {command:<width$}  {explanation}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if !notes.is_empty() {
        text.push('\n');
        text.push_str(notes);
    }
    text.trim_end().into()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
