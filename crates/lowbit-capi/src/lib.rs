//! The C interface of `lowbit-runtime`: a packed file goes in, logits come out.
//!
//! `include/lowbit.h` is generated from this file, and its comments are the documentation for C. What can fail returns a [`LowbitStatus`]
//! or a null pointer, and [`lowbit_last_error`] says why. No panic crosses the border. What this crate does not do: decode image files,
//! resize, train. Programs in Rust use `lowbit-runtime` itself.
//!
//! ```c
//! lowbit_model *model;
//! if (lowbit_model_load("digits.lowbit", 0, &model) != LOWBIT_STATUS_OK) {
//!     fprintf(stderr, "%s\n", lowbit_last_error());
//!     return 1;
//! }
//! const lowbit_info *info = lowbit_model_info(model);
//! /* images: [n, info->channels, info->height, info->width], normalized; logits: [n, info->n_outputs] */
//! lowbit_status status = lowbit_model_run(model, images, n, logits, n * info->n_outputs);
//! lowbit_model_free(model);
//! ```

mod error;
mod info;
mod threads;

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use lowbit_runtime::{Model, PackedError};

use error::Error;
use info::Info;
use threads::Threads;

/// The most threads that a model can have.
// Where there is no room for far more, the standard library may end the process when one starts.
pub const LOWBIT_MAX_THREADS: usize = 1024;

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum LowbitStatus {
    /// The call succeeded.
    Ok = 0,
    /// An argument is wrong: a pointer is NULL or not aligned for its type, a length is not the expected one, a path is not UTF-8,
    /// there are too many threads or images.
    InvalidArgument = 1,
    /// The file cannot be read.
    Unreadable = 2,
    /// The file or the bytes are not a model that this version can run.
    InvalidModel = 3,
    /// A value of the images is not finite.
    InvalidImages = 4,
    /// The system cannot start the threads.
    NoThreads = 5,
    /// A bug in lowbit. The model can still be run and freed.
    Internal = 6,
}

/// A network that is ready to run. It never changes, so several threads may use it at the same time.
pub struct LowbitModel {
    model: Model,
    info: Info,
    threads: Threads,
}

/// What a model takes and what its outputs mean. The library makes it; later versions may add fields at the end.
///
/// Prepare an image as follows, to get what `lowbit predict` and the test of the training compute. Resize the shorter side to `resize`
/// pixels (Pillow's bilinear filter), and cut `height` x `width` pixels out of the center. Make
/// `(pixel / 255 - mean[channel]) / std[channel]` of each pixel from 0 to 255, in single precision. Three channels are red, green and blue.
#[derive(Debug)]
#[repr(C)]
pub struct LowbitInfo {
    /// Name of the network in UTF-8. It may be empty.
    pub name: *const c_char,
    /// Channels of an image.
    pub channels: usize,
    /// Height of an image, in pixels.
    pub height: usize,
    /// Width of an image, in pixels.
    pub width: usize,
    /// `channels` numbers: the mean of each channel, where pixels are from 0 to 1. All are 0 if the model has no normalization.
    pub mean: *const f32,
    /// `channels` numbers: the standard deviation of each channel. All are 1 if the model has no normalization.
    pub std: *const f32,
    /// Length of the shorter side before the center is cut out, in pixels. 0 stands for `height`.
    pub resize: usize,
    /// Outputs of the model: logits for each image.
    pub n_outputs: usize,
    /// `n_outputs` names of classes in UTF-8. NULL if the model has no names.
    pub classes: *const *const c_char,
    /// Threads of the model.
    pub n_threads: usize,
}

impl LowbitModel {
    /// Starts the threads and reads a model on them.
    fn read(n_threads: usize, read: impl FnOnce() -> Result<Model, Error> + Send) -> Result<Self, Error> {
        let threads = Threads::start(n_threads)?;
        let model = threads.run(read)?;
        Ok(Self { info: Info::of(&model, threads.len()), model, threads })
    }
}

// What the comment of `LowbitModel` promises.
const _: () = {
    const fn can_be_shared<T: Send + Sync>() {}
    can_be_shared::<LowbitModel>();
};

/// Does the work of a function and keeps the message if it fails, or panics.
fn call(work: impl FnOnce() -> Result<(), Error>) -> LowbitStatus {
    // What can be seen after a panic: models, which do not change, and results, which are written last.
    let result = catch_unwind(AssertUnwindSafe(work));
    match result.unwrap_or_else(|payload| Err(Error::panic(&*payload))) {
        Ok(()) => LowbitStatus::Ok,
        Err(error) => {
            error::keep(&error);
            error.status()
        }
    }
}

/// A pointer that is neither null nor misaligned.
fn checked<T>(pointer: *const T, argument: &'static str) -> Result<*const T, Error> {
    if pointer.is_null() {
        return Err(Error::Null { argument });
    }
    match pointer.is_aligned() {
        true => Ok(pointer),
        false => Err(Error::Misaligned { argument, address: pointer.addr(), align: align_of::<T>() }),
    }
}

/// The values that `pointer` leads to.
///
/// # Safety
/// There are `n` of them if it is not null, and nothing changes them while the result is used.
unsafe fn values<'a, T>(pointer: *const T, n: usize, argument: &'static str) -> Result<&'a [T], Error> {
    let pointer = checked(pointer, argument)?;
    // SAFETY: not null and aligned; the rest is what the caller promises. They fit into memory as they are there.
    Ok(unsafe { std::slice::from_raw_parts(pointer, n) })
}

/// Reads a model and hands it to the caller: a null pointer if that fails.
///
/// # Safety
/// There is room for a pointer at `model` if it is not null.
unsafe fn give(
    model: *mut *mut LowbitModel,
    read: impl FnOnce() -> Result<LowbitModel, Error>,
) -> Result<(), Error> {
    checked(model, "model")?;
    // SAFETY: neither null nor misaligned; the caller promises that there is room.
    unsafe { model.write(ptr::null_mut()) };
    let read = Box::into_raw(Box::new(read()?));
    // SAFETY: as above.
    unsafe { model.write(read) };
    Ok(())
}

/// Reads a model from a file that `lowbit export` has written.
///
/// The file may come from an untrusted source: it is checked before use, and what it can make the library allocate is bounded.
///
/// `path` is UTF-8. The model starts `n_threads` threads, at most `LOWBIT_MAX_THREADS`, on which it is read and run; 0 stands for as many
/// as the process has processors. No other model uses them. They end when the model is freed. A child process of `fork` does not have
/// them: it must neither run nor free the model.
///
/// On success `*model` is a model, to be freed by `lowbit_model_free`; on failure it is NULL.
///
/// # Safety
/// `path` is NULL or a string that ends with a zero byte. `model` is NULL or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_model_load(
    path: *const c_char,
    n_threads: usize,
    model: *mut *mut LowbitModel,
) -> LowbitStatus {
    call(|| {
        let read = || {
            checked(path, "path")?;
            // SAFETY: not null, so it is a string, as the caller promises.
            let path = unsafe { CStr::from_ptr(path) };
            let path =
                path.to_str().map_err(|_| Error::NotUtf8 { path: path.to_string_lossy().as_ref().into() })?;
            let in_file = |source: PackedError| Error::File { path: path.into(), source };
            LowbitModel::read(n_threads, || Model::load(path).map_err(in_file))
        };
        // SAFETY: the caller promises room for a pointer.
        unsafe { give(model, read) }
    })
}

/// Reads a model from the contents of a file, `n_bytes` bytes in memory. They are not needed after the call. Everything else is as for
/// `lowbit_model_load`.
///
/// # Safety
/// `bytes` is NULL or points to `n_bytes` bytes, which do not change during the call. `model` is NULL or points to room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_model_from_bytes(
    bytes: *const c_void,
    n_bytes: usize,
    n_threads: usize,
    model: *mut *mut LowbitModel,
) -> LowbitStatus {
    call(|| {
        let read = || {
            if isize::try_from(n_bytes).is_err() {
                return Err(Error::TooMany { argument: "n_bytes", got: n_bytes });
            }
            // SAFETY: so many bytes are there, and nothing changes them, as the caller promises.
            let bytes: &[u8] = unsafe { values(bytes.cast(), n_bytes, "bytes")? };
            let in_memory = |source| Error::Bytes { n_bytes, source };
            LowbitModel::read(n_threads, || Model::from_bytes(bytes).map_err(in_memory))
        };
        // SAFETY: the caller promises room for a pointer.
        unsafe { give(model, read) }
    })
}

/// Frees a model, and waits until its threads have ended. Does nothing if `model` is NULL.
///
/// # Safety
/// `model` is NULL, or it comes from this library and is not freed yet. No other call uses it at the same time or later.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_model_free(model: *mut LowbitModel) {
    call(|| {
        if !model.is_null() {
            // SAFETY: it comes from `Box::into_raw` in `give`, and is not used any more, as the caller promises.
            drop(unsafe { Box::from_raw(model) });
        }
        Ok(())
    });
}

/// What a model takes and what its outputs mean. The result and all that it points to belong to the model, and are valid until the model
/// is freed. NULL if `model` is NULL.
///
/// # Safety
/// `model` is NULL, or it comes from this library and is not freed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_model_info(model: *const LowbitModel) -> *const LowbitInfo {
    let mut info = ptr::null();
    call(|| {
        let model = checked(model, "model")?;
        // SAFETY: not null, so it is a model, which nothing changes, as the caller promises.
        info = unsafe { &*model }.info.get();
        Ok(())
    });
    info
}

/// Computes the logits of images.
///
/// `images` has the shape [n_images, channels, height, width], row by row. Its values are normalized and finite, see `lowbit_info`.
/// `logits` has the shape [n_images, n_outputs], and `n_logits` is how many values that are. It is written only on success.
///
/// The logits of an image depend neither on the other images nor on the number of threads. Several threads may run one model at the
/// same time; all of them wait for the threads of the model. A batch takes memory in proportion to its size; if there is not enough, the
/// process is aborted. Check that logits are finite if the model comes from an untrusted source.
///
/// # Safety
/// `model` is NULL, or it comes from this library and is not freed yet. `images` is NULL or points to that many values, which do not
/// change during the call. `logits` is NULL or points to room for `n_logits` values, which nothing else uses during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lowbit_model_run(
    model: *const LowbitModel,
    images: *const f32,
    n_images: usize,
    logits: *mut f32,
    n_logits: usize,
) -> LowbitStatus {
    call(|| {
        let model = checked(model, "model")?;
        // SAFETY: not null, so it is a model, which nothing changes, as the caller promises.
        let LowbitModel { model, threads, .. } = unsafe { &*model };
        let n_outputs = model.n_outputs();
        let too_many = Error::TooMany { argument: "n_images", got: n_images };
        let in_image: usize = model.input_shape().iter().product();
        let fits = |of_each: usize| {
            let n = n_images.checked_mul(of_each)?;
            n.checked_mul(size_of::<f32>()).filter(|n_bytes| isize::try_from(*n_bytes).is_ok())?;
            Some(n)
        };
        let (Some(n_values), Some(expected)) = (fits(in_image), fits(n_outputs)) else {
            return Err(too_many);
        };
        if n_logits != expected {
            return Err(Error::Logits { got: n_logits, expected, n_outputs, n_images });
        }
        if n_images == 0 {
            return Ok(());
        }
        checked(logits, "logits")?;
        // SAFETY: so many values are there, and nothing changes them, as the caller promises.
        let images = unsafe { values(images, n_values, "images")? };
        let computed = threads.run(|| model.run(images))?;
        assert_eq!(computed.len(), n_logits, "invariant: a model has `n_outputs` logits for each image");
        // SAFETY: there is room for so many values. The vector was just made, so that it is no part of the caller's memory.
        unsafe { ptr::copy_nonoverlapping(computed.as_ptr(), logits, computed.len()) };
        Ok(())
    })
}

/// Says why the last failed call of this thread failed: one line in UTF-8, empty if no call has failed yet. The result is valid until the
/// next failed call of this thread, or until the thread ends. Calls that succeed and calls of other threads do not change it.
#[unsafe(no_mangle)]
pub extern "C" fn lowbit_last_error() -> *const c_char {
    error::last()
}

/// The version of the library, such as "0.1.0". The result is always valid.
#[unsafe(no_mangle)]
pub extern "C" fn lowbit_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

#[cfg(test)]
mod tests;
