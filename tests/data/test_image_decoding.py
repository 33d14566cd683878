"""Images of any kind are read as 8-bit RGB, in the size and orientation of the annotations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_detr.data import read_image
from modeling_detr.data.image_headers import header_size
from modeling_detr.structures_detr import ImageRecord


def _picture(height: int = 24, width: int = 36) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 5, columns * 5, rows + columns], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_pixels_are_read_as_stored(tmp_path):
    path = tmp_path / "picture.png"
    _picture().save(path)
    expected = torch.from_numpy(np.array(_picture())).permute(2, 0, 1)
    assert torch.equal(read_image(ImageRecord(1, str(path), 24, 36)), expected)
    _picture().save(path.with_suffix(".jpg"), quality=95)
    read = read_image(ImageRecord(1, str(path.with_suffix(".jpg")), 24, 36))
    assert read.dtype == torch.uint8
    assert float((read.float() - expected.float()).abs().mean()) < 4


MODES = {
    ".jpg": ["RGB", "L", "CMYK"],
    ".png": ["RGB", "L", "P", "RGBA", "LA", "1", "I;16"],
    ".tif": ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"],
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
def test_every_mode_becomes_rgb(tmp_path, suffix, mode):
    grey = np.full((10, 12), 128)
    image = (
        Image.fromarray((grey * 257).astype(np.uint16)) if mode == "I;16" else Image.fromarray(grey.astype(np.uint8))
    )
    image = image if mode == "I;16" else image.convert("RGB").convert(mode) if mode != "L" else image
    path = tmp_path / f"image{suffix}"
    image.save(path)
    read = read_image(ImageRecord(1, str(path), 10, 12))
    assert read.shape == (3, 10, 12)
    if mode != "1":
        assert abs(float(read.float().mean()) - 128) < 4


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_exif_orientation_is_applied_if_the_record_agrees(tmp_path, suffix, orientation):
    path = tmp_path / f"turned{suffix}"
    _picture().save(path, exif=_exif(orientation))
    stored = read_image(ImageRecord(1, str(path), 24, 36))
    height, width = header_size(str(path))
    assert (height, width) == ((36, 24) if orientation in (6, 8) else (24, 36))
    oriented = read_image(ImageRecord(1, str(path), height, width))
    turns = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    if orientation in (6, 8):  # the record's size tells which of the two was annotated
        assert torch.equal(oriented, torch.rot90(stored, turns, (1, 2)))
    elif orientation == 3:
        plain = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        assert torch.equal(oriented, torch.rot90(plain, turns, (1, 2)))


def test_a_size_that_differs_from_the_annotations_is_an_error(tmp_path):
    path = tmp_path / "other.png"
    _picture().save(path)
    with pytest.raises(ValueError, match=r"other.png: the image is 36x24 \(width x height\), but .* are for 37x24"):
        read_image(ImageRecord(1, str(path), 24, 37))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_broken_images_are_named(tmp_path, suffix, share):
    path = tmp_path / f"broken{suffix}"
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(OSError, match=f"broken{suffix}: the image cannot be decoded"):
        read_image(ImageRecord(1, str(path), 64, 64))


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.jpg: no such image; restore it"):
        read_image(ImageRecord(1, str(Path(tmp_path) / "gone.jpg"), 4, 4))


JPEG_OPTIONS = {
    "chroma at half the resolution": {"subsampling": "4:2:0"},
    "chroma at half the width": {"subsampling": "4:2:2"},
    "chroma at full resolution": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "low quality": {"quality": 10},
    "restart markers": {"restart_marker_blocks": 2},
    "RGB": {"keep_rgb": True},
}


@pytest.mark.parametrize("options", JPEG_OPTIONS.values(), ids=JPEG_OPTIONS)
def test_jpeg_pixels_are_those_of_pillow(tmp_path, options):
    path = tmp_path / "image.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (45, 67, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    expected = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    assert torch.equal(read_image(ImageRecord(1, str(path), 45, 67)), expected)


@pytest.mark.parametrize("damage", ["bytes before a marker", "corrupt data"])
def test_a_jpeg_file_that_pillow_reads_in_spite_of_warnings_has_its_pixels(tmp_path, damage):
    path = tmp_path / "image.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    content = bytearray(path.read_bytes())
    if damage == "corrupt data":
        content[len(content) // 2 : len(content) // 2 + 8] = bytes(range(1, 9))
    else:
        content[-2:-2] = bytes(8)
    path.write_bytes(content)
    expected = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    assert torch.equal(read_image(ImageRecord(1, str(path), 64, 64)), expected)
