//! Tensors of integers of 1 to 8 bits without gaps.

use crate::bits::BitWidth;

/// A tensor of integers of `bits` bits each, from 0 to `2^bits - 1`: the indices of codes, see
/// [`IntegerGrid::pack`](crate::IntegerGrid::pack).
///
/// # Layout
/// A row is a slice along the first axis (an output channel of weights), in row-major order; it begins with a byte of its own. Element
/// `i` of a row has the bits `bits * i` to `bits * i + bits - 1` of it, the least significant one first, and bit `j` of a row is the
/// bit of value `2^(j % 8)` in byte `j / 8`. Bits after the last element of a row are 0. A tensor without axes is one row of one
/// element. Equal tensors have equal bytes.
///
/// # Example
/// ```
/// use lowbit_core::{BitWidth, PackedCodes};
///
/// let packed = PackedCodes::pack(&[1, 2, 3, 0, 7, 4], BitWidth::new(3)?, &[2, 3])?;
/// assert_eq!(packed.bytes(), [0b11_010_001, 0b0, 0b00_111_000, 0b1]);
/// assert_eq!(packed.unpack(), [1, 2, 3, 0, 7, 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PackedCodes {
    bits: BitWidth,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Sizes of a packed tensor.
#[derive(Clone, Copy)]
struct Sizes {
    /// Elements of a row.
    row: usize,
    row_bytes: usize,
    elements: usize,
    bytes: usize,
}

impl Sizes {
    /// `None` if they are beyond what a machine can count.
    fn new(bits: BitWidth, shape: &[usize]) -> Option<Self> {
        let (&rows, rest) = shape.split_first().unwrap_or((&1, &[]));
        let row = rest.iter().try_fold(1usize, |row, &size| row.checked_mul(size))?;
        let row_bytes = row.checked_mul(bits.get() as usize)?.div_ceil(8);
        Some(Self { row, row_bytes, elements: rows.checked_mul(row)?, bytes: rows.checked_mul(row_bytes)? })
    }

    fn checked(bits: BitWidth, shape: &[usize]) -> Result<Self, PackedCodesError> {
        Self::new(bits, shape).ok_or_else(|| PackedCodesError::Size { shape: shape.to_vec() })
    }
}

impl PackedCodes {
    /// Packs the elements of a tensor of this shape, given in row-major order.
    ///
    /// # Errors
    /// [`PackedCodesError`] if there are not as many as the shape has, or one does not fit into the bits.
    pub fn pack(elements: &[u8], bits: BitWidth, shape: &[usize]) -> Result<Self, PackedCodesError> {
        let sizes = Sizes::checked(bits, shape)?;
        if elements.len() != sizes.elements {
            return Err(PackedCodesError::Elements { got: elements.len(), expected: sizes.elements });
        }
        if let Some(place) = elements.iter().position(|&element| u32::from(element) >= bits.levels()) {
            return Err(PackedCodesError::Code { place, got: i64::from(elements[place]) });
        }
        let mut bytes = Vec::with_capacity(sizes.bytes);
        for row in elements.chunks(sizes.row.max(1)) {
            // At most 7 bits wait for a full byte when 8 more come.
            let (mut waiting, mut n_waiting) = (0u16, 0);
            for &element in row {
                waiting |= u16::from(element) << n_waiting;
                n_waiting += bits.get();
                if n_waiting >= 8 {
                    bytes.push(waiting as u8);
                    waiting >>= 8;
                    n_waiting -= 8;
                }
            }
            if n_waiting > 0 {
                bytes.push(waiting as u8);
            }
        }
        Ok(Self { bits, shape: shape.to_vec(), bytes })
    }

    /// How many bytes a packed tensor of this shape has.
    ///
    /// # Errors
    /// [`PackedCodesError::Size`] if they are more than can be counted.
    pub fn n_bytes(bits: BitWidth, shape: &[usize]) -> Result<usize, PackedCodesError> {
        Ok(Sizes::checked(bits, shape)?.bytes)
    }

    /// A packed tensor from its bytes, as [`bytes`](Self::bytes) gives them: of any origin, as nothing is taken for granted.
    ///
    /// # Errors
    /// [`PackedCodesError`] if the bytes are not as many as the shape asks for, or the bits after a row are not all 0.
    pub fn from_bytes(bytes: Vec<u8>, bits: BitWidth, shape: &[usize]) -> Result<Self, PackedCodesError> {
        let sizes = Sizes::checked(bits, shape)?;
        if bytes.len() != sizes.bytes {
            return Err(PackedCodesError::Bytes { got: bytes.len(), expected: sizes.bytes });
        }
        // Fewer than 8, of the last byte of a row.
        let n_unused = (8 - sizes.row % 8 * bits.get() as usize % 8) % 8;
        if n_unused > 0 {
            let is_set = |row: &[u8]| row.last().is_some_and(|byte| byte.leading_zeros() < n_unused as u32);
            if let Some(row) = bytes.chunks(sizes.row_bytes).position(is_set) {
                return Err(PackedCodesError::Padding { row });
            }
        }
        Ok(Self { bits, shape: shape.to_vec(), bytes })
    }

    /// The elements, in row-major order.
    pub fn unpack(&self) -> Vec<u8> {
        let sizes = Sizes::new(self.bits, &self.shape).expect("invariant: a packed tensor has a size");
        let mut elements = vec![0; sizes.elements];
        if sizes.elements == 0 {
            return elements;
        }
        let unpack_row = match self.bits.get() {
            1 => unpack_row::<1, 8>,
            2 => unpack_row::<1, 4>,
            3 => unpack_row::<3, 8>,
            4 => unpack_row::<1, 2>,
            5 => unpack_row::<5, 8>,
            6 => unpack_row::<3, 4>,
            7 => unpack_row::<7, 8>,
            _ => unpack_row::<1, 1>,
        };
        for (row, elements) in self.bytes.chunks(sizes.row_bytes).zip(elements.chunks_mut(sizes.row)) {
            unpack_row(row, elements);
        }
        elements
    }

    /// The bits of an element.
    pub fn bits(&self) -> BitWidth {
        self.bits
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes, by the layout above.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Unpacks a row: every `BYTES` bytes have `N` elements, none of which is parted. The last bytes may have fewer.
fn unpack_row<const BYTES: usize, const N: usize>(row: &[u8], elements: &mut [u8]) {
    let bits = 8 * BYTES / N;
    let mask = ((1u32 << bits) - 1) as u8;
    let all = |group: &[u8; BYTES]| -> [u8; N] {
        // The compiler makes vector instructions of this, once for each number of bits.
        let mut bytes = [0; 8];
        bytes[..BYTES].copy_from_slice(group);
        let word = u64::from_le_bytes(bytes);
        std::array::from_fn(|i| (word >> (bits * i)) as u8 & mask)
    };
    let (groups, rest) = row.as_chunks::<BYTES>();
    let (of_groups, of_rest) = elements.as_chunks_mut::<N>();
    for (elements, group) in of_groups.iter_mut().zip(groups) {
        *elements = all(group);
    }
    if !of_rest.is_empty() {
        // The last group that is begun.
        let mut last = [0; BYTES];
        let begun = groups.get(of_groups.len()).map_or(rest, |group| group.as_slice());
        last[..begun.len()].copy_from_slice(begun);
        of_rest.copy_from_slice(&all(&last)[..of_rest.len()]);
    }
}

/// What cannot be packed, or is no packed tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackedCodesError {
    /// More elements than a machine can count.
    #[error("a tensor of shape {shape:?} has more elements than can be counted")]
    Size {
        /// The shape.
        shape: Vec<usize>,
    },
    /// Another number of elements than the shape has.
    #[error("the shape has {expected} elements, got {got}")]
    Elements {
        /// How many there are.
        got: usize,
        /// How many the shape has.
        expected: usize,
    },
    /// Another number of bytes than the shape takes.
    #[error("the shape takes {expected} bytes, got {got}")]
    Bytes {
        /// How many there are.
        got: usize,
        /// How many the shape takes.
        expected: usize,
    },
    /// Other bits than those of the grid.
    #[error("the codes of this grid have {expected} bits, got {got}")]
    Bits {
        /// The bits.
        got: BitWidth,
        /// Those of the grid.
        expected: BitWidth,
    },
    /// A number that is no code, or none of these bits.
    #[error("element {place} is no code: {got}")]
    Code {
        /// Its place, in row-major order.
        place: usize,
        /// What it is: a code to be packed, or an index.
        got: i64,
    },
    /// Bits that are set after the last element of a row.
    #[error("bits after the end of row {row} are not 0")]
    Padding {
        /// The row.
        row: usize,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bits(bits: u32) -> BitWidth {
        BitWidth::new(bits).unwrap()
    }

    /// By the words of the layout, a bit at a time.
    fn bit_by_bit(elements: &[u8], bits: u32, rows: usize) -> Vec<u8> {
        let row = elements.len().checked_div(rows).unwrap_or(0);
        let mut bytes = Vec::new();
        for row in elements.chunks(row.max(1)) {
            let mut of_row = vec![0u8; (row.len() * bits as usize).div_ceil(8)];
            for (i, element) in row.iter().enumerate() {
                for bit in 0..bits {
                    let j = i * bits as usize + bit as usize;
                    of_row[j / 8] |= (element >> bit & 1) << (j % 8);
                }
            }
            bytes.extend(of_row);
        }
        bytes
    }

    fn problem() -> impl Strategy<Value = (u32, Vec<usize>, Vec<u8>)> {
        (1u32..=8, prop::collection::vec(0usize..6, 0..5)).prop_flat_map(|(bits, shape)| {
            let n: usize = shape.iter().product();
            let element = 0..=((1u32 << bits) - 1) as u8;
            (Just(bits), Just(shape), prop::collection::vec(element, n))
        })
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked((n_bits, shape, elements) in problem()) {
            let packed = PackedCodes::pack(&elements, bits(n_bits), &shape).unwrap();
            let rows = shape.first().copied().unwrap_or(1);
            prop_assert_eq!(packed.bytes(), bit_by_bit(&elements, n_bits, rows));
            prop_assert_eq!(packed.unpack(), elements);
            let again = PackedCodes::from_bytes(packed.bytes().to_vec(), bits(n_bits), &shape).unwrap();
            prop_assert_eq!(again, packed);
        }

        /// Whatever the bytes: they are refused, or they are the ones that their elements are packed to.
        #[test]
        fn bytes_of_any_origin_are_checked(
            n_bits in 1u32..=8,
            shape in prop::collection::vec(0usize..4, 0..4),
            bytes in prop::collection::vec(any::<u8>(), 0..12),
        ) {
            if let Ok(packed) = PackedCodes::from_bytes(bytes.clone(), bits(n_bits), &shape) {
                let again = PackedCodes::pack(&packed.unpack(), bits(n_bits), &shape).unwrap();
                prop_assert_eq!(again.bytes(), bytes);
            }
        }
    }

    #[test]
    fn every_length_of_a_row_is_padded_to_bytes() {
        for n_bits in 1..=8 {
            for row in 0..20usize {
                let n_bytes = PackedCodes::n_bytes(bits(n_bits), &[3, row]);
                assert_eq!(n_bytes, Ok(3 * (row * n_bits as usize).div_ceil(8)));
                let elements: Vec<u8> = (0..3 * row).map(|i| (i * 37 % (1 << n_bits)) as u8).collect();
                let packed = PackedCodes::pack(&elements, bits(n_bits), &[3, row]).unwrap();
                assert_eq!(Ok(packed.bytes().len()), n_bytes);
                assert_eq!(packed.unpack(), elements);
            }
        }
    }

    #[test]
    fn lengths_and_bits_that_do_not_fit_are_refused() {
        let pack =
            |elements: &[u8], shape: &[usize]| PackedCodes::pack(elements, bits(2), shape).unwrap_err();
        assert_eq!(pack(&[0; 5], &[2, 3]), PackedCodesError::Elements { got: 5, expected: 6 });
        assert_eq!(pack(&[0, 3, 4], &[1, 3]), PackedCodesError::Code { place: 2, got: 4 });
        let read = |bytes: &[u8], shape: &[usize]| PackedCodes::from_bytes(bytes.to_vec(), bits(2), shape);
        assert_eq!(read(&[0], &[2, 3]), Err(PackedCodesError::Bytes { got: 1, expected: 2 }));
        assert_eq!(read(&[0; 3], &[2, 3]), Err(PackedCodesError::Bytes { got: 3, expected: 2 }));
        assert_eq!(read(&[0x3f, 0x40], &[2, 3]), Err(PackedCodesError::Padding { row: 1 }));
        assert!(read(&[0x3f, 0x3f], &[2, 3]).is_ok());
        let huge = usize::MAX / 2;
        for shape in [vec![huge, 3], vec![1, 2 * huge], vec![3, huge / 2, 2], vec![0, huge, huge]] {
            assert_eq!(read(&[], &shape), Err(PackedCodesError::Size { shape: shape.clone() }));
        }
        // Rows of nothing take no bytes, however many there are, nor do no rows, however long.
        for shape in [[huge, 0], [0, huge]] {
            assert!(read(&[], &shape).unwrap().unpack().is_empty());
        }
    }
}
