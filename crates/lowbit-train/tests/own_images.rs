//! A training on images that the program gives.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use lowbit_core::IntegerGrid;
use lowbit_train::{
    Digest, Image, Images, Locations, Normalization, Observer, Origin, Outcome, Recipe, ResumeFrom,
    RunResult, SampleError, Session, Source, SourceInfo, StepReport, Subject, TrainError, World, evaluate,
    inspect, load_network, resume, train,
};
use tempfile::TempDir;

#[expect(dead_code, reason = "the example's main is not called here")]
#[path = "../examples/own_images.rs"]
mod own_images;

use own_images::{RECIPE, Waves, waves};

const N_CLASSES: usize = 300;

fn recipe(overrides: &[&str]) -> Recipe {
    let small = [
        "data.classes=300",
        "data.batch_size=100",
        "model.width=0.25",
        "train.epochs=2",
        "train.norm_reestimation_batches=1",
        "checkpoint.every_steps=2",
    ];
    let overrides: Vec<String> = small.iter().chain(overrides).map(ToString::to_string).collect();
    Recipe::parse(RECIPE, "test", &overrides).unwrap()
}

/// Copies the run as it is after a step, with its lock file and all, as a kill would leave it.
struct CopyAt<'a> {
    step: u64,
    from: &'a Path,
    to: &'a Path,
}

impl Observer for CopyAt<'_> {
    fn step(&mut self, report: &StepReport) {
        if report.step == self.step {
            copy(self.from, self.to);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

fn session<'a>(images: Images, stop: &'a AtomicBool, observer: &'a mut dyn Observer) -> Session<'a> {
    Session {
        device: Device::default(),
        device_name: "flex".into(),
        origin: Origin::here(),
        images,
        stop,
        observer,
        world: World::ALONE,
        strategies: Vec::new(),
    }
}

fn complete(outcome: Result<Outcome, TrainError>) -> RunResult {
    match outcome {
        Ok(Outcome::Complete(result)) => *result,
        other => panic!("not complete: {other:?}"),
    }
}

fn error_of(outcome: Result<Outcome, TrainError>) -> String {
    outcome.unwrap_err().to_string()
}

/// What a training has computed.
fn outcome_of(run: &Path) -> (String, String) {
    let checkpoint = inspect(run, None).unwrap().checkpoint.unwrap();
    (checkpoint.state_sha256, fs::read_to_string(run.join("metrics.jsonl")).unwrap())
}

/// Images of another size than those of any data set, in more classes than a byte tells apart: a training on them that was killed
/// in the middle of an epoch, and one that was stopped, end as one that was not.
#[test]
fn a_training_on_images_of_ones_own_goes_on_exactly() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (never, recipe) = (AtomicBool::new(false), recipe(&[]));
    let (whole, killed, stopped) = (path("whole"), path("killed"), path("stopped"));
    let mut observer = CopyAt { step: 5, from: &whole, to: &killed };
    let result = complete(train(&recipe, &whole, session(waves(N_CLASSES, 2), &never, &mut observer)));
    assert_eq!(result.data.as_ref().unwrap().train.source.as_deref(), Some("waves 0"));

    assert_eq!(inspect(&killed, None).unwrap().checkpoint.unwrap().progress.step, 4);
    complete(resume(&killed, ResumeFrom::Newest, session(waves(N_CLASSES, 2), &never, &mut ())));
    assert_eq!(outcome_of(&killed), outcome_of(&whole));

    struct StopAt<'a>(u64, &'a AtomicBool);
    impl Observer for StopAt<'_> {
        fn step(&mut self, report: &StepReport) {
            self.1.store(report.step == self.0, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    let outcome = train(&recipe, &stopped, session(waves(N_CLASSES, 2), &stop, &mut StopAt(7, &stop)));
    assert!(matches!(outcome, Ok(Outcome::Interrupted { step: 7, .. })), "{outcome:?}");
    // The run goes by the normalization that it began with.
    let other = |info: &mut SourceInfo| {
        info.normalization = Some(Normalization { mean: vec![0.25; 3], std: vec![0.75; 3] });
    };
    let images = with_training_images(changed(other));
    complete(resume(&stopped, ResumeFrom::Newest, session(images, &never, &mut ())));
    assert_eq!(outcome_of(&stopped), outcome_of(&whole));

    // The labels count: with those of a byte alone, some classes would have no image.
    let scores = evaluate(&whole, Subject::default(), &Device::default(), &waves(N_CLASSES, 2)).unwrap();
    assert_eq!((Some(scores.scores), scores.same_data), (scores.reported, Some(true)));
    let network = load_network(&whole, Subject::default(), &Device::default()).unwrap();
    let grids = lowbit_models::grids(&network).unwrap();
    assert_eq!(grids.len(), 8);
    let codes = |grid: &Option<IntegerGrid>| grid.as_ref().map(|grid| grid.bits().get());
    assert!(grids.iter().all(|layer| [&layer.weight, &layer.input].map(codes) == [Some(2); 2]), "{grids:?}");
    assert_eq!(result.warnings.iter().filter(|warning| warning.contains("classes")).count(), 0);
}

/// A source with something changed.
#[derive(Debug)]
struct Changed {
    waves: Waves,
    change: fn(&mut SourceInfo),
    digest: Option<&'static str>,
    /// The sample that cannot be read.
    unreadable: Option<usize>,
}

impl Source for Changed {
    fn info(&self) -> SourceInfo {
        let mut info = self.waves.info();
        (self.change)(&mut info);
        info
    }

    fn label(&self, sample_idx: usize) -> u16 {
        self.waves.label(sample_idx)
    }

    fn image(&self, sample_idx: usize) -> Result<Image<'_>, SampleError> {
        match self.unreadable == Some(sample_idx) {
            true => Err(format!("waves/{sample_idx}.png is cut short").into()),
            false => self.waves.image(sample_idx),
        }
    }

    fn digest(&self) -> Result<Digest, lowbit_data::DataError> {
        match self.digest {
            Some(digest) => Ok(Digest::Other(digest.into())),
            None => self.waves.digest(),
        }
    }
}

fn changed(change: fn(&mut SourceInfo)) -> Changed {
    let waves = Waves { n_samples: 2 * N_CLASSES, n_classes: N_CLASSES, seed: 0 };
    Changed { waves, change, digest: None, unreadable: None }
}

fn with_training_images(train: Changed) -> Images {
    match waves(N_CLASSES, 2) {
        Images::Own { test, .. } => Images::Own { train: Arc::new(train), test },
        named => named,
    }
}

/// A run goes on with the images that it has begun with, and says in one line why not with others.
#[test]
fn other_images_are_refused() {
    let folder = TempDir::new().unwrap();
    let run = folder.path().join("run");
    let stop = AtomicBool::new(true);
    struct StopNow<'a>(&'a AtomicBool);
    impl Observer for StopNow<'_> {
        fn started(&mut self, _: &lowbit_train::StartReport<'_>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    stop.store(false, Ordering::Relaxed);
    let outcome = train(&recipe(&[]), &run, session(waves(N_CLASSES, 2), &stop, &mut StopNow(&stop)));
    assert!(matches!(outcome, Ok(Outcome::Interrupted { .. })), "{outcome:?}");
    // What the source says of them is the run's from then on, whatever it says later.
    let inspection = inspect(&run, None).unwrap();
    let Images::Own { train: own, .. } = waves(N_CLASSES, 2) else { unreachable!() };
    assert_eq!(inspection.recipe.data.normalization, own.info().normalization);

    let never = AtomicBool::new(false);
    let resumed = |images| error_of(resume(&run, ResumeFrom::Newest, session(images, &never, &mut ())));
    let digest = own.digest().unwrap();
    let run_has = format!("600 of \"waves 0\" (white is 255) with {digest}");
    let expected = |got: &str| {
        format!("the training images are not those of the run: it has {run_has}, found are {got}")
    };
    let other_seed = Changed { waves: Waves { seed: 1, ..changed(|_| {}).waves }, ..changed(|_| {}) };
    let other_digest = other_seed.waves.digest().unwrap();
    for (images, got) in [
        (
            Changed { digest: Some("index 7"), ..changed(|_| {}) },
            "600 of \"waves 0\" (white is 255) with digest index 7".into(),
        ),
        (other_seed, format!("600 of \"waves 1\" (white is 255) with {other_digest}")),
        (
            changed(|info| info.n_samples = 599),
            format!("599 of \"waves 0\" (white is 255) with {}", own.digest().unwrap()),
        ),
        (changed(|info| info.max_value = 254), format!("600 of \"waves 0\" (white is 254) with {digest}")),
    ] {
        let message = resumed(with_training_images(images));
        assert!(message.starts_with(&expected(&got)) && !message.contains('\n'), "{message}");
    }
    // Nor without any, as by the program `lowbit`.
    let named = || Images::from(Locations::default_with(None));
    let message = "the recipe has data.dataset=\"own\": it is for a program that gives images of its own, which this one does \
                   not";
    assert_eq!(resumed(named()), message);
    let evaluated = evaluate(&run, Subject::default(), &Device::default(), &named());
    assert_eq!(evaluated.unwrap_err().to_string(), message);
    // Who inspects it is not told to go on with it by a program without any.
    let obstacle = inspection.obstacle.unwrap();
    assert_eq!(obstacle, "its images are those of a program: it goes on with the program that made it");
}

#[test]
fn images_are_those_that_the_recipe_says() {
    let folder = TempDir::new().unwrap();
    let never = AtomicBool::new(false);
    let trained = |recipe: &Recipe, images| {
        error_of(train(recipe, &folder.path().join("run"), session(images, &never, &mut ())))
    };
    let check = |overrides: &[&str], change: fn(&mut SourceInfo), expected: &str| {
        assert_eq!(trained(&recipe(overrides), with_training_images(changed(change))), expected);
        assert!(!folder.path().join("run").exists());
    };
    check(
        &["data.shape=[3,40,48]"],
        |_| {},
        "the training images \"waves 0\" have data.shape=[3, 48, 40], the recipe has [3, 40, 48]",
    );
    check(
        &["data.classes=301"],
        |_| {},
        "the training images \"waves 0\" have data.classes=300, the recipe has 301",
    );
    check(
        &[],
        |info| info.shape = None,
        "serve waves 0: its images differ in shape; say to which size they are brought (data.size)",
    );
    check(
        &[],
        |info| info.normalization = None,
        "images \"waves 0\" have no normalization: their source has to give it, or the recipe data.normalization",
    );
    check(
        &["data.train_limit=601"],
        |_| {},
        "take the first 601 images of waves 0: there are 600; ask for fewer, or give a directory with more",
    );
    let digits = Recipe::embedded("digits-preresnet8-w2a2", &[]).unwrap();
    assert_eq!(
        trained(&digits, waves(10, 2)),
        "the program gives images of its own, but the recipe has data.dataset=\"digits\": take data.dataset=\"own\" with \
         data.shape and data.classes"
    );
}

/// An image that cannot be read ends a training with its name, wherever the training is.
#[test]
fn an_image_that_cannot_be_read_is_told() {
    let folder = TempDir::new().unwrap();
    let never = AtomicBool::new(false);
    // In training steps and, with one batch of calibration, in the calibration; with a digest of its own, not before.
    let epochs = ["train.epochs=1", "data.batch_size=600"];
    let images = |unreadable| {
        with_training_images(Changed {
            digest: Some("index"),
            unreadable: Some(unreadable),
            ..changed(|_| {})
        })
    };
    let run = folder.path().join("run");
    let message = error_of(train(&recipe(&epochs), &run, session(images(599), &never, &mut ())));
    assert_eq!(message, "read sample 599 of waves 0: waves/599.png is cut short");
    // With the image mended, it goes on.
    let result = resume(&run, ResumeFrom::Newest, session(images(600), &never, &mut ()));
    assert_eq!(complete(result).epochs, 1);
}

/// Mean and deviation of the recipe come before those of the source.
#[test]
fn the_recipe_may_normalize() {
    let folder = TempDir::new().unwrap();
    let never = AtomicBool::new(false);
    let trained = |name: &str, overrides: &[&str], change| {
        let run = folder.path().join(name);
        let overrides = [overrides, &["train.epochs=1", "data.train_limit=100"]].concat();
        let images = with_training_images(changed(change));
        complete(train(&recipe(&overrides), &run, session(images, &never, &mut ())));
        outcome_of(&run).1
    };
    let of_source = trained("source", &[], |_| {});
    let same = "data.normalization={mean=[0.5, 0.5, 0.5], std=[0.3, 0.3, 0.3]}";
    let of_recipe = trained("recipe", &[same], |info| info.normalization = None);
    assert_eq!(of_recipe, of_source);
    let other = "data.normalization={mean=[0.5, 0.5, 0.5], std=[0.3, 0.3, 0.4]}";
    assert_ne!(trained("other", &[other], |_| {}), of_source);
}

/// What the documentation quotes is what the example has.
#[test]
fn the_documentation_quotes_the_example() {
    let read = |name: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let example = read("examples/own_images.rs");
    let (_, quoted) = example.split_once("is quoted in docs/data.md.\n").unwrap();
    let (quoted, _) = quoted.split_once("// end").unwrap();
    assert!(read("../../docs/data.md").contains(quoted));
}
