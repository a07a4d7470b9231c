//! What no program in C can bring about.

use lowbit_runtime::samples;

use super::*;

fn last_error() -> &'static str {
    // SAFETY: a string that stays until the next call on this thread fails, which is after each use here.
    unsafe { CStr::from_ptr(lowbit_last_error()) }.to_str().unwrap()
}

#[test]
fn a_panic_is_a_status() {
    assert_eq!(call(|| panic!("with a {}", "text")), LowbitStatus::Internal);
    assert_eq!(last_error(), "a bug of lowbit: with a text; please report it");
    assert_eq!(call(|| panic!("literally")), LowbitStatus::Internal);
    assert_eq!(last_error(), "a bug of lowbit: literally; please report it");
    assert_eq!(call(|| std::panic::panic_any(1)), LowbitStatus::Internal);
    assert_eq!(last_error(), "a bug of lowbit: a panic without a message; please report it");
}

#[test]
fn a_panic_on_a_thread_of_the_model_is_a_status_and_the_threads_live_on() {
    let threads = Threads::start(2).unwrap();
    assert_eq!(call(|| threads.run(|| panic!("there"))), LowbitStatus::Internal);
    assert_eq!(last_error(), "a bug of lowbit: there; please report it");
    assert_eq!(threads.run(|| 7), 7);
}

#[test]
fn zeros_do_not_end_a_message_or_a_name() {
    let status = call(|| panic!("one\0two"));
    assert_eq!(
        (status, last_error()),
        (LowbitStatus::Internal, "a bug of lowbit: one\\0two; please report it")
    );
    let mut network = samples::small();
    network.info.name = "a\0b".into();
    let info = Info::of(&Model::new(network).unwrap(), 1);
    // SAFETY: the name is a string that lives as long as `info`.
    let name = unsafe { CStr::from_ptr(info.get().name) };
    assert_eq!(name.to_str(), Ok("a\u{fffd}b"));
}

#[test]
fn what_a_model_lacks_has_a_value_that_changes_nothing() {
    let mut network = samples::small();
    network.info = lowbit_runtime::Info { resize: Some(9), ..Default::default() };
    let info = Info::of(&Model::new(network).unwrap(), 1);
    let LowbitInfo { name, mean, std, resize, classes, channels, .. } = *info.get();
    // SAFETY: they live as long as `info`, with `channels` numbers and a string.
    let (mean, std, name) = unsafe {
        (
            std::slice::from_raw_parts(mean, channels),
            std::slice::from_raw_parts(std, channels),
            CStr::from_ptr(name),
        )
    };
    assert_eq!((mean, std), (&[0.0; 3][..], &[1.0; 3][..]));
    assert!(classes.is_null() && name.is_empty());
    assert_eq!(resize, 9);
}
