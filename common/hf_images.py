"""Images of a Hugging Face data set, through the `datasets` library: from a local folder, parquet files, or the hub."""

import contextlib
import importlib.util
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from common.errors import InputError
from common.feature_file import MOST_CLASSES
from common.files import checksum
from common.images import NO_LABEL, Loader, Transform, open_rgb

WORD_START = r"(?<![A-Za-z])"
COMPARED = 64  # images in a checksum
SPLIT_NAMES = re.compile(rf"{WORD_START}(train|validation|val|test)(?![a-z])")  # in names of parquet files


class HFImages(Dataset):
    """One split of a data set. The images are not files, but have `names`; labels are -1 if unknown.

    Raises InputError if it cannot be loaded, or if its image column is not found.
    """

    def __init__(
        self,
        source: str,
        split: str = "train",
        column: str | None = None,
        transform: Transform | None = None,
        loader: Loader = open_rgb,
    ):
        if (path := Path(source).expanduser()).exists():
            source = str(path.resolve())  # later commands may run in other folders
        table = load(source, split)
        self.source = {"dataset": source, "split": split, "column": column or image_column(table, source)}
        self.transform, self.loader = transform, loader
        self.images = with_bytes(table, self.source["column"], source)
        labels = columns_of(table, "ClassLabel")
        if not labels and has_numbers(table, "label"):
            labels = ["label"]  # classes without names
        several = f"note: labels are unknown: {source} has several class columns, {', '.join(labels)}"
        self.note = several if len(labels) > 1 else None
        label = labels[0] if len(labels) == 1 else None
        self.labels: Sequence[int] = [NO_LABEL if x is None else int(x) for x in table[label]] if label else []
        self.classes = list(getattr(table.features[label], "names", ())) if label else []
        self.identity = f"{table._fingerprint} {len(table)}"  # covers the rows and all that was done to them
        digits = len(str(len(table) - 1))
        self.names = [f"{split}_{row:0{digits}d}" for row in range(len(table))]
        suffix = ".jpg" if self.first_content().startswith(b"\xff\xd8") else ".png"  # for copies; readers ignore it
        self.names = [f"{name}{suffix}" for name in self.names]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        image = self.loader(f"{self.names[row]} of {self.source['dataset']}", content=self.content(row))
        return self.transform(image) if self.transform else image, self.labels[row] if self.labels else NO_LABEL

    def content(self, row: int) -> bytes:
        """Return the bytes of the image's file. Raises InputError if there is none, or if it cannot be read."""
        stored = self.images[row][self.source["column"]] or {}
        if stored.get("bytes") is not None:
            return stored["bytes"]
        problem = "it has no content"
        if stored.get("path"):
            try:
                return Path(stored["path"]).read_bytes()
            except OSError as error:
                problem = str(error)
        raise InputError(f"cannot read the image {self.names[row]} of {self.source['dataset']}: {problem}")

    def content_checksum(self) -> str:
        """Tell data sets of one length apart by a few of their images, wherever and however they are stored."""
        rows = np.linspace(0, len(self) - 1, min(len(self), COMPARED)).astype(int).tolist()
        return checksum(self.content(row) for row in rows)

    def first_content(self) -> bytes:
        """Return `content` of the first image that has one. Raises InputError, about image 0, if none has."""
        for row in range(len(self)):
            with contextlib.suppress(InputError):
                return self.content(row)
        return self.content(0)


def load(source: str, split: str) -> Any:
    """Load one split as a `datasets.Dataset`. source: a save_to_disk folder, parquet file(s) or a name on the hub."""
    if importlib.util.find_spec("datasets") is None:
        raise InputError("--dataset HF needs the package datasets: pip install datasets")
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it retries; a final failure is raised
    path = Path(source)
    files = parquet_files(path, split)
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        elif files:
            loaded = datasets.load_dataset("parquet", data_files=files, split="train")
        else:
            loaded = datasets.load_dataset(source)
    except Exception as error:  # from pyarrow, fsspec, the hub's client, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot load the data set {source}: {reason}") from None
    if isinstance(loaded, dict):
        if split not in loaded:
            raise InputError(f"the data set {source} has no split {split!r}, only {', '.join(loaded)}: use --split")
        loaded = loaded[split]
    if not len(loaded):
        raise InputError(f"the data set {source} holds no images")
    return loaded


def parquet_files(path: Path, split: str) -> list[str]:
    """Return the file itself, or the files in a folder whose names contain the split; all, if none names a split.

    Raises: InputError if they only name other splits.
    """
    if not path.is_dir():
        return [str(path)] if path.is_file() else []
    names = {str(file): file.relative_to(path).as_posix() for file in sorted(path.rglob("*.parquet"))}
    mine = [file for file, name in names.items() if re.search(WORD_START + re.escape(split), name)]
    others = {found for name in names.values() for found in SPLIT_NAMES.findall(name)}
    if others and not mine:
        raise InputError(f"the data set {path} has no split {split!r}, only {', '.join(sorted(others))}: use --split")
    return mine or [*names]


def columns_of(table: Any, kind: str) -> list[str]:
    """Return the columns whose feature is of this kind, such as Image."""
    import datasets

    return [name for name, feature in table.features.items() if isinstance(feature, getattr(datasets, kind))]


def has_numbers(table: Any, column: str) -> bool:
    """Return whether a column can be that of labels, -1 for none: a few whole numbers."""
    import datasets

    feature = table.features.get(column)
    if not isinstance(feature, datasets.Value) or "int" not in feature.dtype:
        return False
    numbers = [number for number in table.unique(column) if number is not None]
    return bool(numbers) and min(numbers) >= NO_LABEL and max(numbers) < MOST_CLASSES


def image_column(table: Any, source: str) -> str:
    """Return the only column of images. Raises InputError if there is none, or several."""
    images = columns_of(table, "Image")
    if len(images) != 1:
        found = (
            f"columns {', '.join(images)} are images" if images else f"none of {', '.join(table.features)} holds images"
        )
        raise InputError(f"cannot tell the image column of {source}: {found}; name one with --image_column")
    return images[0]


def with_bytes(table: Any, column: str, source: str) -> Any:
    """Keep only the image column, undecoded: it is decoded like files are. Raises InputError if it holds no images."""
    import datasets

    if column not in table.features:
        raise InputError(f"the data set {source} has no column {column!r}, only {', '.join(table.features)}")
    try:
        return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:
        raise InputError(f"column {column!r} of {source} holds no images: {str(error).splitlines()[0]}") from None
