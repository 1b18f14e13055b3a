"""Images with labels, in one order for both stages: an index chosen from the features is the same image in training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from common.errors import InputError

Transform = Callable[[Image.Image], Any]
NO_LABEL = -1
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises


def open_rgb(path: str | Path) -> Image.Image:
    """Raises InputError, naming the file, when it cannot be decoded."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except UNREADABLE as error:
        raise InputError(f"cannot read the image {path}: {error}; repair or remove it") from None


class FlatImageFolder(Dataset):
    """All images directly in one folder, in the order of their names, without labels (-1)."""

    classes = ()

    def __init__(self, root: Path, transform: Transform | None = None):
        self.root, self.transform = root, transform
        self.samples = [(str(path), NO_LABEL) for path in sorted(root.iterdir()) if _is_image(path)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        image = open_rgb(path)
        return (self.transform(image) if self.transform else image), label


def _is_image(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(IMG_EXTENSIONS)


def split_folder(root: Path, train: bool) -> Path:
    """One split of a data set in ImageNet layout: <root>/train, or else <root>/val or <root>/test."""
    names = ("train",) if train else ("val", "test")
    return next((root / name for name in names if (root / name).is_dir()), root / names[0])


def class_folders(root: Path, transform: Transform | None = None) -> ImageFolder:
    """`<root>/<class>/*`, the ImageNet layout: classes and images in the order of their names.

    Raises InputError when the folder is missing, or has no class folders with an image.
    """
    if not root.is_dir():
        raise InputError(f"image folder {root} is not there")
    try:
        folder = ImageFolder(str(root), transform, loader=open_rgb, allow_empty=True)
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"image folder {root} cannot be used: {str(error).splitlines()[0]}") from None
    if not folder.samples:
        raise InputError(f"image folder {root} holds no images ({' '.join(IMG_EXTENSIONS)})")
    return folder


def image_folder(root: Path, transform: Transform | None = None) -> ImageFolder | FlatImageFolder:
    """Any folder of images: class folders, or all images flat in it.

    Raises InputError when it is missing, empty, or both at once (which images have labels could only be guessed).
    """
    if not root.is_dir():
        raise InputError(f"image folder {root} is not there")
    flat = FlatImageFolder(root, transform)
    subfolders = sorted(path.name for path in root.iterdir() if path.is_dir())
    if flat.samples and subfolders:
        raise InputError(
            f"image folder {root} holds images as well as folders ({subfolders[0]}); use one folder per class, or none"
        )
    if not flat.samples and not subfolders:
        raise InputError(f"image folder {root} holds no images ({' '.join(IMG_EXTENSIONS)})")
    return flat if flat.samples else class_folders(root, transform)


def cifar(name: str, root: Path, train: bool, transform: Transform | None = None) -> CIFAR10 | CIFAR100:
    """torchvision's CIFAR10 or CIFAR100 in `root`, downloaded when it is not there.

    Raises InputError, saying where to put the archive by hand, when it cannot be downloaded.
    """
    dataset = {"CIFAR10": CIFAR10, "CIFAR100": CIFAR100}[name]
    try:
        return dataset(str(root), train=train, transform=transform, download=True)
    except (OSError, RuntimeError) as error:
        by_hand = f"fetch it by hand and put it at {root / dataset.filename}"
        raise InputError(f"cannot download {name} from {dataset.url} ({error}); {by_hand}") from None
