"""The file between choosing and training: indices into the pool, one JSON list. What has labels may also be a CSV.

Beside it stand the losses of its optimisation, and its provenance: what it was chosen from, and how.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from common import VERSION
from common.errors import InputError
from common.feature_file import read_description, read_features
from common.files import atomic_file, read_json, write_json
from common.image_list import labelled_images, notes_on
from common.pool_paths import read_pool_paths

ROOT = Path(__file__).resolve().parents[1]
ROWS_PER_BLOCK, MOST_BLOCKS = 256, 256  # of features in a checksum; all of the 50,000 of CIFAR, 100 MB with d = 384


def read_subset_ids(path: str | Path, n: int, option: str = "--subset_ids") -> list[int]:
    """The indices of a subset of n images, in the file's order.

    Raises: InputError, naming the option that the file was given with, unless they are distinct and inside 0..n - 1.
    """
    ids = read_json(Path(path), f"{option} file")
    if not isinstance(ids, list) or not all(type(index) is int for index in ids):
        raise InputError(f"{option} {path} is not one JSON list of whole numbers")
    if not ids:
        raise InputError(f"{option} {path} is empty: it names no image")
    outside = next((index for index in ids if not 0 <= index < n), None)
    if outside is not None:
        raise InputError(f"{option} {path} holds {outside}, but the pool has images 0 to {n - 1}")
    index, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise InputError(f"{option} {path} holds {index} {times} times; every index must stand in it once")
    return ids


def read_labeled_ids(
    files: Sequence[str], feature_path: str, n: int, features: np.ndarray | None = None
) -> tuple[list[int], list[str]]:
    """The samples of a pool of n that have labels, and what should be said of them.

    files: JSON lists of indices, or lists of images of which the rows with a label count (see image_list.py).
    features: of the pool (n, d), if it should be said which lists of indices are of another one.
    Raises: InputError for what cannot be read, an image outside the pool, or one with two labels.
    """
    option, lists = "--labeled_ids", [path for path in files if is_image_list(path)]
    subsets = {path: read_subset_ids(path, n, option) for path in files if path not in lists}
    ids = [index for subset in subsets.values() for index in subset]
    notes: list[str] = []
    if lists:
        labelled = labelled_images(lists, option)
        rows = read_pool_paths(feature_path, n).indices_of(labelled, option)
        ids += sorted(rows)  # as the subset's own JSON has them
        notes += notes_on(labelled, option)
    if features is not None:
        notes += filter(None, (note_on_pool(path, subset, n, features=features) for path, subset in subsets.items()))
    return list(dict.fromkeys(ids)), notes


def is_image_list(path: str) -> bool:
    """Whether a file lists images, not indices: a CSV or text, or a JSON of tasks with labels."""
    if Path(path).suffix.lower() in (".csv", ".txt", ".tsv"):
        return True
    try:
        return "{" in Path(path).read_text(errors="replace")[:64]
    except OSError:
        return False  # said by who reads it


def beside(subset: Path, ending: str) -> Path:
    """What is kept beside the JSON of a subset, by its name, which may have dots."""
    return subset.with_name(f"{subset.name.removesuffix('.json')}_{ending}")


def losses_file(subset: Path) -> Path:
    """Where the loss of every iteration that led to a subset is kept, one per line."""
    return beside(subset, "losses.txt")


def provenance_file(subset: Path) -> Path:
    """Where the provenance of a subset is kept: JSON, by its suffix told apart from a subset."""
    return beside(subset, "provenance.txt")


def provenance_of(args: argparse.Namespace, features: np.ndarray) -> dict[str, Any]:
    """What a selection script was asked for, and a fingerprint of the pool (n, d) that it chooses from."""
    names = labels = None
    try:
        names = names_checksum(read_pool_paths(args.feature_path, len(features)).paths)
    except InputError:  # not known, as for CIFAR, whose images are told from others by their labels
        labels = labels_checksum(read_features(args.feature_path, labels=not args.no_labels)[1])
    return {
        "command": shlex.join(["python", *sys.argv]),
        "options": json.loads(json.dumps(vars(args), default=str)),
        "seed": args.seed,
        "version": project_version(),
        "torch": metadata.version("torch"),
        "network": read_description(args.feature_path),
        "pool": {
            "images": len(features),
            "d": features.shape[1],
            "features": features_checksum(features),
            "names": names,
            "labels": labels,
        },
    }


def write_subset(path: Path, indices: list[int], losses: Sequence[float], provenance: dict[str, Any]) -> None:
    """Write the chosen indices as one JSON list, after what stands beside it: losses, if any, and the provenance."""
    losses_file(path).unlink(missing_ok=True)  # of another run that had this name
    if losses:
        with atomic_file(losses_file(path)) as temporary:
            temporary.write_text("".join(f"{loss:.6f}\n" for loss in losses))
    write_json(provenance_file(path), {**provenance, "indices": indices_checksum(indices)}, indent=2)
    write_json(path, indices)


def read_provenance(subset: str | Path) -> dict[str, Any] | None:
    """The provenance of a subset: None where there is none, and {} where its file is no provenance."""
    file = provenance_file(Path(subset))
    if not file.is_file():
        return None
    try:
        kept = read_json(file, "provenance of a subset")
    except InputError:
        return {}
    return kept if isinstance(kept, dict) else {}


def note_on_pool(
    subset: str | Path,
    indices: Sequence[int],
    n: int,
    names: Iterable[str] = (),
    labels: Sequence[int] = (),
    features: np.ndarray | None = None,
) -> str | None:
    """One line when this is not the pool that a subset was chosen from; None when it is, or nothing is known of it.

    Args:
        n, names, labels, features: of the pool at hand: its images, their paths in its folder, or their labels where
            they are no files, and its features (n, d), as far as they are known.
    """
    file, kept = provenance_file(Path(subset)), read_provenance(subset)
    if kept is None:
        return None
    try:
        chosen, images, d, rows, listed = kept["indices"], *map(kept["pool"].get, ("images", "d", "features", "names"))
    except (LookupError, AttributeError):
        return f"{file} is no provenance of a subset: whether {subset} was chosen from this pool is not known"
    if chosen != indices_checksum(indices):
        return f"{subset} was changed since it was chosen: {file} is of other indices"
    here = f"{subset} was chosen from another pool"
    if images != n:
        return f"{here}, of {images} images: this one has {n}"
    if listed and (names := list(names)) and listed != names_checksum(names):
        return f"{here}: the names of its {n} images differ from those of this one"
    known = kept["pool"].get("labels")
    if known and len(labels) and known != labels_checksum(labels):
        return f"{here}: the labels of its {n} images differ from those of this one"
    if features is not None and (d, rows) != (features.shape[1], features_checksum(features)):
        return f"{subset} was chosen from other features than these (d {d} there, {features.shape[1]} here)"
    return None


def note_on_network(subset: str | Path, prepared: dict[str, Any]) -> str | None:
    """One line when the features that a subset was chosen by are of images prepared in another way; else None.

    prepared: input_size, mean and std of the images at hand.
    """
    network = (read_provenance(subset) or {}).get("network")
    if not isinstance(network, dict):
        return None
    differing = [key for key, value in prepared.items() if network.get(key) not in (None, value)]
    if not differing:
        return None
    chosen = ", ".join(f"{key} {network[key]}" for key in differing)
    here = ", ".join(f"{key} {prepared[key]}" for key in differing)
    return f"{subset} was chosen by features of {network.get('model')} with {chosen}; this run has {here}"


def indices_checksum(indices: Iterable[int]) -> str:
    return f"{crc32(str(sorted(indices)).encode()):08x}"


def names_checksum(names: Iterable[str]) -> str:
    """Of images' file names and the folders that they are directly in; where the pool itself is does not matter."""
    ends = ("/".join(name.rsplit("/", 2)[-2:]) for name in names)
    return f"{crc32(os.fsencode(chr(0).join(ends))):08x}"


def labels_checksum(labels: Sequence[int]) -> str | None:
    """Of the label of each image, in order; None where one is not known (-1)."""
    labels = np.asarray(labels, np.int64)
    return None if labels.min() < 0 else f"{crc32(labels):08x}"


def features_checksum(features: np.ndarray) -> str:
    """Of the features (n, d) as float32, whatever the labels: all, or 65,536 rows in evenly spaced blocks."""
    blocks = min(-(-len(features) // ROWS_PER_BLOCK), MOST_BLOCKS)
    crc = 0
    for start in np.linspace(0, max(0, len(features) - ROWS_PER_BLOCK), blocks).astype(int):
        crc = crc32(np.ascontiguousarray(features[start : start + ROWS_PER_BLOCK], np.float32), crc)
    return f"{crc:08x}"


@cache
def project_version(root: Path = ROOT) -> str:
    """The version's name, and the commit where the project is a checkout with git at hand."""
    if (root / ".git").exists():
        try:
            described = subprocess.run(
                ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=True
            )
            return f"{VERSION}, {described.stdout.strip()}"
        except (OSError, subprocess.CalledProcessError):
            pass
    return VERSION
