//! PNG of every color type and depth.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, DecodingError, InterlaceInfo, Limits, Transformations};

use super::{DecodeError, DecodeLimits};
use crate::{Dimensions, Picture};

const FORMAT: &str = "PNG";

/// What the decoder may take for itself: some rows, which are short, and chunks other than the pixels.
const MAX_BYTES: usize = 1 << 24;

pub(super) fn dimensions(bytes: &[u8]) -> Result<Dimensions, DecodeError> {
    let mut decoder = Decoder::new(Cursor::new(bytes));
    let info = decoder.read_header_info().map_err(error)?;
    Ok(Dimensions { width: info.width, height: info.height })
}

pub(super) fn decode(bytes: &[u8], limits: DecodeLimits) -> Result<Picture, DecodeError> {
    let dimensions = dimensions(bytes)?;
    let _turn = limits.admit(dimensions)?;
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: MAX_BYTES });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(error)?;
    let info = reader.info();
    let palette = info.palette.as_ref().filter(|_| info.color_type == ColorType::Indexed);
    // By a palette that ends within a color, the decoder would panic.
    if let Some(n_bytes) = palette.map(|palette| palette.len()).filter(|n_bytes| n_bytes % 3 != 0) {
        let reason = format_args!("its palette has {n_bytes} bytes, of which 3 are a color");
        return Err(DecodeError::damaged(FORMAT, reason));
    }
    // Transparency by a value of grey becomes a channel too.
    let is_grey = reader.info().color_type == ColorType::Grayscale;
    let (color, depth) = reader.output_color_type();
    let stride = 3 * dimensions.width as usize;
    let mut rgb = vec![0; stride * dimensions.height as usize];
    let mut buffer = vec![0; stride];
    let mut next_row = 0;
    while let Some(row) = reader.next_interlaced_row().map_err(error)? {
        match row.interlace() {
            InterlaceInfo::Null(_) => {
                let output = rgb.get_mut(next_row..next_row + stride);
                to_rgb(row.data(), color, depth, is_grey, output.unwrap_or_default());
                next_row += stride;
            }
            InterlaceInfo::Adam7(pass) => {
                to_rgb(row.data(), color, depth, is_grey, &mut buffer);
                png::expand_interlaced_row(&mut rgb, stride, &buffer, pass, 24);
            }
        }
    }
    Ok(Picture { dimensions, channels: 3, pixels: rgb })
}

/// Writes the pixels of a row as RGB, as many as it has.
fn to_rgb(row: &[u8], color: ColorType, depth: BitDepth, is_grey: bool, output: &mut [u8]) {
    let pixels = output.as_chunks_mut::<3>().0.iter_mut();
    let upper = if depth == BitDepth::Sixteen { 2 } else { 1 };
    let channels = color.samples();
    if upper == 1 && channels == 3 {
        let n = output.len().min(row.len());
        output[..n].copy_from_slice(&row[..n]);
        return;
    }
    for (pixel, values) in pixels.zip(row.chunks_exact(upper * channels)) {
        *pixel = match channels {
            _ if is_grey && upper == 2 => [if values[0] > 0 { 255 } else { values[1] }; 3],
            1 | 2 => [values[0]; 3],
            _ => [values[0], values[upper], values[2 * upper]],
        };
    }
}

fn error(error: DecodingError) -> DecodeError {
    match error {
        DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::CutShort { format: FORMAT }
        }
        error => DecodeError::damaged(FORMAT, error),
    }
}
