//! The containers: what is in a file, and the values of one tensor. Nothing in a file is executed, and nothing is read before it is
//! asked for, but its list of tensors.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use burn::tensor::{TensorData, bf16, f16};
use lowbit_data::FileKind;
use pytorch_reader::{FileFormat, PytorchReader};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::pickles::{self, ALONE, Kind, ModuleClass};
use super::{WeightsError, dims};
use crate::files::open_regular;

/// Largest file: no network of ours has more than 4 billion parameters.
const MAX_FILE: u64 = 16 << 30;

/// Largest list of tensors in a safetensors file. That of ResNet-101 has 50 KiB.
const MAX_HEADER: u64 = 16 << 20;

/// What holds the tensors of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Container {
    /// PyTorch's, since 1.6.
    PytorchZip,
    /// PyTorch's from 0.1.10 to 1.5.
    PytorchLegacy,
    /// PyTorch's before 0.1.10.
    PytorchTar,
    /// Safetensors.
    Safetensors,
}

impl Container {
    /// Its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::PytorchZip => "PyTorch (ZIP)",
            Self::PytorchLegacy => "PyTorch (legacy, before 1.6)",
            Self::PytorchTar => "PyTorch (TAR, before 0.1.10)",
            Self::Safetensors => "safetensors",
        }
    }
}

/// A tensor of a file, without its values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// Its type as PyTorch calls it, as in "float32".
    pub dtype: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of its values.
    pub fn n_values(&self) -> usize {
        // Both readers refuse a shape whose values cannot be counted.
        self.shape.iter().product()
    }

    /// Whether it is of real numbers.
    pub fn is_float(&self) -> bool {
        Float::of(self.dtype).is_some()
    }

    /// Its shape as in "64x3x7x7".
    pub fn shape_text(&self) -> String {
        dims(&self.shape)
    }
}

/// A file of weights that another program wrote.
pub struct WeightsFile {
    path: PathBuf,
    container: Container,
    tensors: BTreeMap<String, TensorInfo>,
    source: Source,
}

/// Where values are read from.
enum Source {
    Pytorch(HashMap<String, pytorch_reader::Tensor>),
    /// The file, where its values begin, and the list of its tensors.
    Safetensors(Mutex<File>, u64, Metadata),
}

impl WeightsFile {
    /// Reads the list of tensors of the file at `path`.
    ///
    /// # Errors
    /// [`WeightsError`] if it cannot be read, is damaged, or is of another kind.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let unreadable = |source| WeightsError::Unreadable { source };
        let mut file = open_regular(path, OpenOptions::new().read(true)).map_err(unreadable)?;
        let n_bytes = file.metadata().map_err(unreadable)?.len();
        if n_bytes > MAX_FILE {
            return Err(WeightsError::TooLarge { n_bytes, most: MAX_FILE });
        }
        let mut start = Vec::new();
        file.by_ref().take(FileKind::START_LEN as u64).read_to_end(&mut start).map_err(unreadable)?;
        file.rewind().map_err(unreadable)?;
        let (container, tensors, source) = match (header_length(&start), Kind::of(&start)) {
            (Some(length), _) => safetensors(file, length, n_bytes)?,
            (None, Some(kind)) => pytorch(path, file, kind)?,
            (None, None) => return Err(WeightsError::OtherKind(FileKind::of(&start))),
        };
        if tensors.is_empty() {
            return Err(WeightsError::NoTensors);
        }
        Ok(Self { path: path.into(), container, tensors, source })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What holds its tensors.
    pub fn container(&self) -> Container {
        self.container
    }

    /// Its tensors by name, as they are called in it.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The SHA-256 of the whole file, in hexadecimal.
    ///
    /// # Errors
    /// [`WeightsError::Unreadable`].
    pub fn sha256(&self) -> Result<String, WeightsError> {
        let unreadable = |source| WeightsError::Unreadable { source };
        let mut file = open_regular(&self.path, OpenOptions::new().read(true)).map_err(unreadable)?;
        let (mut digest, mut chunk) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut chunk).map_err(unreadable)? {
                0 => return Ok(format!("{:x}", digest.finalize())),
                n => digest.update(&chunk[..n]),
            }
        }
    }

    /// The values of the tensor of this name in single precision. It takes as much memory as they do, whatever the file says
    /// elsewhere.
    ///
    /// # Errors
    /// [`WeightsError`] if there is no such tensor of real numbers, or a value is not finite in single precision.
    pub fn read(&self, name: &str) -> Result<TensorData, WeightsError> {
        let tensor = || name.to_string();
        let damaged = |error: &dyn std::fmt::Display| WeightsError::damaged(error);
        let info =
            self.tensors.get(name).ok_or_else(|| WeightsError::damaged(&format!("no tensor {name:?}")))?;
        let float = Float::of(info.dtype)
            .ok_or_else(|| WeightsError::Type { tensor: tensor(), dtype: info.dtype })?;
        let bytes = match &self.source {
            Source::Pytorch(tensors) => {
                let bytes = tensors.get(name).map(pytorch_reader::Tensor::read);
                bytes.expect("invariant: the list is that of the tensors").map_err(|error| damaged(&error))?
            }
            Source::Safetensors(file, data_start, metadata) => {
                let (start, end) =
                    metadata.info(name).expect("invariant: the list is that of the tensors").data_offsets;
                let mut bytes = vec![0; end - start];
                let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                file.seek(SeekFrom::Start(data_start + start as u64))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(|error| damaged(&error))?;
                bytes
            }
        };
        let values = float.values(&bytes);
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(TensorData::new(values, info.shape.clone())),
            false => Err(WeightsError::NotFinite { tensor: tensor() }),
        }
    }
}

/// A type of real numbers.
#[derive(Clone, Copy)]
enum Float {
    F64,
    F32,
    F16,
    BF16,
}

impl Float {
    /// That of this name, if it is one.
    fn of(dtype: &str) -> Option<Self> {
        Some(match dtype {
            "float64" => Self::F64,
            "float32" => Self::F32,
            "float16" => Self::F16,
            "bfloat16" => Self::BF16,
            _ => return None,
        })
    }

    /// Little-endian values in single precision.
    fn values(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks().0.iter().map(|bytes| value(*bytes)).collect()
        }
        match self {
            Self::F64 => each(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Self::F32 => each(bytes, f32::from_le_bytes),
            Self::F16 => each(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::BF16 => each(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        }
    }
}

/// Bytes of the list of a safetensors file, if `start` begins one.
fn header_length(start: &[u8]) -> Option<u64> {
    let length = u64::from_le_bytes(*start.first_chunk::<8>()?);
    (start.get(8) == Some(&b'{')).then_some(length)
}

type Opened = (Container, BTreeMap<String, TensorInfo>, Source);

fn safetensors(mut file: File, length: u64, n_bytes: u64) -> Result<Opened, WeightsError> {
    let data_start = 8 + length.min(MAX_HEADER);
    if length > MAX_HEADER || data_start > n_bytes {
        let problem = format!("its list of tensors has {length} bytes, in a file of {n_bytes}");
        return Err(WeightsError::damaged(&problem));
    }
    let mut header = vec![0; length as usize];
    file.seek(SeekFrom::Start(8))
        .and_then(|_| file.read_exact(&mut header))
        .map_err(|source| WeightsError::Unreadable { source })?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| WeightsError::damaged(&error))?;
    let expected = data_start + metadata.data_len() as u64;
    if expected != n_bytes {
        let problem = format!("it has {n_bytes} bytes, by its list of tensors {expected}");
        return Err(WeightsError::damaged(&problem));
    }
    let info = |info: &safetensors::tensor::TensorInfo| TensorInfo {
        dtype: safetensors_type(info.dtype),
        shape: info.shape.clone(),
    };
    let tensors = metadata.tensors().into_iter().map(|(name, tensor)| (name, info(tensor))).collect();
    Ok((Container::Safetensors, tensors, Source::Safetensors(Mutex::new(file), data_start, metadata)))
}

fn safetensors_type(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F64 => "float64",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        Dtype::I64 => "int64",
        Dtype::I32 => "int32",
        Dtype::I16 => "int16",
        Dtype::I8 => "int8",
        Dtype::U64 => "uint64",
        Dtype::U32 => "uint32",
        Dtype::U16 => "uint16",
        Dtype::U8 => "uint8",
        Dtype::BOOL => "bool",
        Dtype::C64 => "complex64",
        _ => "of fewer than 16 bits",
    }
}

fn pytorch(path: &Path, file: File, kind: Kind) -> Result<Opened, WeightsError> {
    let n_bytes = file.metadata().map_err(|source| WeightsError::Unreadable { source })?.len();
    let mut original = file.try_clone().map_err(|source| WeightsError::Unreadable { source })?;
    let classes = pickles::check(file, kind).map_err(|problem| WeightsError::damaged(&problem))?;
    // The reader keeps the file open: its name may go.
    let readable = match classes.is_empty() {
        true => None,
        false => Some(with_classes(&mut original, &classes).map_err(|source| WeightsError::Copy { source })?),
    };
    let path = readable.as_ref().map_or(path, |copy| copy.path());
    let reader = PytorchReader::new(path).map_err(|error| match error {
        pytorch_reader::PytorchError::Io(source) if source.raw_os_error().is_some() => {
            WeightsError::Unreadable { source }
        }
        error => WeightsError::damaged(&format!("{error}; if PyTorch reads it, {ALONE}")),
    })?;
    let container = match reader.metadata().format_type {
        FileFormat::Zip => Container::PytorchZip,
        FileFormat::Legacy => Container::PytorchLegacy,
        FileFormat::Tar => Container::PytorchTar,
        FileFormat::Pickle => return Err(WeightsError::OtherKind(FileKind::Pickle)),
    };
    let tensors = reader.into_tensors();
    let info = |tensor: &pytorch_reader::Tensor| TensorInfo {
        dtype: pytorch_type(tensor.dtype()),
        shape: tensor.shape().to_vec(),
    };
    let list: BTreeMap<_, _> = tensors.iter().map(|(name, tensor)| (name.clone(), info(tensor))).collect();
    // By strides of zero a value may be many of a tensor.
    for (name, tensor) in &tensors {
        let size = (tensor.dtype().size() * tensor.shape().iter().product::<usize>()) as u64;
        if size > n_bytes {
            let problem = format!("its tensor {} has {size} bytes, the file {n_bytes}", super::named(name));
            return Err(WeightsError::damaged(&problem));
        }
    }
    Ok((container, list, Source::Pytorch(tensors)))
}

/// A copy of a `file` of a module saved whole, with its `classes` in place of their persistent ids.
fn with_classes(file: &mut File, classes: &[ModuleClass]) -> io::Result<NamedTempFile> {
    let mut copy = NamedTempFile::new()?;
    file.rewind()?;
    ModuleClass::resolve(classes, file, &mut copy)?;
    Ok(copy)
}

fn pytorch_type(dtype: pytorch_reader::DType) -> &'static str {
    use pytorch_reader::DType as Type;
    match dtype {
        Type::F64 => "float64",
        Type::F32 => "float32",
        Type::F16 => "float16",
        Type::BF16 => "bfloat16",
        Type::I64 => "int64",
        Type::I32 => "int32",
        Type::I16 => "int16",
        Type::I8 => "int8",
        Type::U64 => "uint64",
        Type::U32 => "uint32",
        Type::U16 => "uint16",
        Type::U8 => "uint8",
        Type::Bool => "bool",
    }
}
