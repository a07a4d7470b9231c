//! An image file: it is decoded, then a random part and the middle of it are resized. The first two bytes choose size and part.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowbit_data::{Augmentation, DecodeLimits, Geometry, RandomResizedCrop, decode, dimensions};

fuzz_target!(|data: &[u8]| {
    let Some((&[size, seed], bytes)) = data.split_first_chunk::<2>() else { return };
    let told = dimensions(bytes);
    let Ok(picture) = decode(bytes, &DecodeLimits { max_pixels: 1 << 20 }) else { return };
    assert_eq!(told, Ok(picture.dimensions));
    assert_eq!(picture.pixels.len() as u64, 3 * picture.dimensions.n_pixels());
    let size = 1 + usize::from(size) % 64;
    let geometry = Geometry { channels: if seed % 4 == 0 { 1 } else { 3 }, size, resize: size + usize::from(seed) % 8 };
    let augmentation = Augmentation { crop: Some(RandomResizedCrop::default()), ..Augmentation::default() };
    let part = augmentation.draw(seed.into(), 0, size, picture.dimensions).crop;
    for crop in [part, None] {
        assert_eq!(geometry.apply(picture.clone(), crop).pixels.len(), geometry.shape().n_values());
    }
});
