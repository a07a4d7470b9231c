//! TensorBoard's event files: records of TFRecord, each an `Event` of `tensorflow/core/util/event.proto`, as far as it is written
//! here. The crate for it, tensorboard-rs 0.5.9, would bring protobuf 2 and image 0.23.

use prost::Message;

/// A moment of a training.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    #[prost(int64, tag = "2")]
    pub step: i64,
    /// Of the first event.
    #[prost(string, optional, tag = "3")]
    pub file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    pub summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    pub session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Value>,
}

/// What is known of one thing at that moment.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    #[prost(string, tag = "1")]
    pub tag: String,
    #[prost(float, optional, tag = "2")]
    pub simple_value: Option<f32>,
    #[prost(message, optional, tag = "5")]
    pub histo: Option<Histogram>,
    #[prost(message, optional, tag = "8")]
    pub tensor: Option<Tensor>,
    #[prost(message, optional, tag = "9")]
    pub metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Histogram {
    #[prost(double, tag = "1")]
    pub min: f64,
    #[prost(double, tag = "2")]
    pub max: f64,
    #[prost(double, tag = "3")]
    pub num: f64,
    #[prost(double, tag = "4")]
    pub sum: f64,
    #[prost(double, tag = "5")]
    pub sum_squares: f64,
    /// Where each bucket ends; it begins where the one before ends.
    #[prost(double, repeated, tag = "6")]
    pub bucket_limit: Vec<f64>,
    #[prost(double, repeated, tag = "7")]
    pub bucket: Vec<f64>,
}

/// A text, to TensorBoard a tensor of one string.
#[derive(Clone, PartialEq, Message)]
pub struct Tensor {
    #[prost(int32, tag = "1")]
    pub dtype: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub string_val: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Shape {
    #[prost(message, repeated, tag = "2")]
    pub dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Dimension {
    #[prost(int64, tag = "1")]
    pub size: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    #[prost(message, optional, tag = "1")]
    pub plugin: Option<Plugin>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Plugin {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct SessionLog {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// `DT_STRING` of `tensorflow/core/framework/types.proto`.
const STRING: i32 = 7;

/// `START` of `SessionLog`: what TensorBoard has read of this step and later ones in earlier files counts no more.
const START: i32 = 1;

/// Buckets of a histogram.
const BUCKETS: usize = 40;

impl Event {
    /// The events that a file begins with.
    pub fn begin(wall_time: f64) -> [Self; 2] {
        [
            Self { wall_time, file_version: Some("brain.Event:2".into()), ..Self::default() },
            Self { wall_time, session_log: Some(SessionLog { status: START }), ..Self::default() },
        ]
    }

    /// What is known after `step` steps.
    pub fn of(wall_time: f64, step: u64, value: Vec<Value>) -> Self {
        Self { wall_time, step: step as i64, summary: Some(Summary { value }), ..Self::default() }
    }
}

impl Value {
    pub fn scalar(tag: &str, value: f64) -> Self {
        Self { tag: tag.into(), simple_value: Some(value as f32), ..Self::default() }
    }

    /// Text, shown as it is.
    pub fn text(tag: &str, text: &str) -> Self {
        // What is shown is Markdown, in which this is code.
        let code: String = text.lines().map(|line| format!("    {line}\n")).collect();
        Self {
            tag: tag.into(),
            metadata: Some(Metadata { plugin: Some(Plugin { name: "text".into() }) }),
            tensor: Some(Tensor {
                dtype: STRING,
                shape: Some(Shape { dim: vec![Dimension { size: 1 }] }),
                string_val: vec![code.into_bytes()],
            }),
            ..Self::default()
        }
    }

    /// How `values` are distributed, those that are finite; `None` if there are none.
    pub fn histogram(tag: &str, values: impl Iterator<Item = f32> + Clone) -> Option<Self> {
        let finite = values.map(f64::from).filter(|value| value.is_finite());
        let min = finite.clone().fold(f64::INFINITY, f64::min);
        let max = finite.clone().fold(f64::NEG_INFINITY, f64::max);
        if min > max {
            return None;
        }
        let n = if min < max { BUCKETS } else { 1 };
        let width = (max - min) / n as f64;
        let limit = |i: usize| if i + 1 == n { max } else { min + (i + 1) as f64 * width };
        let mut histogram = Histogram {
            min,
            max,
            bucket_limit: (0..n).map(limit).collect(),
            bucket: vec![0.0; n],
            ..Histogram::default()
        };
        for value in finite {
            let i = if width > 0.0 { ((value - min) / width) as usize } else { 0 };
            histogram.bucket[i.min(n - 1)] += 1.0;
            histogram.num += 1.0;
            histogram.sum += value;
            histogram.sum_squares += value * value;
        }
        Some(Self { tag: tag.into(), histo: Some(histogram), ..Self::default() })
    }
}

/// The record of an event.
pub fn record(event: &Event) -> Vec<u8> {
    let data = event.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    let sums = [masked_crc32c(&length), masked_crc32c(&data)].map(u32::to_le_bytes);
    [&length[..], &sums[0], &data, &sums[1]].concat()
}

/// The events of a file, up to its end or to the first that is damaged or not whole.
pub fn events(file: &[u8]) -> Vec<Event> {
    let mut rest = file;
    let next = || {
        let (length, after) = rest.split_first_chunk::<8>()?;
        let (sum, after) = after.split_first_chunk::<4>()?;
        let n = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (data, after) = after.split_at_checked(n)?;
        let (data_sum, after) = after.split_first_chunk::<4>()?;
        rest = after;
        let is_intact = [(*sum, &length[..]), (*data_sum, data)]
            .iter()
            .all(|(sum, bytes)| u32::from_le_bytes(*sum) == masked_crc32c(bytes));
        if is_intact { Event::decode(data).ok() } else { None }
    };
    std::iter::from_fn(next).collect()
}

/// A checksum as TFRecord has it, in which a checksum of a checksum is no likely value.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli) of bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| (sum >> 8) ^ CRC32C[usize::from(sum as u8 ^ byte)])
}

/// The checksums of single bytes.
const CRC32C: [u32; 256] = {
    // 0x1edc6f41, bits from the lowest to the highest.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ POLYNOMIAL } else { sum >> 1 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Of RFC 3720, appendix B.4, and the usual check of a CRC.
    #[test]
    fn checksums_are_those_of_the_standard() {
        let ascending: Vec<u8> = (0..32).collect();
        for (bytes, expected) in [
            (b"123456789".as_slice(), 0xe306_9283),
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (&[], 0),
        ] {
            assert_eq!(crc32c(bytes), expected, "{bytes:?}");
        }
    }

    /// The record of `tf.summary`'s first event at time 0, as TensorFlow writes it.
    #[test]
    fn a_record_is_laid_out_as_tfrecord() {
        let [version, _] = Event::begin(0.0);
        let record = record(&version);
        assert_eq!(record[..8], 15u64.to_le_bytes());
        assert_eq!(record[12..27], *b"\x1a\x0dbrain.Event:2");
        assert_eq!(record.len(), 8 + 4 + 15 + 4);
        assert_eq!(events(&record), [version]);
    }

    #[test]
    fn what_is_damaged_ends_a_file() {
        let all = [
            Event::of(1.0, 1, vec![Value::scalar("a", 0.5)]),
            Event::of(2.0, 2, vec![Value::text("b", "x\ny")]),
        ];
        let mut file: Vec<u8> = all.iter().flat_map(record).collect();
        assert_eq!(events(&file), all);
        assert_eq!(events(&file[..file.len() - 1]), all[..1]);
        let last = file.len() - 5;
        file[last] ^= 1;
        assert_eq!(events(&file), all[..1]);
        // A length that is not meant ends it too, and takes no memory.
        assert_eq!(events(&[0xff; 64]), []);
    }

    #[test]
    fn every_finite_value_is_in_a_bucket() {
        let values = [-1.0, 0.0, 0.25, 1.0, 1.0, f32::NAN, f32::INFINITY];
        let histogram = Value::histogram("w", values.into_iter()).unwrap().histo.unwrap();
        assert_eq!((histogram.min, histogram.max, histogram.num, histogram.sum), (-1.0, 1.0, 5.0, 1.25));
        assert_eq!(histogram.bucket.iter().sum::<f64>(), 5.0);
        assert_eq!((histogram.bucket[0], histogram.bucket[BUCKETS - 1]), (1.0, 2.0));
        assert!(histogram.bucket_limit.is_sorted() && histogram.bucket_limit.last() == Some(&1.0));
        let same = Value::histogram("w", [2.0; 3].into_iter()).unwrap().histo.unwrap();
        assert_eq!((same.bucket_limit, same.bucket), (vec![2.0], vec![3.0]));
        assert_eq!(Value::histogram("w", [f32::NAN].into_iter()), None);
    }
}
