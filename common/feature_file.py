"""The feature file between the stages: a float32 .npy of shape (n, d + 1), the integer label in the last column.

While it is being computed it is called `<name>.npy.partial` and its missing rows are NaN, so a run that was killed at
any moment leaves nothing that looks finished, and any number of processes can continue it.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import read_json, write_json

ROWS_AT_A_TIME = 65536


def unfinished(path: Path) -> Path:
    """What a feature file is called while rows of it are missing."""
    return Path(f"{path}.partial")


def read_features(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Open a feature file without reading it into memory.

    Returns: features (n, d), memory-mapped, and labels (n,), int64 (-1 where unknown).
    Raises: InputError when it is missing, unfinished, pickled, not 2-D, not of floating point numbers, or has labels
        that are no whole numbers (features alone, without the label column, say).
    """
    path = Path(path)
    if not path.is_file():
        hint = f"; {unfinished(path)} is unfinished: extract with --resume" if unfinished(path).is_file() else ""
        raise InputError(f"feature file {path} is not there{hint}")
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"feature file {path} is no plain .npy array: {error}") from None
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.shape[0] < 1 or table.shape[1] < 2:
        shape = getattr(table, "shape", "several arrays")
        raise InputError(f"feature file {path} has shape {shape}, not (n, d + 1) with the label in the last column")
    if table.dtype.kind != "f":
        raise InputError(f"feature file {path} holds {table.dtype}, not floating point numbers")
    labels = np.array(table[:, -1], dtype=np.float64)
    if not np.isfinite(labels).all():
        raise InputError(
            f"feature file {path}: row {int(np.argmin(np.isfinite(labels)))} has no finite label (last column)"
        )
    whole = labels == labels.round()
    if not whole.all():
        row = int(np.argmin(whole))
        raise InputError(f"feature file {path}: the last column is the label, and that of row {row} is {labels[row]:g}")
    return table[:, :-1], labels.astype(np.int64)


def paths_file(feature_path: Path) -> Path:
    """Where the image paths of a feature file are listed, in its order: {"root": ..., "paths": [...]}."""
    return feature_path.with_name(f"{feature_path.stem}_paths.json")


def read_image_paths(feature_path: str | Path, n: int) -> list[Path]:
    """The n images of a feature file. Raises InputError when there is no list of them, or one of another length."""
    source = paths_file(Path(feature_path))
    if not source.is_file():
        raise InputError(
            f"{source} is not there: image paths are known only for features of --dataset Folder or ImageNet"
        )
    listed = read_json(source, "list of image paths")
    root, paths = (listed.get("root"), listed.get("paths")) if isinstance(listed, dict) else (None, None)
    if not isinstance(paths, list) or len(paths) != n or not all(isinstance(name, str) for name in (root, *paths)):
        raise InputError(f"{source} does not list the {n} images of {feature_path}: extract the features again")
    return [Path(root, path) for path in paths]


class FeatureFile:
    """A feature file that is written block by block, by one process or several.

    Usage: `prepare` in one process, then `open` and `write` in each, then `finish` in one. `settings` is what the
    features depend on: an unfinished file is continued only by a run with the same.
    """

    def __init__(self, path: Path, n: int, d: int, settings: dict[str, Any]):
        self.path, self.shape = path, (n, d + 1)
        self.settings = {"n": n, "d": d, **settings}

    @property
    def settings_path(self) -> Path:
        return Path(f"{unfinished(self.path)}.json")

    def prepare(self, resume: bool) -> None:
        """Create the unfinished file, all rows missing, or check that the one that is there can be continued."""
        if resume and unfinished(self.path).is_file():
            before = read_json(self.settings_path, "settings of the unfinished features")
            changed = [
                f"{key} was {before.get(key)}, is {now}" for key, now in self.settings.items() if before.get(key) != now
            ]
            if changed:
                raise InputError(f"--resume: {unfinished(self.path)} was begun differently: {'; '.join(changed)}")
            return
        self.settings_path.unlink(missing_ok=True)
        with unfinished(self.path).open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(file, header)
            try:  # written out, not left sparse: a disk that is too full shows now
                for start in range(0, self.shape[0], ROWS_AT_A_TIME):
                    rows = min(ROWS_AT_A_TIME, self.shape[0] - start)
                    file.write(np.full((rows, self.shape[1]), np.nan, "<f4").data)
                file.flush()
            except OSError as error:
                unfinished(self.path).unlink()
                raise InputError(f"cannot write {self.path}: {error.strerror}") from None
        write_json(self.settings_path, self.settings)

    def open(self) -> None:
        self.table = np.lib.format.open_memmap(unfinished(self.path), mode="r+")
        if self.table.shape != self.shape:
            raise InputError(f"{unfinished(self.path)} has shape {self.table.shape}, not {self.shape}: remove it")

    def missing_blocks(self, block: int) -> list[range]:
        """The blocks of `block` consecutive rows of which any row is missing."""
        starts = range(0, self.shape[0], block)
        blocks = [range(start, min(start + block, self.shape[0])) for start in starts]
        return [rows for rows in blocks if np.isnan(self.table[rows.start : rows.stop]).any()]

    def write(self, rows: range, features: np.ndarray, labels: np.ndarray) -> None:
        """Write features (rows, d) and labels (rows,)."""
        self.table[rows.start : rows.stop, :-1] = features
        self.table[rows.start : rows.stop, -1] = labels

    def finish(self) -> None:
        """Give the complete file its name."""
        self.table.flush()
        unfinished(self.path).replace(self.path)
        self.settings_path.unlink()


def write_image_paths(feature_path: Path, root: Path, paths: Iterable[str]) -> None:
    """List the images of a feature file, relative to the pool's folder, one a line."""
    relative = [os.path.relpath(path, root) for path in paths]
    write_json(paths_file(feature_path), {"root": str(root.resolve()), "paths": relative}, indent=0)
