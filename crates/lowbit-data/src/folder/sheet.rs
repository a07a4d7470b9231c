//! A sheet of images as the network is shown them.

use std::sync::Arc;

use crate::{DataError, Dimensions, Loader, LoaderConfig, Normalization, Picture, Source, in_turn, subset};

/// Pixels between the images of a sheet.
const GAP: usize = 2;

/// Puts the first images of `source`, those of all classes in turn, side by side as `config` serves them in their first epoch,
/// but neither shuffled nor normalized: at most `columns` in a row, and `rows` rows.
///
/// # Errors
/// If they cannot be served.
pub fn contact_sheet(
    source: Arc<dyn Source>,
    config: LoaderConfig,
    columns: usize,
    rows: usize,
) -> Result<Picture, DataError> {
    let labels: Vec<u16> = (0..source.info().n_samples).map(|sample| source.label(sample)).collect();
    let shown = in_turn(&labels, columns.max(1) * rows.max(1));
    let n_channels =
        config.geometry.map(|geometry| geometry.channels).or(source.info().shape.map(|shape| shape.channels));
    let n_channels = n_channels.unwrap_or(3);
    let config = LoaderConfig {
        batch_size: columns.max(1),
        shuffle: false,
        drop_last: false,
        normalization: Normalization { mean: vec![0.0; n_channels], std: vec![1.0; n_channels] },
        ..config
    };
    let loader = Loader::new(subset(source, shown), config)?;
    let batches = loader.epoch(0, 0).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = batches.first() else { return Err(DataError::Empty { name: "the sheet".into() }) };
    let [n_columns, channels, height, width] = first.shape;
    let (step_x, step_y) = (width + GAP, height + GAP);
    let (sheet_width, sheet_height) = (n_columns * step_x + GAP, batches.len() * step_y + GAP);
    // Between black and white, which images are more often.
    let mut pixels = vec![128u8; sheet_width * sheet_height * 3];
    for (row, batch) in batches.iter().enumerate() {
        for (column, image) in batch.images.chunks_exact(channels * height * width).enumerate() {
            for y in 0..height {
                for x in 0..width {
                    let at = ((row * step_y + GAP + y) * sheet_width + column * step_x + GAP + x) * 3;
                    for color in 0..3 {
                        // Grey is shown in three equal channels.
                        let value = image[(color.min(channels - 1) * height + y) * width + x];
                        pixels[at + color] = (value * 255.0).round_ties_even().clamp(0.0, 255.0) as u8;
                    }
                }
            }
        }
    }
    let dimensions = Dimensions { width: sheet_width as u32, height: sheet_height as u32 };
    Ok(Picture { dimensions, channels: 3, pixels })
}
