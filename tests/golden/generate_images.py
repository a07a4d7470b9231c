#!/usr/bin/env python3
"""Writes images/: image files of every kind that is read, and what Pillow and torchvision make of them.

    /tmp/goldenvenv/bin/pip install torch==2.15.0 torchvision==0.29.2 numpy==2.4.6 pillow==13.0.0
    /tmp/goldenvenv/bin/python tests/golden/generate_images.py

On the same versions a second run writes the same bytes. README.md describes the fields of images.json. Pixels are in expected.bin, row-major
[height, width, 3], one after another, packed with gzip.
"""

import gzip
import io
import json
import math
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torchvision.transforms as transforms
import torchvision.transforms.functional as functional
from PIL import Image

FOLDER = Path(__file__).resolve().parent / "images"


def photo(height, width, seed):
    """A color image whose spectrum falls as that of a photograph."""
    rng = np.random.RandomState(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(y, x), 1 / max(height, width)) ** 1.3

    def field():
        field = np.fft.ifft2(np.fft.fft2(rng.randn(height, width)) * amplitude).real
        return (field - field.mean()) / field.std()

    light = field()
    image = np.stack([125 + 50 * light + 25 * field() for _ in range(3)], -1)
    return np.clip(image, 0, 255).astype(np.uint8)


def jpeg(image, **options):
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, depth, color, palette=None, transparency=None, interlaced=False):
    """A PNG of `values`, [height, width, samples of a pixel], each of `depth` bits."""
    height, width, samples = values.shape

    def rows(part):
        out = b""
        for row in part:
            flat = row.reshape(-1)
            if depth == 16:
                data = flat.astype(">u2").tobytes()
            else:
                bits = (flat[:, None] >> np.arange(depth - 1, -1, -1)) & 1
                data = np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()
            out += b"\0" + data
        return out

    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        parts = [values[top::down, left::right] for top, left, down, right in passes]
        data = b"".join(rows(part) for part in parts if part.size)
    else:
        data = rows(values)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    if palette is not None:
        out += chunk(b"PLTE", palette)
    if transparency is not None:
        out += chunk(b"tRNS", transparency)
    return out + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


def load(data):
    """torchvision's default_loader."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def without_segment(data, marker):
    at = data.index(marker)
    return data[:at] + data[at + 2 + struct.unpack(">H", data[at + 2 : at + 4])[0] :]


def with_components(data, new):
    """The ids of the three components, in the frame and in the scan."""
    data = bytearray(data)
    frame = data.index(b"\xff\xc0")
    scan = data.index(b"\xff\xda")
    for k in range(3):
        data[frame + 10 + 3 * k] = new[k]
        data[scan + 5 + 2 * k] = new[k]
    return bytes(data)


def adobe(transform):
    return b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])


def files():
    image = Image.fromarray(photo(29, 35, 1))
    yield "baseline.jpg", jpeg(image, quality=90)
    yield "small-steps.jpg", jpeg(image, quality=100, subsampling=0)
    yield "coarse.jpg", jpeg(image, quality=30)
    yield "half-wide.jpg", jpeg(image, quality=90, subsampling=1)
    yield "progressive.jpg", jpeg(image, quality=90, progressive=True)
    yield "restart.jpg", jpeg(image, quality=90, restart_marker_blocks=2)
    yield "trailing.jpg", jpeg(image, quality=90) + b"and more"
    yield "grey.jpg", jpeg(image.convert("L"), quality=90)
    yield "one.jpg", jpeg(image.crop((0, 0, 1, 1)), quality=90)
    yield "column.jpg", jpeg(image.crop((7, 0, 8, 29)), quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "rotated.jpg", jpeg(image, quality=90, exif=exif)
    inks = jpeg(image.convert("CMYK"), quality=90)
    yield "cmyk.jpg", inks
    yield "cmyk-bare.jpg", without_segment(inks, b"\xff\xee")
    at = inks.index(b"Adobe") + 11
    yield "ycck.jpg", inks[:at] + b"\2" + inks[at + 1 :]
    as_is = jpeg(image, quality=90, keep_rgb=True)
    yield "rgb-ids.jpg", as_is
    numbered = with_components(as_is, [1, 2, 3])
    if b"\xff\xee" in numbered:
        numbered = without_segment(numbered, b"\xff\xee")
    yield "rgb-adobe.jpg", numbered[:2] + adobe(0) + numbered[2:]

    rng = np.random.RandomState(2)
    for depth in 1, 2, 4, 8, 16:
        values = rng.randint(0, 1 << depth, (11, 13, 1))
        yield f"grey-{depth}.png", png(values, depth, 0)
        if depth < 16:
            palette = rng.bytes(3 << depth)
            yield f"palette-{depth}.png", png(values, depth, 3, palette, b"\0\x80")
    dark = rng.randint(0, 300, (11, 13, 1))
    yield "grey-16-dark.png", png(dark, 16, 0)
    yield "grey-16-key.png", png(dark, 16, 0, transparency=struct.pack(">H", int(dark[0, 0, 0])))
    yield "grey-8-key.png", png(dark % 256, 8, 0, transparency=b"\0\7")
    yield "palette-short.png", png(rng.randint(0, 16, (11, 13, 1)), 8, 3, rng.bytes(24))
    for depth in 8, 16:
        for color, samples in (2, 3), (4, 2), (6, 4):
            values = rng.randint(0, 1 << depth, (11, 13, samples))
            yield f"color-{color}-{depth}.png", png(values, depth, color)
            yield f"color-{color}-{depth}-interlaced.png", png(values, depth, color, interlaced=True)
    yield "grey-1-interlaced.png", png(rng.randint(0, 2, (11, 13, 1)), 1, 0, interlaced=True)
    yield "photo.png", png(photo(67, 90, 3), 8, 2)
    yield "one.png", png(photo(4, 4, 4)[:1, :1], 8, 2)
    yield "wide.png", png(np.arange(20000)[None, :, None] // 90, 8, 0)


def main():
    # Pillow notes that transparency is dropped.
    warnings.simplefilter("ignore")
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    expected = b""
    out = {"decoded": [], "cropped": [], "middle": [], "fallback": [], "sides": [], "colors": []}

    def pixels(image):
        nonlocal expected
        at = len(expected)
        expected += np.asarray(image).tobytes()
        return {"width": image.width, "height": image.height, "at": at}

    sources = {}
    for name, data in files():
        (FOLDER / name).write_bytes(data)
        sources[name] = load(data)
        entry = {"file": name}
        # Long, but plain.
        if name != "wide.png":
            entry |= pixels(sources[name])
        out["decoded"].append(entry)

    source = sources["photo.png"]
    for file, left, top, width, height, size in [
        ("photo.png", 0, 0, 90, 67, 32),
        ("photo.png", 13, 9, 50, 41, 32),
        ("photo.png", 13, 9, 50, 41, 64),
        ("photo.png", 40, 2, 24, 24, 24),
        ("photo.png", 0, 0, 24, 67, 24),
        ("photo.png", 89, 66, 1, 1, 16),
        ("photo.png", 5, 6, 80, 60, 7),
        ("one.png", 0, 0, 1, 1, 16),
        ("wide.png", 3000, 0, 4000, 1, 16),
    ]:
        image = functional.resized_crop(sources[file], top, left, height, width, [size, size])
        box = {"left": left, "top": top, "width": width, "height": height}
        out["cropped"].append({"file": file, "box": box, "size": size, "pixels": pixels(image)})
    for file, resize, size in [
        ("photo.png", 36, 32),
        ("photo.png", 32, 32),
        ("photo.png", 67, 33),
        ("photo.png", 67, 32),
        ("photo.png", 100, 64),
        ("photo.png", 23, 8),
        ("one.png", 9, 8),
        ("wide.png", 9, 8),
        ("palette-8.png", 20, 16),
    ]:
        image = functional.center_crop(functional.resize(sources[file], resize), [size, size])
        out["middle"].append({"file": file, "resize": resize, "size": size, "pixels": pixels(image)})

    # No draw of these areas fits.
    for width, height in [(20000, 1), (1, 20000), (300, 20), (21, 300), (1000, 7)]:
        image = Image.new("L", (width, height))
        top, left, h, w = transforms.RandomResizedCrop.get_params(image, [0.9, 1.0], [3 / 4, 4 / 3])
        box = {"left": left, "top": top, "width": w, "height": h}
        out["fallback"].append({"width": width, "height": height, "box": box})
    rng = np.random.RandomState(5)
    for _ in range(40):
        width, height = (int(side) for side in rng.randint(1, 600, 2))
        area, ratio = width * height * float(rng.uniform(0.08, 1)), math.exp(float(rng.uniform(-0.3, 0.3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        fits = 0 < w <= width and 0 < h <= height
        out["sides"].append({"image": [width, height], "area": area, "ratio": ratio, "sides": [w, h] if fits else None})

    small = source.crop((20, 10, 44, 28))
    out["color_source"] = pixels(small)
    for kind, adjust, factors in [
        ("brightness", functional.adjust_brightness, [0.3, 1.0, 1.6]),
        ("contrast", functional.adjust_contrast, [0.0, 0.45, 1.9]),
        ("saturation", functional.adjust_saturation, [0.0, 0.6, 2.3]),
        ("hue", functional.adjust_hue, [-0.4, -0.1, 0.02, 0.5]),
    ]:
        for factor in factors:
            out["colors"].append({"change": kind, "factor": factor, "pixels": pixels(adjust(small, factor))})
    (FOLDER / "expected.bin").write_bytes(gzip.compress(expected, 9, mtime=0))
    text = json.dumps(out, indent=None, separators=(", ", ": "))
    text = text.replace("}, {", "},\n    {").replace(': [{', ': [\n    {')
    (FOLDER / "images.json").write_text(text + "\n")


main()
