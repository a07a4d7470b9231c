//! Images to time a table with, where its own are not at hand.

use std::fs;
use std::path::Path;

use anyhow::Context;
use tempfile::TempDir;

/// Width and height of an image: those of most photographs of ImageNet.
const SIZE: [u32; 2] = [500, 375];

/// Classes of ImageNet.
const N_CLASSES: usize = 1000;

/// Images of each class in each part: enough for what is timed.
const N_IMAGES: usize = 3;

/// A folder in the layout of ILSVRC-2012, which is removed when this is dropped. All its images are the same: what a step takes does
/// not depend on what is in them.
pub fn imagenet() -> anyhow::Result<TempDir> {
    let folder = tempfile::tempdir().context("failed to create a folder for generated images")?;
    let image = folder.path().join("image.png");
    let write = || -> anyhow::Result<()> {
        fs::write(&image, png()?)?;
        for part in ["train", "val"] {
            for class in 0..N_CLASSES {
                let directory = folder.path().join(part).join(format!("n{class:08}"));
                fs::create_dir_all(&directory)?;
                (0..N_IMAGES)
                    .try_for_each(|number| link(&image, &directory.join(format!("{number}.png"))))?;
            }
        }
        Ok(())
    };
    write().with_context(|| format!("failed to generate images in {}", folder.path().display()))?;
    Ok(folder)
}

/// One file by two names, or a copy where a file system has no links.
fn link(file: &Path, name: &Path) -> std::io::Result<()> {
    fs::hard_link(file, name).or_else(|_| fs::copy(file, name).map(drop))
}

/// A picture with edges and shades.
fn png() -> anyhow::Result<Vec<u8>> {
    let [width, height] = SIZE;
    let shade = |x: u32, y: u32| [(x * y / 97) as u8, ((x / 9) ^ (y / 7)) as u8, (x + 2 * y) as u8];
    let pixels: Vec<u8> = (0..height).flat_map(|y| (0..width).flat_map(move |x| shade(x, y))).collect();
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(&pixels)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_removed() {
        let folder = imagenet().unwrap();
        let path = folder.path().to_owned();
        assert_eq!(fs::read_dir(path.join("val")).unwrap().count(), N_CLASSES);
        assert!(fs::metadata(path.join("train/n00000999/2.png")).unwrap().len() > 10_000);
        drop(folder);
        assert!(!path.exists());
    }
}
