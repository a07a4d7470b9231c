//! What the targets share: files in memory under the names that readers look for.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lowbit_data::{DatasetName, LabelKind, Locations, Split};

/// The directory of this target, in memory where the system has such a place. Each start of the target empties it.
pub fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.into() } else { std::env::temp_dir() };
        let target = std::env::current_exe().expect("a program has a path");
        let target = target.file_stem().expect("a program has a name").to_string_lossy();
        let directory = parent.join(format!("lowbit-fuzz-{target}"));
        if let Err(error) = fs::remove_dir_all(&directory) {
            assert_eq!(error.kind(), ErrorKind::NotFound, "it can be emptied");
        }
        fs::create_dir_all(&directory).expect("a directory can be made");
        directory
    })
}

/// Writes a file of [`directory`].
pub fn write(name: &str, bytes: &[u8]) {
    fs::write(directory().join(name), bytes).expect("a file can be written");
}

/// Opens a part of a data set whose files lie in [`directory`], or in the archive `file` there.
pub fn open(name: DatasetName, split: Split, labels: LabelKind, file: &str) {
    let locations = Locations {
        data_dir: Some(directory().join(file)),
        run_data_dir: None,
        data_home: None,
        system: directory().join("none"),
    };
    if let Ok(opened) = lowbit_data::open(name, split, labels, &locations) {
        opened.dataset.validate().expect("what is read is a data set");
    }
}

/// A run directory whose file `name` has these bytes.
#[cfg(feature = "training")]
pub fn run_with(name: &str, bytes: &[u8]) -> lowbit_train::RunDir {
    write("run.json", b"{}");
    write(name, bytes);
    lowbit_train::RunDir::open(directory()).expect("it has a run.json")
}
