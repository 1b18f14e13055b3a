"""Images and labels in one order for both stages: an index chosen from the features is the same image in training.

Every image file is read as 8-bit RGB, or fails with an error of one line.
"""

import contextlib
import io
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset

from common.errors import InputError
from common.files import check_folder, is_hidden, kind_of_file, walk
from common.image_list import ListedImage, check_present, read_image_list

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10, CIFAR100

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
OTHER_FORMATS = (
    ".jfif",
    ".jpe",
    ".gif",
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".jxl",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
)
Transform = Callable[[Image.Image], Any]
Loader = Callable[[str], Image.Image]
Samples = list[tuple[str, int]]
Files = TypeVar("Files", bound="ImageFiles")
NO_LABEL = -1
REPAIR = "repair or remove it"
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # no 32-bit integers: some Pillow versions open their 16 bits as mode I

warnings.filterwarnings("ignore", module=r"PIL\.")  # one per readable image with damaged metadata


def open_rgb(
    path: str | Path, upright: bool = False, at_least: int | None = None, content: bytes | None = None
) -> Image.Image:
    """Read an image as 8-bit RGB, scaling 16 bits to 8, and floats from 0..1.

    (departure) The published code clips 16-bit and float images, so that nearly all pixels become white or black.

    Args:
        upright: apply the EXIF orientation, which the published code does not.
        at_least: decode a larger JPEG at 1/2, 1/4 or 1/8 of its size, keeping at least this many pixels per side.
        content: the file's bytes, if it is not on disk; `path` is then only its name in errors.
    Raises:
        InputError, naming the file, if it cannot be decoded or its pixel values have no known scale.
    """
    try:
        if content is None and not stat.S_ISREG(Path(path).stat().st_mode):
            raise InputError(f"it is not a file; {REPAIR}")  # reading a pipe, say, waits for ever
        with Image.open(path if content is None else io.BytesIO(content), formats=formats()) as image:
            if at_least:
                image.draft(None, (at_least, at_least))
            if upright:
                image.load()
                with contextlib.suppress(Exception):  # damaged metadata, read only after the image is turned
                    ImageOps.exif_transpose(image, in_place=True)
            return _eight_bits(image).convert("RGB")
    except InputError as error:
        problem = str(error)
    except UnidentifiedImageError:
        kind = kind_of_file(path) if content is None else None
        problem = f"{kind or 'its format is not known'}; {REPAIR}"
    except Exception as error:  # a damaged file can make Pillow's decoders raise anything
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        problem = f"{said.splitlines()[0]}; {REPAIR}"
    raise InputError(f"cannot read the image {path}: {problem}")


@cache
def formats() -> list[str]:
    """Return the formats that Pillow reads, except PostScript, which it would have Ghostscript run as a program."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit and float pixels to 8 bits. Raises InputError for 32-bit integers and floats outside 0..1."""
    if image.mode.startswith("I"):
        if image.mode == "I" and image.format not in SIXTEEN_BIT_FORMATS:
            raise InputError("32-bit integers have no known scale: convert the image to 8 or 16 bits")
        # The higher byte, which Pillow takes of 16-bit colours, too.
        return Image.fromarray((np.asarray(image).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # also true if one is NaN
            span = f"{values.min():g} to {values.max():g}"
            raise InputError(f"floats from {span} have no known scale: convert the image to floats in 0..1 or 8 bits")
        return Image.fromarray((255 * values).round().astype(np.uint8))
    return image


class ImageFiles(Dataset):
    """Image files with labels. samples: (path, label) per image. classes: the names of the labels."""

    def __init__(self, root: Path, samples: Samples, classes: list[str], transform: Transform | None, loader: Loader):
        self.root, self.samples, self.classes, self.transform, self.loader = root, samples, classes, transform, loader

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        image = self.loader(path)
        return (self.transform(image) if self.transform else image), label

    def not_empty(self: Files) -> Files:
        """Return self. Raises InputError if there are no images."""
        if not self.samples:
            raise InputError(f"image folder {self.root} holds no images ({' '.join(IMG_EXTENSIONS)})")
        return self


class ListedImages(ImageFiles):
    """The images of a list, in its order, with paths relative to `root`. Default classes: the labels, sorted."""

    def __init__(
        self,
        root: Path,
        listed: Sequence[ListedImage],
        transform: Transform | None = None,
        loader: Loader = open_rgb,
        classes: Sequence[str] | None = None,
    ):
        classes = list(classes or sorted({image.label for image in listed if image.label}))
        number = {name: label for label, name in enumerate(classes)}
        samples = [(os.path.join(root, image.path), number.get(image.label, NO_LABEL)) for image in listed]  # noqa: PTH118 - pathlib is too slow for a million
        super().__init__(root, samples, classes, transform, loader)


def image_list(path: Path, transform: Transform | None = None, loader: Loader = open_rgb) -> ListedImages:
    """Return the images listed in a .csv or .txt, relative to its folder. Raises InputError if one is missing."""
    images = ListedImages(path.parent, read_image_list(path), transform, loader)
    check_present((Path(file) for file, _ in images.samples), str(path))
    return images


def image_tree(root: Path, transform: Transform | None = None, loader: Loader = open_rgb) -> ListedImages:
    """Return all images below a folder, whatever its subfolders mean, without labels, in one stable order.

    Raises InputError if the folder is missing or holds no images.
    """
    check_folder(root)
    listed = [ListedImage(os.path.relpath(path, root), "") for path in images_below(str(root))]
    return ListedImages(root, listed, transform, loader).not_empty()


def images_below(folder: str) -> list[str]:
    """Return the images in a folder and its subfolders, folder by folder."""
    return [f"{inside}{os.sep}{name}" for inside, files in walk(folder) for name in files if is_image(name)]


def note_on_other_formats(folder: Path) -> str | None:
    """Return one line on images below a folder in formats that are not read, or None."""
    names = (name.lower() for _, files in walk(str(folder)) for name in files if not is_hidden(name))
    counts = Counter(os.path.splitext(name)[1] for name in names if name.endswith(OTHER_FORMATS))  # noqa: PTH122
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
    return f"left out of {folder}: {kinds}; convert them to JPEG or PNG to include them" if kinds else None


def is_image(name: str) -> bool:
    """Whether a file name is that of an image, and not hidden."""
    return name.lower().endswith(IMG_EXTENSIONS) and not is_hidden(name)


def class_folders(root: Path, transform: Transform | None = None, loader: Loader = open_rgb) -> ImageFiles:
    """Return the images of `<root>/<class>/**`, with classes and images sorted as by torchvision's ImageFolder.

    Hidden files and folders, such as .ipynb_checkpoints or macOS's ._1.jpg, are left out.
    Raises InputError if the folder is missing, or has no class folder with an image.
    """
    check_folder(root)
    try:
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name))
        samples = [(path, label) for label, name in enumerate(classes) for path in images_below(str(root / name))]
    except OSError as error:
        raise InputError(f"image folder {root} cannot be used: {error}") from None
    if not classes:
        raise InputError(f"image folder {root} cannot be used: it has no class folders")
    return ImageFiles(root, samples, classes, transform, loader).not_empty()


def flat_folder(root: Path, transform: Transform | None = None, loader: Loader = open_rgb) -> ImageFiles:
    """Return the images directly in one folder, possibly none, sorted by name, without labels (-1)."""
    paths = (str(path) for path in sorted(root.iterdir()) if is_image(path.name) and not path.is_dir())
    return ImageFiles(root, [(path, NO_LABEL) for path in paths], [], transform, loader)


def image_folder(root: Path, transform: Transform | None = None, loader: Loader = open_rgb) -> ImageFiles:
    """Return the images of any folder: of class folders, or of images directly in it.

    Raises InputError if it is missing, empty, or has both (one could only guess which images have labels).
    """
    check_folder(root)
    flat = flat_folder(root, transform, loader)
    subfolders = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
    if flat.samples and subfolders:
        raise InputError(
            f"image folder {root} holds images as well as folders ({subfolders[0]}); use one folder per class, or none"
        )
    return class_folders(root, transform, loader) if subfolders else flat.not_empty()


def cifar(name: str, root: Path, train: bool, transform: Transform | None = None) -> "CIFAR10 | CIFAR100":
    """Return torchvision's CIFAR10 or CIFAR100 in `root`, downloading it if it is not there.

    Raises InputError, saying where to put the archive by hand, if the download fails.
    """
    from torchvision.datasets import CIFAR10, CIFAR100  # takes seconds to import, and folders do not need it

    dataset = {"CIFAR10": CIFAR10, "CIFAR100": CIFAR100}[name]
    try:
        return dataset(str(root), train=train, transform=transform, download=True)
    except (OSError, RuntimeError) as error:
        by_hand = f"fetch it by hand and put it at {root / dataset.filename}"
        raise InputError(f"cannot download {name} from {dataset.url} ({error}); {by_hand}") from None
