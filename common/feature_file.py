"""The feature file between the stages: a float32 .npy of shape (n, d + 1), the integer label in the last column.

Until it is complete it is called `<name>.npy.partial` and its missing rows are NaN, so a run that is killed at any
moment leaves nothing that looks finished, and any number of processes can continue it.
"""

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zlib import crc32

import numpy as np

from common.errors import InputError
from common.files import kind_of_file, read_json, write_json
from common.pool_paths import PoolImage

ROWS_AT_A_TIME = 65536
DESCRIBED = {"model", "weights", "feature", "d", "input_size", "interpolation", "mean", "std"}  # required
MOST_CLASSES = 2**24  # whole numbers are exact in float32 up to here


def unfinished(path: Path) -> Path:
    """Return the path of a feature file while it has missing rows."""
    return Path(f"{path}.partial")


def read_features(path: str | Path, labels: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Open a feature file without reading it into memory.

    labels: whether the last column is the label; if not, as in files of other tools, all columns are features.
    Returns: features (n, d), memory-mapped, and labels (n,), int64 (-1 if unknown).
    Raises: InputError if the file is missing, unfinished, pickled, not 2-D or not floating point, or if its labels are
        not whole numbers (because it has no label column, say).
    """
    path = Path(path)
    if not path.is_file():
        hint = f"; {unfinished(path)} is unfinished: extract with --resume" if unfinished(path).is_file() else ""
        raise InputError(f"feature file {path} is {'a folder' if path.is_dir() else 'not there'}{hint}")
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, TokenError) as error:
        kind = kind_of_file(path) or ""
        reason = kind if kind and "(.npy)" not in kind else str(error).splitlines()[0]
        raise InputError(f"feature file {path} is not a plain .npy array: {reason}") from None
    columns = "(n, d + 1) with the label in the last column" if labels else "(n, d)"
    if not isinstance(table, np.ndarray):
        raise InputError(f"feature file {path} holds several arrays ({', '.join(table.files[:5])}), not {columns}")
    if table.ndim != 2 or table.shape[0] < 1 or table.shape[1] < 1 + labels:
        shape = f"shape {table.shape}" if table.ndim else "a single number"
        raise InputError(f"feature file {path} has {shape}, not {columns}")
    if table.dtype.kind != "f":
        raise InputError(f"feature file {path} holds {table.dtype}, not floating point numbers")
    if not labels:
        return table, np.full(len(table), -1)
    column = np.array(table[:, -1], dtype=np.float64)
    if not np.isfinite(column).all():
        raise InputError(
            f"feature file {path}: row {int(np.argmin(np.isfinite(column)))} has no finite label (last column)"
        )
    whole = (column == column.round()) & (abs(column) < MOST_CLASSES)
    if not whole.all():
        row = int(np.argmin(whole))
        wrong = f"the last column is the label, and that of row {row} is {column[row]:g}"
        raise InputError(f"feature file {path}: {wrong}; use --no-labels if all columns are features")
    return table[:, :-1], column.astype(np.int64)


def description_file(feature_path: Path) -> Path:
    """Return the path of the features' description: model, weights, token, d, size, mean, std, interpolation."""
    return feature_path.with_suffix(".json")


def read_description(feature_path: str | Path) -> dict[str, Any] | None:
    """Read the description of a file's features; None if there is none (features of another tool, say)."""
    path = description_file(Path(feature_path))
    described = read_json(path, "description of the features") if path.is_file() else None
    return described if isinstance(described, dict) and described.keys() >= DESCRIBED else None


def difference(ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> str | None:
    """Return the first difference between two descriptions, in words; None if they agree or one is unknown."""
    if not ours or not theirs:
        return None
    name = lambda value: Path(value).name if isinstance(value, str) else value  # noqa: E731 - weights may have moved
    keys = (key for key in ours if key in theirs and name(ours[key]) != name(theirs[key]))
    return next((f"{key.replace('_', ' ')} {theirs[key]} instead of {ours[key]}" for key in keys), None)


def in_words(description: dict[str, Any]) -> str:
    """Return a description of features and their network as one line."""
    mean, std = (" ".join(f"{value:.3g}" for value in description[key]) for key in ("mean", "std"))
    return (
        f"{description['model']}, weights {description['weights']}; feature: {description['feature']}, "
        f"d {description['d']}; images {description['input_size']}x{description['input_size']} "
        f"({description['interpolation']}), mean {mean}, std {std}"
    )


class FeatureFile:
    """A feature file that is written block by block, by one or several processes.

    Usage: `prepare` in one process, then `open` and `write` in each, then `finish` in one. The features depend on
    `settings`: only a run with the same ones continues an unfinished file, except that their `folder` may have moved.
    `images`, if the pool is of files: a run with other images keeps the rows of those still there and unchanged.
    """

    def __init__(self, path: Path, n: int, d: int, settings: dict[str, Any], images: Sequence[PoolImage] | None = None):
        self.path, self.shape, self.images = path, (n, d + 1), images
        self.settings = json.loads(json.dumps({"d": d, **settings} if images else {"n": n, "d": d, **settings}))

    @property
    def settings_path(self) -> Path:
        return Path(f"{unfinished(self.path)}.json")

    def prepare(self, resume: bool) -> None:
        """Create the unfinished file, all rows missing; or check that this run can resume the existing one."""
        if resume and unfinished(self.path).is_file() and self.settings_path.is_file():
            before = read_json(self.settings_path, "settings of the unfinished features")
            changed = [
                f"{key} was {before[key]}, is {now}"
                for key, now in self.settings.items()
                if key in before and before[key] != now and not (key == "folder" and not Path(before[key]).exists())
            ]  # only what both know; a folder that is gone was moved
            if changed:
                raise InputError(f"--resume: {unfinished(self.path)} has other settings: {'; '.join(changed)}")
            if self.images:
                self._follow_images([PoolImage(*image) for image in before.get("images", ())])
            return
        self.settings_path.unlink(missing_ok=True)
        self._remove_moved()
        self._create(unfinished(self.path))
        self._write_settings()

    def _write_settings(self) -> None:
        write_json(self.settings_path, {**self.settings, "images": self.images} if self.images else self.settings)

    def _create(self, path: Path) -> None:
        try:
            with path.open("wb") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
                np.lib.format.write_array_header_1_0(file, header)
                # written out, not left sparse: lack of disk space shows now
                for start in range(0, self.shape[0], ROWS_AT_A_TIME):
                    rows = min(ROWS_AT_A_TIME, self.shape[0] - start)
                    file.write(np.full((rows, self.shape[1]), np.nan, "<f4").data)
                file.flush()
        except OSError as error:
            path.unlink(missing_ok=True)
            raise InputError(f"cannot write {self.path}: {error.strerror}") from None

    def _follow_images(self, before: Sequence[PoolImage]) -> None:
        """If the pool has changed, move the rows of images that are still the same to their new places.

        The settings, which list the images, are written before the new table replaces the old one: after a kill in
        between, the next run finds the new table by the images that they list.
        """
        if self._moved(before).is_file():
            self._moved(before).replace(unfinished(self.path))
        if list(before) == list(self.images):
            return
        old = self._table("r", len(before))
        row_of = {(image.path, image.size, image.modified): row for row, image in enumerate(before)}
        moved = self._moved(self.images)
        self._create(moved)
        table = np.lib.format.open_memmap(moved, mode="r+")
        for row, image in enumerate(self.images):
            source = row_of.get((image.path, image.size, image.modified))
            if source is not None and np.isfinite(old[source]).all():
                table[row, :-1], table[row, -1] = old[source, :-1], image.label
        table.flush()
        self._write_settings()
        moved.replace(unfinished(self.path))

    def _moved(self, images: Sequence[PoolImage]) -> Path:
        return Path(f"{unfinished(self.path)}.{crc32(json.dumps(images).encode()):08x}")

    def _remove_moved(self) -> None:
        """Remove the tables of runs that were killed while they moved rows: they hold another run's features."""
        for left in self.path.parent.glob(f"{glob.escape(unfinished(self.path).name)}.{'?' * 8}"):
            left.unlink()

    def open(self) -> None:
        self.table = self._table("r+", self.shape[0])

    def _table(self, mode: str, n: int) -> np.memmap:
        path = unfinished(self.path)
        try:
            table = np.lib.format.open_memmap(path, mode=mode)
        except (ValueError, OSError) as error:
            raise InputError(f"{path} cannot be continued ({error}): remove it") from None
        if table.shape != (n, self.shape[1]):
            raise InputError(f"{path} has shape {table.shape}, not {(n, self.shape[1])}: remove it")
        return table

    def missing_blocks(self, block: int) -> list[range]:
        """Return the blocks of `block` consecutive rows with a missing row."""
        starts = range(0, self.shape[0], block)
        blocks = [range(start, min(start + block, self.shape[0])) for start in starts]
        return [rows for rows in blocks if np.isnan(self.table[rows.start : rows.stop]).any()]

    def write(self, rows: range, features: np.ndarray, labels: np.ndarray) -> None:
        """Write features (rows, d) and labels (rows,)."""
        self.table[rows.start : rows.stop, :-1] = features
        self.table[rows.start : rows.stop, -1] = labels

    def missing_rows(self) -> list[int]:
        """Return the missing rows: at the end, those of images that cannot be read."""
        return [row for rows in self.missing_blocks(ROWS_AT_A_TIME) for row in rows if np.isnan(self.table[row]).any()]

    def finish(self) -> None:
        """Give the complete file its final name."""
        self.table.flush()
        unfinished(self.path).replace(self.path)
        self.settings_path.unlink()
        self._remove_moved()

    def discard(self) -> None:
        """Remove the unfinished file, once its content has been written elsewhere."""
        self.settings_path.unlink(missing_ok=True)
        unfinished(self.path).unlink(missing_ok=True)
        self._remove_moved()
