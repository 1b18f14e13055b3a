"""Images with labels, in one order for both stages: an index chosen from the features is the same image in training."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from common.errors import InputError
from common.files import split_folder as split_folder
from common.image_list import ListedImage, check_present, read_image_list
from common.images import open_rgb

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10, CIFAR100

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
Transform = Callable[[Image.Image], Any]
Loader = Callable[[str], Image.Image]
NO_LABEL = -1


class ImageFiles(Dataset):
    """Image files and labels: what `FlatImageFolder` and `ClassFolders` share."""

    root: Path
    samples: list[tuple[str, int]]
    classes: list[str]
    transform: Transform | None
    loader: Loader

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        image = self.loader(path)
        return (self.transform(image) if self.transform else image), label


class ImagesOrBlack(Dataset):
    """Images as bytes (3, size, size), their labels, and whether they can be read: black and -1 where not."""

    def __init__(self, images: Dataset, input_size: int):
        self.images, self.input_size = images, input_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, int, bool]:
        try:
            pixels, label = self.images[row]
        except InputError:
            return torch.zeros(3, self.input_size, self.input_size, dtype=torch.uint8), NO_LABEL, False
        return pixels, label, True


class FlatImageFolder(ImageFiles):
    """All images directly in one folder, in the order of their names, without labels (-1)."""

    def __init__(self, root: Path, transform: Transform | None = None, loader: Loader = open_rgb):
        self.root, self.transform, self.loader, self.classes = root, transform, loader, []
        self.samples = [
            (str(path), NO_LABEL) for path in sorted(root.iterdir()) if is_image(path.name) and path.is_file()
        ]


class ClassFolders(ImageFiles):
    """`<root>/<class>/**`: classes and images in the order of their names, as torchvision's ImageFolder has them.

    Hidden files and folders, such as .ipynb_checkpoints or macOS's ._1.jpg, are left out.
    """

    def __init__(self, root: Path, transform: Transform | None = None, loader: Loader = open_rgb):
        self.root, self.transform, self.loader = root, transform, loader
        self.classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name))
        self.samples = [
            (path, label) for label, name in enumerate(self.classes) for path in images_below(str(root / name))
        ]


class ListedImages(ImageFiles):
    """The images of a list, in its order, relative to `root`; classes are its labels, sorted, or those given."""

    def __init__(
        self,
        root: Path,
        listed: Sequence[ListedImage],
        transform: Transform | None = None,
        loader: Loader = open_rgb,
        classes: Sequence[str] | None = None,
    ):
        self.root, self.transform, self.loader = root, transform, loader
        self.classes = list(classes or sorted({image.label for image in listed if image.label}))
        number = {name: label for label, name in enumerate(self.classes)}
        self.samples = [(os.path.join(root, image.path), number.get(image.label, NO_LABEL)) for image in listed]  # noqa: PTH118 - as fast as a million need


def image_list(path: Path, transform: Transform | None = None, loader: Loader = open_rgb) -> ListedImages:
    """The images of a .csv or .txt, relative to its folder. Raises InputError when one of them is not there."""
    images = ListedImages(path.parent, read_image_list(path), transform, loader)
    check_present((Path(file) for file, _ in images.samples), str(path))
    return images


def image_tree(root: Path, transform: Transform | None = None, loader: Loader = open_rgb) -> ListedImages:
    """Every image below a folder, whatever its folders mean, without labels, in one stable order.

    Raises InputError when it is missing or holds no images.
    """
    if not root.is_dir():
        raise InputError(f"image folder {root} is not there")
    paths = [os.path.relpath(path, root) for path in images_below(str(root))]
    if not paths:
        raise InputError(f"image folder {root} holds no images ({' '.join(IMG_EXTENSIONS)})")
    return ListedImages(root, [ListedImage(path, "") for path in paths], transform, loader)


def any_images(source: Path, transform: Transform | None = None, loader: Loader = open_rgb) -> ListedImages:
    """A list of images (.csv, .txt), or every image below a folder. Raises InputError when there are none."""
    return (image_list if source.is_file() else image_tree)(source, transform, loader)


def images_below(folder: str) -> list[str]:
    """The images in a folder and its subfolders, folder by folder."""
    found = []
    for inside, subfolders, files in os.walk(folder, followlinks=True):
        subfolders[:] = (name for name in subfolders if not is_hidden(name))
        found.append((inside, [f"{inside}{os.sep}{name}" for name in sorted(files) if is_image(name)]))
    return [path for _, paths in sorted(found) for path in paths]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is no data: hidden, or what macOS adds to an archive."""
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """Whether a file of this name is an image, and not hidden."""
    return name.lower().endswith(IMG_EXTENSIONS) and not is_hidden(name)


def class_folders(root: Path, transform: Transform | None = None, loader: Loader = open_rgb) -> ClassFolders:
    """`<root>/<class>/*`, the ImageNet layout: classes and images in the order of their names.

    Raises InputError when the folder is missing, or has no class folders with an image.
    """
    if not root.is_dir():
        raise InputError(f"image folder {root} is not there")
    try:
        folders = ClassFolders(root, transform, loader)
    except OSError as error:
        raise InputError(f"image folder {root} cannot be used: {error}") from None
    if not folders.classes:
        raise InputError(f"image folder {root} cannot be used: it has no class folders")
    if not folders.samples:
        raise InputError(f"image folder {root} holds no images ({' '.join(IMG_EXTENSIONS)})")
    return folders


def image_folder(
    root: Path, transform: Transform | None = None, loader: Loader = open_rgb
) -> ClassFolders | FlatImageFolder:
    """Any folder of images: class folders, or all images flat in it.

    Raises InputError when it is missing, empty, or both at once (which images have labels could only be guessed).
    """
    if not root.is_dir():
        raise InputError(f"image folder {root} is not there")
    flat = FlatImageFolder(root, transform, loader)
    subfolders = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
    if flat.samples and subfolders:
        raise InputError(
            f"image folder {root} holds images as well as folders ({subfolders[0]}); use one folder per class, or none"
        )
    if not flat.samples and not subfolders:
        raise InputError(f"image folder {root} holds no images ({' '.join(IMG_EXTENSIONS)})")
    return flat if flat.samples else class_folders(root, transform, loader)


def cifar(name: str, root: Path, train: bool, transform: Transform | None = None) -> "CIFAR10 | CIFAR100":
    """torchvision's CIFAR10 or CIFAR100 in `root`, downloaded when it is not there.

    Raises InputError, saying where to put the archive by hand, when it cannot be downloaded.
    """
    from torchvision.datasets import CIFAR10, CIFAR100  # seconds to load, and folders do without

    dataset = {"CIFAR10": CIFAR10, "CIFAR100": CIFAR100}[name]
    try:
        return dataset(str(root), train=train, transform=transform, download=True)
    except (OSError, RuntimeError) as error:
        by_hand = f"fetch it by hand and put it at {root / dataset.filename}"
        raise InputError(f"cannot download {name} from {dataset.url} ({error}); {by_hand}") from None
