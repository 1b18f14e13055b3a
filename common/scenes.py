"""Images whose labels are masks, in ADE20K's layout: <root>/{images,annotations}/{training,validation}, same stems."""

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from common.errors import InputError
from common.images import ImageFiles, Transform, flat_folder, formats

IGNORED = -1  # the class of a pixel that counts for nothing
UNKNOWN = -2
NAMES_FILES = ("classes.txt", "objectInfo150.txt")  # one name per line; ADE20K's own table
GREY_MODES = ("L", "P", "1", "I;16", "I")  # one number per pixel; of a palette image, the index


@dataclass(frozen=True)
class MaskLabels:
    """How the values of a mask name classes.

    With reduce_zero_label (ADE20K's way) value 0 is ignored and v is class v - 1, else v is class v. ignore_label is
    ignored either way.
    """

    classes: tuple[str, ...]
    ignore_label: int = 255
    reduce_zero_label: bool = True

    @cached_property
    def table(self) -> np.ndarray:
        """The class of every value."""
        table = np.full(2**16 + 1, UNKNOWN, np.int16)  # the last is of all larger values
        first = int(self.reduce_zero_label)
        table[0] = IGNORED
        table[first : first + len(self.classes)] = range(len(self.classes))
        table[self.ignore_label] = IGNORED
        return table

    def read(self, path: Path) -> np.ndarray:
        """The class of every pixel (h, w), int16, or IGNORED.

        Raises: InputError for a mask that cannot be read, has several channels, or holds a label of no class.
        """
        try:
            with Image.open(path, formats=formats()) as mask:
                mode, values = mask.mode, np.asarray(mask)
        except FileNotFoundError:
            raise InputError(f"mask {path} is not there") from None
        except Exception as error:  # whatever a damaged file leads Pillow to
            raise InputError(f"cannot read the mask {path}: {error}; repair it") from None
        if mode not in GREY_MODES:
            raise InputError(f"mask {path} is an image of mode {mode}: a mask has one channel, with a label per pixel")
        classes = self.table[np.clip(values.astype(np.int64), 0, len(self.table) - 1)]
        if (classes == UNKNOWN).any():
            first = int(self.reduce_zero_label)
            raise InputError(
                f"mask {path} holds label {values[classes == UNKNOWN].max()}, but the {len(self.classes)} classes are "
                f"{first} to {first + len(self.classes) - 1}, and ignored is {self.ignore_label}: "
                "see --ignore-label, --reduce-zero-label and the class names"
            )
        return classes

    def count(self, classes: np.ndarray) -> np.ndarray:
        """Pixels of each class (c,); IGNORED ones count for none."""
        return np.bincount(classes[classes != IGNORED], minlength=len(self.classes))

    def values(self, classes: np.ndarray) -> np.ndarray:
        """Classes (h, w) as a mask of such labels: 8 bits per pixel, or 16 where there are too many classes."""
        values = classes.astype(np.int64) + int(self.reduce_zero_label)
        return values.astype(np.uint8 if len(self.classes) < 255 else np.uint16)


def class_names(root: Path, names_file: Path | None = None, number: int | None = None) -> tuple[str, ...]:
    """The names of the classes: from the file, else from <root>/classes.txt or ADE20K's objectInfo150.txt.

    number: how many there are; without any file they get names of their number.
    Raises: InputError when nothing tells how many classes there are, or the file and the number contradict.
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
    if lines and "\t" in lines[0]:  # a table with a line of titles and the names in its last column
        lines = [line.split("\t")[-1] for line in lines[1:]]
    if not lines or len(set(lines)) < len(lines):
        twice = next((name for name in lines if lines.count(name) > 1), None)
        raise InputError(f"class names {found}: " + (f"{twice!r} stands there twice" if lines else "the file is empty"))
    if number not in (None, len(lines)):
        raise InputError(f"--num-classes {number}, but {found} names {len(lines)} classes")
    return tuple(lines)


def mask_labels(args: argparse.Namespace, root: Path) -> MaskLabels:
    """What the options say (common.command_line.add_mask_options) of the masks below `root`."""
    names = class_names(root, Path(args.class_names) if args.class_names else None, args.num_classes)
    return MaskLabels(names, args.ignore_label, args.reduce_zero_label)


def scene_images(folder: Path, transform: Transform | None = None) -> ImageFiles:
    """The images of a split, in the order of their names. Raises InputError when there are none."""
    if not folder.is_dir():
        raise InputError(f"image folder {folder} is not there: the layout is <folder>/images/{{training,validation}}")
    return flat_folder(folder, transform).not_empty()


def mask_of(image: Path) -> Path:
    """Where the mask of an image lies: <root>/images/<split>/x.jpg -> <root>/annotations/<split>/x.png"""
    return image.parents[2] / "annotations" / image.parent.name / f"{image.stem}.png"
