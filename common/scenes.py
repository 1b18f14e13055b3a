"""Images whose labels are masks, in ADE20K's layout: <root>/{images,annotations}/{training,validation}, same stems."""

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import InputError
from common.images import ImageFiles, Transform, flat_folder, formats

IGNORED = -1  # the class of pixels that do not count
UNKNOWN = -2
NAMES_FILES = ("classes.txt", "objectInfo150.txt")  # one name per line; ADE20K's own table
GREY_MODES = ("L", "P", "1", "I;16", "I")  # one number per pixel; for a palette image, the index


@dataclass(frozen=True)
class MaskLabels:
    """How the values of a mask name classes.

    With reduce_zero_label (ADE20K's way) value 0 is ignored and v is class v - 1; else v is class v. ignore_label is
    ignored either way.
    """

    classes: tuple[str, ...]
    ignore_label: int = 255
    reduce_zero_label: bool = True

    @cached_property
    def table(self) -> np.ndarray:
        """The class of each mask value."""
        table = np.full(2**16 + 1, UNKNOWN, np.int16)  # the last entry is for all larger values
        first = int(self.reduce_zero_label)
        table[0] = IGNORED
        table[first : first + len(self.classes)] = range(len(self.classes))
        table[self.ignore_label] = IGNORED
        return table

    def read(self, path: Path) -> np.ndarray:
        """Return the class of every pixel (h, w), int16, or IGNORED.

        Raises: InputError if the mask cannot be read, has several channels, or holds a label without a class.
        """
        try:
            with Image.open(path, formats=formats()) as mask:
                mode, values = mask.mode, np.asarray(mask)
        except FileNotFoundError:
            raise InputError(f"mask {path} is not there") from None
        except Exception as error:  # a damaged file can make Pillow raise anything
            raise InputError(f"cannot read the mask {path}: {error}; repair it") from None
        if mode not in GREY_MODES:
            raise InputError(f"mask {path} is an image of mode {mode}: a mask has one channel, with a label per pixel")
        classes = self.table[np.clip(values.astype(np.int64), 0, len(self.table) - 1)]
        if (classes == UNKNOWN).any():
            first = int(self.reduce_zero_label)
            raise InputError(
                f"mask {path} holds label {values[classes == UNKNOWN].max()}, but the {len(self.classes)} classes are "
                f"{first} to {first + len(self.classes) - 1}, and {self.ignore_label} is ignored: "
                "see --ignore-label, --reduce-zero-label and the class names"
            )
        return classes

    def count(self, classes: np.ndarray) -> np.ndarray:
        """Return the number of pixels of each class (c,), without IGNORED ones."""
        return np.bincount(classes[classes != IGNORED], minlength=len(self.classes))

    def values(self, classes: np.ndarray) -> np.ndarray:
        """Convert classes (h, w) to a mask of these labels: 8 bits per pixel, or 16 if there are too many classes."""
        values = classes.astype(np.int64) + int(self.reduce_zero_label)
        return values.astype(np.uint8 if len(self.classes) < 255 else np.uint16)


def class_names(root: Path, names_file: Path | None = None, number: int | None = None) -> tuple[str, ...]:
    """Return the class names: from the file, else from <root>/classes.txt or ADE20K's objectInfo150.txt.

    number: how many there are; without a file, classes are named by their numbers.
    Raises: InputError if nothing tells how many classes there are, or the file and the number disagree.
    """
    found = names_file or next((root / name for name in NAMES_FILES if (root / name).is_file()), None)
    if found is None:
        if number is None:
            names = " or ".join(NAMES_FILES)
            raise InputError(
                f"how many classes are in {root}? Give --class-names or --num-classes, or put {names} there"
            )
        return tuple(f"class {index + 1}" for index in range(number))
    try:
        lines = [line.strip() for line in found.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the class names {found}: {error}") from None
    if lines and "\t" in lines[0]:  # a table: a header line, and the names in the last column
        lines = [line.split("\t")[-1] for line in lines[1:]]
    if not lines or len(set(lines)) < len(lines):
        twice = next((name for name in lines if lines.count(name) > 1), None)
        raise InputError(f"class names {found}: " + (f"{twice!r} appears twice" if lines else "the file is empty"))
    if number not in (None, len(lines)):
        raise InputError(f"--num-classes {number}, but {found} names {len(lines)} classes")
    return tuple(lines)


def mask_labels(args: argparse.Namespace, root: Path) -> MaskLabels:
    """Return how the masks below `root` name classes, by the options (common.command_line.add_mask_options)."""
    names = class_names(root, Path(args.class_names) if args.class_names else None, args.num_classes)
    return MaskLabels(names, args.ignore_label, args.reduce_zero_label)


def scene_images(folder: Path, transform: Transform | None = None) -> ImageFiles:
    """Return the images of a split, sorted by name. Raises InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"image folder {folder} is not there: the layout is <folder>/images/{{training,validation}}")
    return flat_folder(folder, transform).not_empty()


def mask_of(image: Path) -> Path:
    """Return the path of an image's mask: <root>/images/<split>/x.jpg -> <root>/annotations/<split>/x.png"""
    return image.parents[2] / "annotations" / image.parent.name / f"{image.stem}.png"
