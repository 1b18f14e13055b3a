"""Reading one image: whatever a file holds, the result is an 8-bit RGB picture or an error of one line."""

import io
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.errors import InputError
from common.files import kind_of_file

# EXIF orientation, and what turns the image upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112
REPAIR = "repair or remove it"
UNREADABLE = (Exception,)  # Pillow's decoders raise whatever a damaged file leads them to
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # they have no 32-bit integers, but some Pillows open 16 bits as mode I

warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged metadata of readable images, a warning for each image


def open_rgb(
    path: str | Path, upright: bool = False, at_least: int | None = None, content: bytes | None = None
) -> Image.Image:
    """The image as 8-bit RGB; 16 bits are scaled to 8, and floats from 0..1.

    (departure) The published code clips 16-bit and float images: nearly all of their pixels become white or black.

    Args:
        upright: apply the EXIF orientation, as the published code does not.
        at_least: decode a larger JPEG at 1/2, 1/4 or 1/8 of its size, so that both sides keep this many pixels.
        content: the file's bytes, where it lies in no folder; `path` is what errors call it then.
    Raises:
        InputError, naming the file, when it cannot be decoded or its pixel values have no known scale.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=formats()) as image:
            if at_least:
                image.draft(None, (at_least, at_least))
            rgb = _eight_bits(image).convert("RGB")
            return _turned_upright(rgb, image) if upright else rgb
    except InputError as error:
        problem = str(error)
    except UnidentifiedImageError:
        kind = kind_of_file(path) if content is None else None
        problem = f"{kind or 'its format is not known'}; {REPAIR}"
    except UNREADABLE as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        problem = f"{said.splitlines()[0]}; {REPAIR}"
    raise InputError(f"cannot read the image {path}: {problem}")


@cache
def formats() -> list[str]:
    """What Pillow reads, without PostScript, which it has Ghostscript run as a program."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Raises InputError for pixels that are neither of 8 or 16 bits nor floats in 0..1."""
    if image.mode.startswith("I"):
        if image.mode == "I" and image.format not in SIXTEEN_BIT_FORMATS:
            raise InputError("32-bit integers have no known scale: convert it to 8 or 16 bits")
        # The higher byte, which is also what Pillow takes of 16-bit colours.
        return Image.fromarray((np.asarray(image).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # also where one is NaN
            span = f"{values.min():g} to {values.max():g}"
            raise InputError(f"floats from {span} have no known scale: convert it to floats in 0..1 or to 8 bits")
        return Image.fromarray((255 * values).round().astype(np.uint8))
    return image


def _turned_upright(rgb: Image.Image, source: Image.Image) -> Image.Image:
    try:  # after decoding: some decoders turn the image themselves, and then drop the orientation
        turn = TURNS.get(source.getexif().get(ORIENTATION))
    except Exception:  # damaged metadata
        return rgb
    return rgb if turn is None else rgb.transpose(turn)
