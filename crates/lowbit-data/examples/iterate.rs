//! Opens a data set and goes through one epoch.
//!
//! ```sh
//! cargo run -p lowbit-data --example iterate                              # the built-in digits
//! cargo run -p lowbit-data --example iterate -- fashion-mnist [DATA_DIR]
//! ```

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use lowbit_data::{
    Augmentation, DatasetName, LabelKind, Loader, LoaderConfig, Locations, Normalization, Split, open,
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed to {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let name: DatasetName = arguments.next().as_deref().unwrap_or("digits").parse()?;
    let locations = Locations::default_with(arguments.next().map(PathBuf::from));

    let train = open(name, Split::Train, LabelKind::Fine, &locations)?.dataset;
    println!("{name}: {} training images of shape {:?}", train.len(), train.shape);

    let config = LoaderConfig {
        augmentation: Some(Augmentation { pad: 1, flip: false, ..Augmentation::default() }),
        ..LoaderConfig::training(128, 42, Normalization::of(name))
    };
    let loader = Loader::new(Arc::new(train), config)?;
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        let mean = batch.images.iter().sum::<f32>() / batch.images.len() as f32;
        if batch.step < 3 || batch.step + 1 == loader.steps_per_epoch() {
            println!("step {:4}: shape {:?}, mean {mean:+.3}", batch.step, batch.shape);
        }
    }
    Ok(())
}
