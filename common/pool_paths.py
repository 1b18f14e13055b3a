"""The images of a feature file, listed beside it: what each is called, and whether it is still the same file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from common.errors import InputError
from common.files import read_json, write_json
from common.image_list import ListedImage, place_of, some

if TYPE_CHECKING:
    from common.hf_images import HFImages


class PoolImage(NamedTuple):
    """An image of the pool, relative to its folder, with what tells whether it is still the same file."""

    path: str
    label: int
    size: int
    modified: int


class PoolPaths(NamedTuple):
    """Images of a feature file, in its order.

    paths: relative to `root`. sizes: of the files, in bytes; empty where not known. classes: names of the labels.
    source: where the images are read from when they are no files (a Hugging Face data set).
    """

    root: str
    paths: list[str]
    sizes: list[int]
    classes: list[str]
    source: dict[str, Any] | None = None

    def files(self) -> list[Path]:
        return [Path(self.root, path) for path in self.paths]

    def data_set(self) -> "HFImages | None":
        """Where images are that are no files. Raises InputError when it cannot be loaded, or is another one now."""
        if not self.source:
            return None
        from common.hf_images import HFImages  # an optional package

        images = HFImages(*self.source.values())
        if len(images) != len(self.paths):
            had = len(self.paths)
            raise InputError(f"{self.source['dataset']} has {len(images)} images now, not {had}: extract again")
        return images

    def check_unchanged(self, feature_path: str) -> None:
        """Raises InputError when images have gone, or are of another size, since they were extracted."""
        if self.source:
            return
        gone, changed = [], []
        for path, size in zip(self.paths, self.sizes or [None] * len(self.paths), strict=True):
            try:
                now = Path(self.root, path).stat().st_size
            except OSError:
                gone.append(path)
                continue
            changed += [path] * (size not in (None, now))
        if gone or changed:
            kinds = {"gone": gone, "other files": changed}
            said = ", ".join(f"{some(paths)} are {kind}" for kind, paths in kinds.items() if paths)
            raise InputError(
                f"the pool {self.root} changed since {feature_path} was extracted: of {len(self.paths)} images {said}; "
                "extract again"
            )

    def indices_of(self, images: Sequence[ListedImage], option: str) -> list[int]:
        """The indices in the pool of these images. Raises InputError for images that are not in it."""
        row_of = {place_of(file): row for row, file in enumerate(self.files())}
        rows = {image.path: row_of.get(place_of(Path(self.root, image.path))) for image in images}
        outside = [path for path, row in rows.items() if row is None]
        if outside:
            raise InputError(f"{option}: {some(outside)} of {len(images)} images are not in the pool {self.root}")
        return list(rows.values())


def pool_images(root: Path, pool: Any) -> list[PoolImage] | None:
    """The images of a data set, below a folder, in the order of its `samples` (path, label); None without any files."""

    def stamp(path: str, label: int) -> PoolImage:
        try:
            status = Path(path).stat()
        except OSError as error:  # a link to what is not there
            raise InputError(f"cannot read the image {path}: {error.strerror}; repair or remove it") from None
        return PoolImage(os.path.relpath(path, root), label, status.st_size, int(status.st_mtime))

    return [stamp(path, label) for path, label in pool.samples] if hasattr(pool, "samples") else None


def paths_file(feature_path: Path) -> Path:
    """Where the images of a feature file are listed, in its order: {"root": ..., "paths": [...], ...}."""
    return feature_path.with_name(f"{feature_path.stem}_paths.json")


def read_pool_paths(feature_path: str | Path, n: int) -> PoolPaths:
    """The n images of a feature file. Raises InputError when there is no list of them, or one of another length."""
    file = paths_file(Path(feature_path))
    if not file.is_file():
        raise InputError(
            f"{file} is not there: image paths are known for --dataset Folder, List, HF, ImageNet and ADE20K"
        )
    listed = read_json(file, "list of image paths")
    listed = listed if isinstance(listed, dict) else {}
    root, paths = listed.get("root"), listed.get("paths")
    sizes, classes, source = listed.get("sizes", []), listed.get("classes", []), listed.get("source")
    if (
        not all(isinstance(each, list) for each in (paths, sizes, classes))
        or not isinstance(source, dict | None)
        or len(paths) != n
        or not all(isinstance(name, str) for name in (root, *paths, *classes))
        or len(sizes) not in (0, n)
    ):
        raise InputError(f"{file} does not list the {n} images of {feature_path}: extract the features again")
    return PoolPaths(root, paths, sizes, classes, source)


def numbered_alike(feature_path: str | Path, other_path: str | Path, labels: np.ndarray) -> np.ndarray:
    """The labels (m,) of another feature file, with the numbers that the classes of those names have in the first.

    A split that lacks a class numbers the ones after it differently. A class that the first lacks gets a number of its
    own. Where the names are not known, as for CIFAR, the numbers stay.
    """
    ours, theirs = classes_of(Path(feature_path)), classes_of(Path(other_path))
    if not ours or not theirs or ours == theirs:
        return labels
    if labels.max() >= len(theirs):
        raise InputError(f"{paths_file(Path(other_path))} names {len(theirs)} classes, and a label is {labels.max()}")
    number = {name: label for label, name in enumerate(dict.fromkeys([*ours, *theirs]))}
    return np.array([number[theirs[label]] if label >= 0 else label for label in labels], dtype=np.int64)


def classes_of(feature_path: Path) -> list[str]:
    """The names of a feature file's labels; none where they are not known."""
    file = paths_file(feature_path)
    listed = read_json(file, "list of image paths") if file.is_file() else {}
    return listed.get("classes", []) if isinstance(listed, dict) else []


def write_pool_paths(feature_path: Path, pool: PoolPaths) -> None:
    write_json(paths_file(feature_path), {key: value for key, value in pool._asdict().items() if value}, indent=0)
