//! JPEG, baseline and progressive.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{DecodeError, DecodeLimits};
use crate::{Dimensions, Picture};

const FORMAT: &str = "JPEG";
const CUT_SHORT: DecodeError = DecodeError::CutShort { format: FORMAT };

/// What the segments before the first scan say.
#[derive(Debug, Default)]
struct Header {
    frame: Option<Frame>,
    /// Where `Adobe` stands, and the color transform that it names.
    adobe: Option<(usize, u8)>,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    dimensions: Dimensions,
    n_components: u8,
}

impl Header {
    /// Reads one segment: its marker, and its content, which begins at byte `at` of the file.
    fn add(&mut self, marker: u8, content: &[u8], at: usize) {
        match (marker, content) {
            // Frames of any kind, but the tables that share their range: DHT, JPG and DAC.
            (0xc0..=0xcf, &[_, h0, h1, w0, w1, n_components, ..])
                if ![0xc4, 0xc8, 0xcc].contains(&marker) =>
            {
                let [width, height] = [[w0, w1], [h0, h1]].map(|side| u16::from_be_bytes(side).into());
                self.frame.get_or_insert(Frame { dimensions: Dimensions { width, height }, n_components });
            }
            (0xee, &[b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, transform, ..]) => {
                self.adobe = Some((at, transform));
            }
            _ => {}
        }
    }
}

/// Reads the segments up to the first scan, or to the frame if that is enough; returns where what follows begins.
fn read_header(bytes: &[u8], is_frame_enough: bool) -> Result<(Header, usize), DecodeError> {
    let mut header = Header::default();
    let mut at = 2;
    loop {
        // What stands between segments is passed over, as libjpeg does.
        at += bytes.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == 0xff)).ok_or(CUT_SHORT)?;
        at += bytes[at..].iter().position(|&byte| byte != 0xff).ok_or(CUT_SHORT)?;
        let marker = bytes[at];
        at += 1;
        // Markers that stand alone.
        if matches!(marker, 0x00 | 0x01 | 0xd0..=0xd8) {
            continue;
        }
        if marker == 0xd9 {
            return Err(DecodeError::damaged(FORMAT, "it ends before its first scan"));
        }
        let length = bytes.get(at..at + 2).ok_or(CUT_SHORT)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let content = at + 2..at + length.max(2);
        at = content.end;
        header.add(marker, bytes.get(content.clone()).ok_or(CUT_SHORT)?, content.start);
        if marker == 0xda || is_frame_enough && header.frame.is_some() {
            return Ok((header, at));
        }
    }
}

fn frame(header: &Header) -> Result<Frame, DecodeError> {
    header.frame.ok_or_else(|| DecodeError::damaged(FORMAT, "there is no frame before its first scan"))
}

pub(super) fn dimensions(bytes: &[u8]) -> Result<Dimensions, DecodeError> {
    let (header, _) = read_header(bytes, true)?;
    Ok(frame(&header)?.dimensions)
}

pub(super) fn decode(bytes: &[u8], limits: DecodeLimits) -> Result<Picture, DecodeError> {
    let (header, scan) = read_header(bytes, false)?;
    let Frame { dimensions, n_components } = frame(&header)?;
    let _turn = limits.admit(dimensions)?;
    if !matches!(n_components, 1 | 3 | 4) {
        return Err(DecodeError::damaged(FORMAT, format_args!("{n_components} color components")));
    }
    // The decoder fills what is missing with grey. Within a scan there is no such mark.
    if !bytes[scan..].windows(2).rev().any(|mark| mark == b"\xff\xd9") {
        return Err(CUT_SHORT);
    }
    match header.adobe {
        // Red, green and blue as they are. The decoder would take them for inks.
        Some((at, 0)) if n_components == 3 => {
            let mut bytes = bytes.to_vec();
            bytes[at] = b'a';
            run(&bytes, Colors::AsTheyAre, dimensions)
        }
        _ => run(bytes, Colors::ToRgb, dimensions),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Colors {
    ToRgb,
    AsTheyAre,
}

fn run(bytes: &[u8], colors: Colors, dimensions: Dimensions) -> Result<Picture, DecodeError> {
    let sides = [dimensions.width as usize, dimensions.height as usize];
    let options = DecoderOptions::default()
        .set_max_width(sides[0])
        .set_max_height(sides[1])
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let damaged = |error: zune_jpeg::errors::DecodeErrors| DecodeError::damaged(FORMAT, error);
    decoder.decode_headers().map_err(damaged)?;
    if decoder.dimensions() != Some((sides[0], sides[1])) {
        return Err(DecodeError::damaged(FORMAT, "it has several frames"));
    }
    if let (Colors::AsTheyAre, Some(stored)) = (colors, decoder.input_colorspace()) {
        decoder.set_options(options.jpeg_set_out_colorspace(stored));
    }
    let pixels = decoder.decode().map_err(damaged)?;
    Ok(Picture { dimensions, channels: 3, pixels })
}
