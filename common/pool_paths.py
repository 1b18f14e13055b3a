"""The list of images beside a feature file: the name of each, and whether it is still the same file."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from common.errors import InputError
from common.files import read_json, write_json
from common.image_list import ListedImage, place_of, some

if TYPE_CHECKING:
    from common.hf_images import HFImages

SOURCE = ("dataset", "split", "column")  # of Hugging Face images


class PoolImage(NamedTuple):
    """An image of the pool: path in its folder, label, and size and time of change, to tell if the file changed."""

    path: str
    label: int
    size: int
    modified: int


class PoolPaths(NamedTuple):
    """The images of a feature file, in its order.

    paths: relative to `root`. sizes: of the files, in bytes; empty if unknown. classes: names of the labels.
    source: where to read images that are not files (a Hugging Face data set); else None.
    """

    root: str
    paths: list[str]
    sizes: list[int]
    classes: list[str]
    source: dict[str, Any] | None = None

    def files(self) -> list[Path]:
        return [Path(self.root, path) for path in self.paths]

    def data_set(self) -> "HFImages | None":
        """Return the data set of images that are not files, or None. Raises InputError if it is gone or changed."""
        if not self.source:
            return None
        from common.hf_images import HFImages  # an optional package

        images = HFImages(*(self.source[key] for key in SOURCE))
        if len(images) != len(self.paths):
            had = len(self.paths)
            raise InputError(f"{self.source['dataset']} has {len(images)} images now, not {had}: extract again")
        if self.source.get("content") not in (None, images.content_checksum()):
            raise InputError(f"{self.source['dataset']} has other images now: extract again")
        return images

    def check_unchanged(self, feature_path: str) -> None:
        """Raise InputError if images are gone or have another size since their features were extracted."""
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
            kinds = {"gone": gone, "different files now": changed}
            said = ", ".join(f"{some(paths)} are {kind}" for kind, paths in kinds.items() if paths)
            raise InputError(
                f"the pool {self.root} changed since {feature_path} was extracted: of {len(self.paths)} images {said}; "
                "extract again"
            )

    def indices_of(self, images: Sequence[ListedImage], option: str) -> list[int]:
        """Return the indices of these images in the pool. Raises InputError if any is not in it."""
        rows: dict[str, int | None] = dict.fromkeys(image.path for image in images)
        for place in (place_of, os.path.realpath):  # the latter takes long: only for paths that go through links
            if outside := [path for path, row in rows.items() if row is None]:
                row_of = {place(file): row for row, file in reversed([*enumerate(self.files())])}  # the first of equals
                rows |= {path: row_of.get(place(Path(self.root, path))) for path in outside}
        outside = [path for path, row in rows.items() if row is None]
        if outside:
            raise InputError(f"{option}: {some(outside)} of {len(images)} images are not in the pool {self.root}")
        return list(rows.values())


def pool_images(root: Path, pool: Any) -> list[PoolImage] | None:
    """Return a data set's images below `root`, in the order of its `samples` (path, label); None if not files."""

    real = cache(os.path.realpath)

    def relative(path: str) -> str:
        inside = os.path.relpath(path, root)
        if not inside.startswith(os.pardir):
            return inside
        # Not by way of a link: from where that leads, ".." is another folder.
        folder, name = os.path.split(path)
        return os.path.relpath(os.path.join(real(folder), name), real(root))  # noqa: PTH118

    def stamp(path: str, label: int) -> PoolImage:
        try:
            status = Path(path).stat()
        except OSError as error:  # a dangling link, say
            raise InputError(f"cannot read the image {path}: {error.strerror}; repair or remove it") from None
        return PoolImage(relative(path), label, status.st_size, int(status.st_mtime))

    return [stamp(path, label) for path, label in pool.samples] if hasattr(pool, "samples") else None


def paths_file(feature_path: Path) -> Path:
    """Return the path of the list of a feature file's images, in its order: {"root": ..., "paths": [...], ...}."""
    return feature_path.with_name(f"{feature_path.stem}_paths.json")


def read_pool_paths(feature_path: str | Path, n: int) -> PoolPaths:
    """Read the list of a feature file's n images. Raises InputError if there is none, or one of another length."""
    file = paths_file(Path(feature_path))
    if not file.is_file():
        raise InputError(
            f"{file} is not there: image paths are recorded only for --dataset Folder, List, HF, ImageNet and ADE20K"
        )
    listed = read_json(file, "list of image paths")
    listed = listed if isinstance(listed, dict) else {}
    root, paths = listed.get("root"), listed.get("paths")
    sizes, classes, source = listed.get("sizes", []), listed.get("classes", []), listed.get("source")
    if (
        not all(isinstance(each, list) for each in (paths, sizes, classes))
        or not (source is None or (isinstance(source, dict) and {*source} >= {*SOURCE}))
        or len(paths) != n
        or not all(isinstance(name, str) for name in (root, *paths, *classes))
        or len(sizes) not in (0, n)
    ):
        raise InputError(f"{file} does not list the {n} images of {feature_path}: extract the features again")
    return PoolPaths(root, paths, sizes, classes, source)


def numbered_alike(feature_path: str | Path, other_path: str | Path, labels: np.ndarray) -> np.ndarray:
    """Renumber another feature file's labels (m,), so that a class name has the same number as in the first file.

    A split that lacks a class numbers the later ones differently. A class that the first file lacks gets a number of
    its own. If the names are unknown, as for CIFAR, the numbers stay.
    """
    ours, theirs = classes_of(Path(feature_path)), classes_of(Path(other_path))
    if not ours or not theirs or ours == theirs:
        return labels
    if labels.max() >= len(theirs):
        raise InputError(f"{paths_file(Path(other_path))} names {len(theirs)} classes, but a label is {labels.max()}")
    number = {name: label for label, name in enumerate(dict.fromkeys([*ours, *theirs]))}
    return np.array([number[theirs[label]] if label >= 0 else label for label in labels], dtype=np.int64)


def classes_of(feature_path: Path) -> list[str]:
    """Return the names of a feature file's labels; empty if unknown."""
    file = paths_file(feature_path)
    listed = read_json(file, "list of image paths") if file.is_file() else {}
    return listed.get("classes", []) if isinstance(listed, dict) else []


def write_pool_paths(feature_path: Path, pool: PoolPaths) -> None:
    write_json(paths_file(feature_path), {key: value for key, value in pool._asdict().items() if value}, indent=0)
