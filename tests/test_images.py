"""One image: whatever the file holds, a right 8-bit RGB picture or one line."""

import io
import os
import random

import numpy as np
import pytest
from conftest import write_image
from PIL import Image

from common.errors import InputError
from common.images import class_folders, image_folder, image_tree, open_rgb

RAMP = np.linspace(0, 65535, 32 * 32).reshape(32, 32).round()
TURNS = {  # what undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_become_eight_by_scale(suffix, tmp_path):
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(RAMP.astype(np.uint16)).save(path)
    pixels = np.asarray(open_rgb(path))
    assert pixels.shape == (32, 32, 3) and (pixels[..., 0] == pixels[..., 2]).all()
    assert np.abs(pixels[..., 0] - RAMP / 257).max() <= 1


def test_floats_from_zero_to_one_become_eight_bits_by_scale(tmp_path):
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(tmp_path / "f.tif")
    assert np.abs(np.asarray(open_rgb(tmp_path / "f.tif"))[..., 0] - RAMP / 257).max() <= 1


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (RAMP.astype(np.float32), "floats from 0 to 65535 have no known scale"),
        (np.full((4, 4), np.nan, np.float32), "floats from nan to nan have no known scale"),
        (RAMP.astype(np.int32), "32-bit integers have no known scale"),
    ],
)
def test_pixels_without_a_known_scale_are_one_line_with_the_file_and_what_to_do(pixels, message, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "odd.tif")
    with pytest.raises(InputError, match=rf"odd\.tif: {message}: convert the image to"):
        open_rgb(tmp_path / "odd.tif")


def upright_picture() -> Image.Image:
    corners = np.zeros((2, 3, 3), np.uint8)
    corners[0, 0], corners[0, 2], corners[1, 0] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    return Image.fromarray(corners).resize((96, 64), Image.Resampling.NEAREST)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_turns_an_image_upright(orientation, suffix, tmp_path):
    stored = upright_picture().transpose(TURNS[orientation]) if orientation > 1 else upright_picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"phone.{suffix}", exif=exif, quality=95)
    read = np.asarray(open_rgb(tmp_path / f"phone.{suffix}", upright=True)).astype(int)
    assert read.shape == (64, 96, 3)
    assert np.abs(read - np.asarray(upright_picture()))[16::32, 16::32].max() < 40


def test_published_data_sets_keep_the_orientation_of_the_file(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright_picture().save(tmp_path / "p.jpg", exif=exif)
    assert open_rgb(tmp_path / "p.jpg").size == (96, 64)


def test_damaged_exif_leaves_the_picture(tmp_path):
    upright_picture().save(tmp_path / "p.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_rgb(tmp_path / "p.jpg", upright=True).size == (96, 64)


def test_a_large_jpeg_is_decoded_small_but_not_smaller_than_asked_for(tmp_path):
    Image.new("RGB", (1600, 1000), (10, 200, 90)).save(tmp_path / "large.jpg")
    assert open_rgb(tmp_path / "large.jpg", at_least=200).size == (400, 250)
    assert open_rgb(tmp_path / "large.jpg").size == (1600, 1000)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>404</html>", "it is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "it is a Git LFS pointer"),
        (b"\x00\x01\x02\x03", "its format is not known"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(content, kind, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match=rf"cannot read the image .*a\.jpg: {kind}.*; repair or remove it"):
        open_rgb(tmp_path / "a.jpg")


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_a_picture_or_one_line(tmp_path):
    random_bytes = random.Random(0)
    path = tmp_path / "damaged"
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS"):
        buffer = io.BytesIO()
        Image.effect_noise((24, 20), 80).convert("RGB").save(buffer, kind)
        for _ in range(40):
            data = bytearray(
                buffer.getvalue()[: random_bytes.choice((None, random_bytes.randrange(len(buffer.getvalue()))))]
            )
            for _ in range(random_bytes.randrange(4)):
                if data:
                    data[random_bytes.randrange(min(len(data), 200))] = random_bytes.randrange(256)
            path.write_bytes(data)
            try:
                assert open_rgb(path, upright=True, at_least=16).mode == "RGB"
            except InputError as error:
                assert "\n" not in str(error)


def test_hidden_files_and_folders_are_no_data(tmp_path):
    for name in (
        "a/1.png",
        "b/1.png",
        "a/._1.png",
        "a/.thumbnails/1.png",
        ".ipynb_checkpoints/1.png",
        "__MACOSX/a/1.png",
    ):
        write_image(tmp_path / name, 1)
    (tmp_path / ".DS_Store").touch()
    for folder in (class_folders(tmp_path), image_folder(tmp_path)):
        assert folder.classes == ["a", "b"] and len(folder) == 2
    write_image(tmp_path / "flat" / ".hidden.png", 1)
    write_image(tmp_path / "flat" / "1.png", 1)
    (tmp_path / "flat" / ".cache").mkdir()
    assert len(image_folder(tmp_path / "flat")) == 1


def test_a_pool_below_a_hidden_folder_is_data(tmp_path):
    write_image(tmp_path / ".data" / "a" / "1.png", 1)
    assert len(class_folders(tmp_path / ".data")) == 1


def test_a_link_to_a_folder_around_it_is_not_followed_for_ever(tmp_path):
    write_image(tmp_path / "a" / "1.png", 1)
    for link in ("one", "two"):
        (tmp_path / "a" / link).symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")  # which is data, as before
    assert len(image_tree(tmp_path)) == 2


def test_what_is_no_file_is_one_line_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="pipe.png: it is not a file; repair or remove it"):
        open_rgb(tmp_path / "pipe.png")
