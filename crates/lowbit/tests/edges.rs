//! What lies around the program: outputs that cannot be written, limits of the process, terminals, and what newcomers type.
//!
//! Whatever it is, there is one line that says what to do and an exit code of the table, never a panic.

#![cfg(unix)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use common::{LOWBIT, Outcome, Sandbox, TINY};

/// The exit codes of `lowbit --help`.
const LISTED: [i32; 8] = [0, 1, 2, 3, 4, 5, 6, 130];

/// A tiny training, as a text for a shell.
fn tiny() -> String {
    format!("train -q {}", TINY.join(" "))
}

/// Runs `script` in a shell of its own; in it, `$L` is the program.
fn shell(sandbox: &Sandbox, script: &str) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(sandbox.path("."));
    command.env("L", LOWBIT).env("HOME", sandbox.path("home")).env_remove("RUST_BACKTRACE");
    command.stdin(Stdio::null()).output().unwrap()
}

/// Asserts that a program has ended as it says it does, with at most a line on stderr besides its warnings.
fn expect_orderly(what: &str, outcome: &Outcome) {
    let Outcome { code, stderr, .. } = outcome;
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("warning: ")).collect();
    assert!(code.is_some_and(|code| LISTED.contains(&code)), "{what}: {code:?}: {stderr}");
    let is_bad = ["panicked", "backtrace", "bug"].iter().any(|word| stderr.contains(word));
    assert!(!is_bad && lines.len() <= 1, "{what}: {stderr}");
    let has_error = lines.first().is_some_and(|line| line.starts_with("error: "));
    assert_eq!(*code != Some(0), has_error, "{what}: {stderr}");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let sandbox = Sandbox::new();
    let commands = [
        "--help",
        "-h",
        "help train",
        "train --help",
        "data fetch --help",
        "--version",
        "--version --verbose",
        "--version --json",
        "completions bash",
        "recipes",
        "recipes --json",
        "recipes show digits-preresnet8-w2a2",
        "inspect digits-preresnet8-w2a2",
        "data list",
        &tiny(),
        "eval runs/digits-preresnet8-w2a2",
        "inspect runs/digits-preresnet8-w2a2 --json",
    ];
    for command in commands {
        let outcome = Outcome::of(&shell(&sandbox, &format!("$L {command} >/dev/full")));
        expect_orderly(command, &outcome);
        assert_eq!(outcome.code, Some(1), "{command}");
        assert!(outcome.stderr.contains("failed to write the result: "), "{command}: {}", outcome.stderr);
    }
}

#[test]
fn streams_that_are_closed() {
    let sandbox = Sandbox::new();
    for command in ["--help", "--version", "recipes", "completions zsh", "no-such-command", &tiny()] {
        let code = Outcome::of(&shell(&sandbox, &format!("$L {command}"))).code;
        for closed in [">&-", "2>&-", "<&-", ">&- 2>&- <&-", "2>/dev/full"] {
            let outcome = Outcome::of(&shell(&sandbox, &format!("$L {command} {closed}")));
            assert_eq!(outcome.code, code, "{command} {closed}: {}", outcome.stderr);
        }
        // A reader that leaves has what it wanted.
        let outcome = Outcome::of(&shell(
            &sandbox,
            &format!("{{ $L {command}; echo code $? >&2; }} 2>err | head -c 1; cat err"),
        ));
        let expected = format!("code {}\n", code.unwrap());
        assert!(outcome.stdout.ends_with(&expected), "{command}: {}", outcome.stdout);
        assert!(!outcome.stdout.contains("panicked"), "{command}: {}", outcome.stdout);
    }
}

#[test]
fn few_file_descriptors() {
    let sandbox = Sandbox::new();
    let mut codes = Vec::new();
    // With fewer, its libraries cannot be loaded.
    for n in 4..=16 {
        let outcome = Outcome::of(&shell(&sandbox, &format!("ulimit -n {n}; exec $L {} --out n{n}", tiny())));
        expect_orderly(&format!("ulimit -n {n}"), &outcome);
        codes.push(outcome.code);
        if outcome.code == Some(4) {
            let Outcome { stderr, .. } = outcome;
            assert!(stderr.contains("allow more (ulimit -n)"), "ulimit -n {n}: {stderr}");
            // What could not even be looked into is not left behind; what is left is no obstacle.
            let is_left = sandbox.path(&format!("n{n}")).exists();
            assert!(!is_left || !stderr.contains("open directory"), "ulimit -n {n}: {stderr}");
            let again = Outcome::of(&shell(&sandbox, &format!("$L {} --out n{n} --or-resume", tiny())));
            assert_eq!(again.code, Some(0), "after ulimit -n {n}: {}", again.stderr);
        }
    }
    assert_eq!(codes.last(), Some(&Some(0)), "{codes:?}");
    assert!(codes.contains(&Some(4)), "{codes:?}");
}

#[test]
fn small_files_only() {
    let sandbox = Sandbox::new();
    let outcome = Outcome::of(&shell(&sandbox, &format!("ulimit -f 200; exec $L {} --out run", tiny())));
    expect_orderly("ulimit -f", &outcome);
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("ulimit -f"), "{}", outcome.stderr);
}

#[test]
fn small_stacks() {
    let sandbox = Sandbox::new();
    for kib in [64, 128, 256] {
        for command in ["--help".to_string(), format!("{} --out run-{kib}", tiny())] {
            let outcome = Outcome::of(&shell(&sandbox, &format!("ulimit -s {kib}; exec $L {command}")));
            assert_eq!(outcome.code, Some(0), "ulimit -s {kib}, {command}: {}", outcome.stderr);
        }
    }
}

/// Little memory: it trains, or says that there is too little.
#[test]
fn little_memory() {
    let sandbox = Sandbox::new();
    for mib in (100..=200).step_by(20) {
        let kib = mib * 1024;
        let outcome =
            Outcome::of(&shell(&sandbox, &format!("ulimit -v {kib}; exec $L {} --out v{kib}", tiny())));
        expect_orderly(&format!("ulimit -v {kib}"), &outcome);
    }
}

/// A memory limit that nothing fits in is told in one line: before the first step where the estimate shows it, else where it is
/// reached.
#[test]
fn more_memory_than_there_is() {
    let sandbox = Sandbox::new();
    let large = "--set model.width=64 --set data.train_limit=1024 --set data.batch_size=1024";
    let outcome = Outcome::of(&shell(&sandbox, &format!("ulimit -v 400000; exec $L {} {large}", tiny())));
    expect_orderly("large batches", &outcome);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("out of memory: batches of 1024 images take about "),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stderr.contains("leaves 391 MiB (ulimit -v)"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("; --ignore-memory tries it all the same"), "{}", outcome.stderr);
    assert!(!sandbox.path("runs").exists(), "what cannot begin leaves a run");
    // Whoever knows better has it tried; here it is as the estimate says.
    let tried = format!("ulimit -v 400000; exec $L {} {large} --ignore-memory", tiny());
    let outcome = Outcome::of(&shell(&sandbox, &tried));
    expect_orderly("large batches, tried", &outcome);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("it is tried all the same, by --ignore-memory"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(" bytes more are unavailable; "), "{}", outcome.stderr);
    // A complete run is trained again from an earlier checkpoint, and shows what that takes.
    let saved = ["train", "-q", "--out", "whole", "--set", "checkpoint.every_steps=2"];
    let whole = sandbox.run(&[&saved[..], &TINY].concat());
    assert_eq!(whole.code, Some(0), "{}", whole.stderr);
    let again = sandbox.run(&["train", "--resume", "whole", "--checkpoint", "2"]);
    assert!(again.code == Some(0) && again.stderr.contains("memory  about "), "{}", again.stderr);
    // Near the estimate, of about 190 MiB, it is tried: it was no more than one.
    let near = "--set model.width=4 --set data.train_limit=700 --set data.batch_size=700";
    let outcome = Outcome::of(&shell(&sandbox, &format!("ulimit -v 145000; exec $L {} {near}", tiny())));
    expect_orderly("large batches", &outcome);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("the training may run out of memory; take --set data.batch"),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stderr.contains(" bytes more are unavailable; "), "{}", outcome.stderr);
}

/// The most memory that a training has taken, in bytes, and what it had said that it would take.
fn peak_and_estimate(sandbox: &Sandbox, args: &[&str]) -> (f64, f64) {
    let mut command = sandbox.command(&[&["train", "--data-dir", "data"], args].concat());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut peak = 0.0;
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"));
        peak = line.map_or(peak, |kib| 1024.0 * kib.trim().parse::<f64>().unwrap());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let outcome = Outcome::of(&child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let words = outcome.stderr.lines().find_map(|line| line.strip_prefix("memory  about ")).unwrap();
    let mib = words.strip_suffix(" MiB at its peak").unwrap_or_else(|| panic!("{words}"));
    (peak, 1048576.0 * mib.parse::<f64>().unwrap())
}

/// What `train` says that it takes is about what it takes.
#[test]
#[cfg(target_os = "linux")]
fn the_estimate_of_memory_is_about_right() {
    let sandbox = Sandbox::new();
    let steps = "data.train_limit=700 data.batch_size=700 data.test_limit=64 train.epochs=1";
    let steps: Vec<&str> = steps.split(' ').flat_map(|key| ["--set", key]).collect();
    for (recipe, width) in [
        ("digits-preresnet8-w2a2", "4"),
        ("digits-preresnet8-fp32", "2"),
        ("digits-preresnet8-w2a2-joint", "2"),
    ] {
        let width = format!("model.width={width}");
        let args = [&[recipe, "--out", recipe, "--set", &width], &steps[..]].concat();
        let (peak, estimate) = peak_and_estimate(&sandbox, &args);
        let ratio = peak / estimate;
        println!("{recipe}: {:.0} MiB, {ratio:.2} of the estimate", peak / 1048576.0);
        assert!(ratio > 0.7 && ratio < 1.5, "{recipe}: it took {ratio:.2} of its estimate, {estimate} bytes");
    }
}

/// A process of a user who may have so many; root may always have more.
fn with_processes(sandbox: &Sandbox, n: u32, command: &str) -> Option<Outcome> {
    let is_root = shell(sandbox, "id -u").stdout == b"0\n";
    // The option is -u in bash, -p in dash.
    let script = format!("ulimit -u {n} 2>/dev/null || ulimit -p {n}; exec $L {command}");
    if !is_root {
        return Some(Outcome::of(&shell(sandbox, &script)));
    }
    fs::set_permissions(sandbox.path("."), fs::Permissions::from_mode(0o777)).unwrap();
    // A user of its own, of whom no other process counts.
    let user = 60_000 + std::process::id() % 5000;
    let setpriv = format!("setpriv --reuid={user} --regid={user} --clear-groups --");
    let works = shell(sandbox, &format!("{setpriv} $L --version"));
    works.status.success().then(|| Outcome::of(&shell(sandbox, &format!("exec {setpriv} sh -c '{script}'"))))
}

#[test]
fn threads_that_cannot_be_started() {
    let sandbox = Sandbox::new();
    let mut codes = Vec::new();
    for n in 1..=8 {
        let Some(outcome) = with_processes(&sandbox, n, &format!("{} --out u{n}", tiny())) else {
            let may_skip = std::env::var_os("LOWBIT_NO_SKIP").is_none_or(|value| value != "1");
            assert!(may_skip, "running as root, and setpriv cannot run the binary as another user");
            return println!("skipped: running as root, and setpriv cannot run the binary as another user");
        };
        expect_orderly(&format!("ulimit -u {n}"), &outcome);
        if n == 1 {
            assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
            assert!(outcome.stderr.contains("RAYON_NUM_THREADS"), "{}", outcome.stderr);
        }
        codes.push(outcome.code);
    }
    assert_eq!(codes.last(), Some(&Some(0)), "{codes:?}");
}

#[test]
fn more_threads_than_can_be_started() {
    let sandbox = Sandbox::new();
    let outcome = Outcome::of(&shell(&sandbox, "RAYON_NUM_THREADS=4000 exec $L recipes"));
    expect_orderly("4000 threads", &outcome);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("RAYON_NUM_THREADS=1"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("at most 1024"), "{}", outcome.stderr);
}

#[test]
fn without_home() {
    let sandbox = Sandbox::new();
    let script = format!("unset HOME XDG_DATA_HOME; $L {} && $L data list && $L eval runs/*", tiny());
    let outcome = Outcome::of(&shell(&sandbox, &script));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

#[test]
fn directory_that_is_a_fifo() {
    let sandbox = Sandbox::new();
    assert!(shell(&sandbox, "mkfifo fifo").status.success());
    for command in [&format!("{} --out fifo", tiny()), "eval fifo", "inspect ./fifo", "train --resume fifo"] {
        let outcome = Outcome::of(&shell(&sandbox, &format!("exec timeout 20 $L {command}")));
        expect_orderly(command, &outcome);
        assert_eq!(outcome.code, Some(4), "{command}: {}", outcome.stderr);
    }
    // What comes out at the other end is what would be in a file.
    let outcome =
        Outcome::of(&shell(&sandbox, "cat fifo & $L recipes show digits-preresnet8-w2a2 >fifo; wait"));
    assert!(outcome.stdout.contains("[quantization]"), "{}", outcome.stdout);
}

/// What a command shows on a terminal, if there is the program that makes one.
fn on_terminal(sandbox: &Sandbox, variables: &str, command: &str) -> Option<String> {
    let script = format!("{variables} TERM=xterm script -qec \"$L {command}\" /dev/null");
    let output = shell(sandbox, &script);
    match output.status.success() {
        true => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => None,
    }
}

/// Whether there is an escape sequence that sets a color or a style: ESC [ numbers m.
fn has_colors(text: &str) -> bool {
    text.split("\u{1b}[").skip(1).any(|rest| {
        let end = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        end.starts_with('m')
    })
}

#[test]
fn no_color_means_none() {
    let sandbox = Sandbox::new();
    // It warns of the temperature.
    let hot = "strategy.joint={distance={kind='kl', temperature=4}}";
    let train = format!("{} --set \\\"{hot}\\\"", tiny().replace(" -q", ""));
    let Some(shown) = on_terminal(&sandbox, "", "help train") else {
        let may_skip = std::env::var_os("LOWBIT_NO_SKIP").is_none_or(|value| value != "1");
        assert!(may_skip, "there is no program `script` to make a terminal");
        return println!("skipped: there is no program `script` to make a terminal");
    };
    assert!(has_colors(&shown), "without the variable there are colors: {shown:?}");
    let shown = on_terminal(&sandbox, "", &train).unwrap();
    assert!(
        shown.contains("warning") && has_colors(&shown),
        "without the variable there are colors: {shown:?}"
    );
    for variables in ["NO_COLOR=1", "CLICOLOR=0", "NO_COLOR=1 CLICOLOR=1"] {
        for command in [train.as_str(), "help train", "--help"] {
            let shown = on_terminal(&sandbox, variables, command).unwrap();
            assert!(!has_colors(&shown), "{variables} {command}: {shown:?}");
        }
    }
}

#[test]
fn tilde_after_an_equals_sign() {
    let sandbox = Sandbox::new();
    let commands = [
        "train --out=~/x",
        "train --out='~'",
        "train --data-dir=~/x",
        "train --resume=~/x",
        "train --set init=~/x",
        "train digits-preresnet8-w2a2-joint --set strategy.joint.teacher.init=~/x",
        "train '~/x.toml'",
        "eval '~/x'",
        "data list --data-dir=~/x",
    ];
    for command in commands {
        let outcome = Outcome::of(&shell(&sandbox, &format!("$L {command}")));
        assert_eq!(outcome.code, Some(2), "{command}: {}", outcome.stderr);
        let says_how = outcome.stderr.contains("$HOME") && outcome.stderr.contains("./~");
        assert!(says_how, "{command}: {}", outcome.stderr);
    }
    assert!(!sandbox.path("~").exists() && !sandbox.path("runs").exists());
    // What is meant can be said.
    let outcome = Outcome::of(&shell(&sandbox, &format!("$L {} --out=./~/x", tiny())));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

#[test]
fn options_of_other_programs() {
    let sandbox = Sandbox::new();
    let cases: [(&[&str], &str); 9] = [
        (&["train", "--epochs", "3"], "--set train.epochs=3"),
        (&["train", "--lr=0.05"], "--set train.learning_rate=0.05"),
        (&["train", "--batch-size", "16"], "--set data.batch_size=16"),
        (&["train", "--seed", "7"], "--set seed=7"),
        (&["train", "--bits", "4"], "--set quantization.weight_bits=4"),
        (&["inspect", "digits-preresnet8-w2a2", "--act-bits", "4"], "--set quantization.act_bits=4"),
        (&["train", "--output-dir", "x"], "--out DIR"),
        (&["resume", "x"], "lowbit train --resume DIR"),
        (&["evaluate", "x"], "lowbit eval DIR"),
    ];
    for (args, expected) in cases {
        let outcome = sandbox.run(args);
        assert_eq!(outcome.code, Some(2), "{args:?}");
        assert!(outcome.stderr.contains(expected), "{args:?}: {}", outcome.stderr);
        let is_bad_tip = outcome.stderr.contains("use '-- ") || outcome.stderr.contains("a similar");
        assert!(!is_bad_tip, "{args:?}: {}", outcome.stderr);
    }
}

#[test]
fn names_of_devices_elsewhere() {
    let sandbox = Sandbox::new();
    for (name, meant) in
        [("cpu", "the CPU is `flex`"), ("cuda", "`wgpu`"), ("gpu", "`wgpu`"), ("cuda:0", "`wgpu:1`")]
    {
        let outcome = sandbox.run(&["train", "--device", name]);
        assert_eq!(outcome.code, Some(2));
        assert!(outcome.stderr.contains(meant), "{name}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("there are flex"), "{name}: {}", outcome.stderr);
    }
}

#[test]
fn best_is_a_checkpoint() {
    let sandbox = Sandbox::new();
    let train = [&["train", "-q", "--out", "run"][..], &TINY, &["--set", "train.epochs=2"]].concat();
    assert_eq!(sandbox.run(&train).code, Some(0));
    let best = sandbox.json(&["inspect", "run"])["best"].clone();
    assert!(best.is_string());
    assert_eq!(sandbox.json(&["eval", "run", "--checkpoint", "best"])["checkpoint"], best);
    assert_eq!(sandbox.json(&["inspect", "run", "--checkpoint", "best"])["checkpoint"]["name"], best);
    let outcome = sandbox.run(&["train", "-q", "--resume", "run", "--checkpoint", "best"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let outcome = sandbox.run(&["eval", "no-run", "--checkpoint", "best"]);
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
}

#[test]
fn quiet_gives_no_hints() {
    let sandbox = Sandbox::new();
    let quiet = [&["train", "-q", "--out", "a"][..], &TINY].concat();
    let outcome = sandbox.run(&quiet);
    assert!(!outcome.stdout.contains("lowbit"), "{}", outcome.stdout);
    assert_eq!(outcome.stderr, "");
    let outcome = sandbox.run(&[&["train", "--out", "b"][..], &TINY].concat());
    assert!(outcome.stdout.contains("lowbit eval b"), "{}", outcome.stdout);
    assert!(sandbox.run(&["recipes"]).stdout.contains("lowbit recipes show"));
    assert!(!sandbox.run(&["recipes", "-q"]).stdout.contains("lowbit recipes show"));
    assert!(!sandbox.run(&["data", "list", "-q"]).stdout.contains("lowbit data fetch"));
}

/// Other arithmetic than single precision is said where a training is described, and a run goes on in its own only.
#[test]
fn the_arithmetic_of_a_training_is_said() {
    let sandbox = Sandbox::new();
    let bf16 = ["--set", "train.compute=bf16"];
    let says = |text: &str| text.lines().any(|line| line.starts_with("compute ") && line.contains("bf16"));
    let default = sandbox.run(&["inspect", "digits-preresnet8-w2a2"]);
    assert!(!says(&default.stdout), "{}", default.stdout);
    let inspected = sandbox.run(&[&["inspect", "digits-preresnet8-w2a2"][..], &bf16].concat());
    assert!(says(&inspected.stdout), "{}", inspected.stdout);
    let trained = sandbox.run(&[&["train", "--out", "run"][..], &TINY, &bf16].concat());
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    assert!(says(&trained.stderr), "{}", trained.stderr);
    let run = sandbox.run(&["inspect", "run"]);
    assert!(says(&run.stdout), "{}", run.stdout);
    let again = sandbox.run(&[&["train", "--out", "run", "--or-resume"][..], &TINY].concat());
    assert_eq!(again.code, Some(2), "{}", again.stderr);
    assert!(again.stderr.contains("train.compute is \"fp32\", in the run \"bf16\""), "{}", again.stderr);
}

/// Gradients of few bits are said where a training is described, and a run goes on with its own only.
#[test]
fn the_bits_of_gradients_are_said() {
    let sandbox = Sandbox::new();
    let grad_bits = ["--set", "quantization.grad_bits=6"];
    let says = |text: &str| {
        let line = "compute ";
        text.lines().any(|text| text.starts_with(line) && text.contains("6 bits, with noise (DoReFa-Net)"))
    };
    let inspected = sandbox.run(&[&["inspect", "digits-preresnet8-w2a2"][..], &grad_bits].concat());
    assert!(says(&inspected.stdout), "{}", inspected.stdout);
    let trained = sandbox.run(&[&["train", "--out", "run"][..], &TINY, &grad_bits].concat());
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    assert!(says(&trained.stderr), "{}", trained.stderr);
    let run = sandbox.run(&["inspect", "run"]);
    assert!(says(&run.stdout), "{}", run.stdout);
    let again = sandbox.run(&[&["train", "--out", "run", "--or-resume"][..], &TINY].concat());
    assert_eq!(again.code, Some(2), "{}", again.stderr);
    assert!(again.stderr.contains("quantization.grad_bits is \"fp32\", in the run 6"), "{}", again.stderr);
    let both = ["--set", "train.compute=bf16"];
    let inspected = sandbox.run(&[&["inspect", "digits-preresnet8-w2a2"][..], &grad_bits, &both].concat());
    assert!(says(&inspected.stdout) && inspected.stdout.contains("bf16"), "{}", inspected.stdout);
    let refused = sandbox.run(&["inspect", "digits-preresnet8-w2a2", "--set", "quantization.grad_bits=9"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let expected = "quantization.grad_bits: expected a bit width from 1 to 8, or \"fp32\", got 9";
    assert!(refused.stderr.contains(expected), "{}", refused.stderr);
}

/// A recipe that extends another is shown whole, trains, and its run depends on no other file.
#[test]
fn a_recipe_that_extends_another() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("base")).unwrap();
    let base = "schema = 1\nname = \"base\"\nextends = \"digits-preresnet8-w2a2\"\n[data]\ntrain_limit = 128\n\
                test_limit = 64\nbatch_size = 32\n";
    fs::write(sandbox.path("base/base.toml"), base).unwrap();
    let mine = "schema = 1\nname = \"mine\"\nextends = \"base/base.toml\"\n[train]\nepochs = 2\n";
    fs::write(sandbox.path("mine.toml"), mine).unwrap();
    let shown = sandbox.run(&["recipes", "show", "./mine.toml"]).stdout;
    let first = "# Extends ./base/base.toml, which extends digits-preresnet8-w2a2, which extends digits-preresnet8-fp32.\n";
    assert!(shown.starts_with(first), "{shown}");
    for line in
        ["epochs = 2", "train_limit = 128", "depth = 8", "every_minutes = 10.0", "label_smoothing = 0.0"]
    {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    // Read from another folder, what is shown is the same recipe.
    let starts = "schema = 1\nname = \"starts\"\nextends = \"base.toml\"\ninit = \"../run\"\n[strategy.joint]\n\
                  teacher = { init = \"../teacher\" }\n";
    fs::write(sandbox.path("base/starts.toml"), starts).unwrap();
    let shown = sandbox.run(&["recipes", "show", "base/starts.toml"]).stdout;
    for place in ["base/../run", "base/../teacher"] {
        let line = format!("init = {:?}", sandbox.path(place).display().to_string());
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
    fs::create_dir(sandbox.path("elsewhere")).unwrap();
    fs::write(sandbox.path("elsewhere/shown.toml"), &shown).unwrap();
    let again = sandbox.run(&["recipes", "show", "elsewhere/shown.toml"]).stdout;
    assert_eq!(shown.split_once('\n').unwrap().1, again);
    let json = |path| sandbox.json(&["recipes", "show", path]);
    assert_eq!(json("base/starts.toml"), json("elsewhere/shown.toml"));
    fs::write(sandbox.path("base/starts.toml"), starts.replace("../run", "~/run")).unwrap();
    let refused = sandbox.run(&["recipes", "show", "base/starts.toml"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.starts_with("error: init: a shell replaces ~ only"), "{}", refused.stderr);
    let trained = sandbox.run(&["train", "-q", "mine.toml", "--out", "run", "--set", "seed=3"]);
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    fs::remove_dir_all(sandbox.path("base")).unwrap();
    let kept = fs::read_to_string(sandbox.path("run/recipe.toml")).unwrap();
    assert!(!kept.contains("extends") && kept.contains("train_limit = 128"), "{kept}");
    for args in [&["train", "--resume", "run", "--checkpoint", "step-00000004"][..], &["eval", "run"]] {
        let outcome = sandbox.run(args);
        assert_eq!(outcome.code, Some(0), "{args:?}: {}", outcome.stderr);
    }
    let outcome = sandbox.run(&["train", "mine.toml"]);
    assert_eq!(outcome.code, Some(2));
    assert!(
        outcome.stderr.starts_with("error: mine.toml, line 3: extends: cannot read base/base.toml: "),
        "{}",
        outcome.stderr
    );
    fs::write(sandbox.path("mine.toml"), mine.replace("base/base", "~/base")).unwrap();
    let outcome = sandbox.run(&["inspect", "mine.toml"]);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("no shell replaces ~ in a recipe"), "{}", outcome.stderr);
}

/// Names come from anywhere; a terminal must not obey them.
#[test]
fn control_characters_in_names() {
    let sandbox = Sandbox::new();
    let name = "\u{1b}[31mred\u{7}";
    fs::write(sandbox.path(name), "").unwrap();
    let (set, missing) = (format!("{name}=1"), format!("{name}/missing"));
    let commands: [&[&str]; 7] = [
        &["train", name],
        &["train", "--out", name],
        &["train", "--set", &set],
        &["train", "--device", name],
        &["train", "--data-dir", &missing, "fashion-mnist-preresnet8-w2a2"],
        &["eval", name],
        &["inspect", name],
    ];
    for args in commands {
        let outcome = sandbox.run(args);
        assert!(outcome.code != Some(0) && outcome.stderr.contains("red"), "{args:?}: {}", outcome.stderr);
        assert!(!outcome.stderr.contains(['\u{1b}', '\u{7}']), "{args:?}: {:?}", outcome.stderr);
    }
}
