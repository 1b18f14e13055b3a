"""Images with labels, in one order for both stages: an index chosen from the features is the same image in training."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from common.errors import InputError
from common.images import open_rgb

Transform = Callable[[Image.Image], Any]
Loader = Callable[[str], Image.Image]
NO_LABEL = -1


class FlatImageFolder(Dataset):
    """All images directly in one folder, in the order of their names, without labels (-1)."""

    classes = ()

    def __init__(self, root: Path, transform: Transform | None = None, loader: Loader = open_rgb):
        self.root, self.transform, self.loader = root, transform, loader
        self.samples = [(str(path), NO_LABEL) for path in sorted(root.iterdir()) if is_image(path) and path.is_file()]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        image = self.loader(path)
        return (self.transform(image) if self.transform else image), label


class ClassFolders(ImageFolder):
    """torchvision's ImageFolder without hidden files and folders, such as .ipynb_checkpoints or macOS's ._1.jpg."""

    def __init__(self, root: Path, transform: Transform | None, loader: Loader):
        def is_visible_image(path: str) -> bool:
            folders = Path(path[len(str(root)) + 1 :]).parent.parts
            return is_image(path) and not any(map(is_hidden, folders))

        super().__init__(str(root), transform, loader=loader, is_valid_file=is_visible_image)

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        names = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and not is_hidden(entry.name))
        if not names:
            raise FileNotFoundError(f"there is no class folder in {directory}")
        return names, {name: label for label, name in enumerate(names)}


def is_hidden(name: str) -> bool:
    """Whether a file or folder is no data: hidden, or what macOS adds to an archive."""
    return name.startswith(".") or name == "__MACOSX"


def is_image(path: str | Path) -> bool:
    """Whether the name is that of an image, and not hidden."""
    name = Path(path).name
    return name.lower().endswith(IMG_EXTENSIONS) and not is_hidden(name)


def split_folder(root: Path, train: bool) -> Path:
    """One split of a data set in ImageNet layout: <root>/train, or else <root>/val or <root>/test."""
    names = ("train",) if train else ("val", "test")
    return next((root / name for name in names if (root / name).is_dir()), root / names[0])


def class_folders(root: Path, transform: Transform | None = None, loader: Loader = open_rgb) -> ClassFolders:
    """`<root>/<class>/*`, the ImageNet layout: classes and images in the order of their names.

    Raises InputError when the folder is missing, has no class folders, or one of them holds no image.
    """
    if not root.is_dir():
        raise InputError(f"image folder {root} is not there")
    try:
        return ClassFolders(root, transform, loader)
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"image folder {root} cannot be used: {str(error).splitlines()[0]}") from None


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
