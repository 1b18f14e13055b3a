"""The file between choosing and training: one JSON list of indices into the pool. Labelled samples may also be a CSV.

Beside it are the losses of its optimisation, and its provenance: what it was chosen from, and how.
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
ROWS_PER_BLOCK, MOST_BLOCKS = 256, 256  # of features in a checksum: all 50,000 of CIFAR; 100 MB with d = 384


def read_subset_ids(path: str | Path, n: int, option: str = "--subset_ids") -> list[int]:
    """Read the indices of a subset of a pool of n images, in the file's order.

    Raises: InputError, naming the option that the file was given with, unless they are distinct and inside 0..n - 1.
    """
    ids = read_json(Path(path), f"{option} file")
    if not isinstance(ids, list) or not all(type(index) is int for index in ids):
        raise InputError(f"{option} {path} is not a JSON list of whole numbers")
    if not ids:
        raise InputError(f"{option} {path} is empty: it names no image")
    outside = next((index for index in ids if not 0 <= index < n), None)
    if outside is not None:
        raise InputError(f"{option} {path} holds {outside}, but the pool has images 0 to {n - 1}")
    index, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise InputError(f"{option} {path} holds {index} {times} times; every index may appear only once")
    return ids


def read_labeled_ids(
    files: Sequence[str], feature_path: str, n: int, features: np.ndarray | None = None
) -> tuple[list[int], list[str]]:
    """Return the labelled samples of a pool of n images, and notes on them for the user.

    files: JSON lists of indices, or lists of images, of which only rows with a label count (see image_list.py).
    features: the pool's (n, d); if given, notes say which lists of indices are from another pool.
    Raises: InputError if a file cannot be read, or an image is outside the pool or has two labels.
    """
    option, lists = "--labeled_ids", [path for path in files if is_image_list(path)]
    subsets = {path: read_subset_ids(path, n, option) for path in files if path not in lists}
    ids = [index for subset in subsets.values() for index in subset]
    notes: list[str] = []
    if lists:
        labelled = labelled_images(lists, option)
        rows = read_pool_paths(feature_path, n).indices_of(labelled, option)
        ids += sorted(rows)  # as in the subset's own JSON
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
        return False  # reported by the function that reads it


def beside(subset: Path, ending: str) -> Path:
    """Return the path of a file kept beside a subset's JSON, named after it; that name may have dots."""
    return subset.with_name(f"{subset.name.removesuffix('.json')}_{ending}")


def losses_file(subset: Path) -> Path:
    """Return the path of the losses of all iterations that led to a subset, one per line."""
    return beside(subset, "losses.txt")


def provenance_file(subset: Path) -> Path:
    """Return the path of a subset's provenance: JSON, but its suffix tells it apart from a subset."""
    return beside(subset, "provenance.txt")


def provenance_of(args: argparse.Namespace, features: np.ndarray) -> dict[str, Any]:
    """Return a selection script's command and options, and a fingerprint of the pool (n, d) that it chooses from."""
    names = labels = None
    try:
        names = names_checksum(read_pool_paths(args.feature_path, len(features)).paths)
    except InputError:  # unknown, as for CIFAR, whose images are identified by their labels
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
    """Write the losses, if any, and the provenance; then the chosen indices as one JSON list."""
    losses_file(path).unlink(missing_ok=True)  # from another run of this name
    if losses:
        with atomic_file(losses_file(path)) as temporary:
            temporary.write_text("".join(f"{loss:.6f}\n" for loss in losses))
    write_json(provenance_file(path), {**provenance, "indices": indices_checksum(indices)}, indent=2)
    write_json(path, indices)


def read_provenance(subset: str | Path) -> dict[str, Any] | None:
    """Read the provenance of a subset: None if there is none, {} if its file is not a provenance."""
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
    """Return one line if this is not the pool that a subset was chosen from; None if it is, or if that is unknown.

    Args:
        n, names, labels, features: of the pool at hand, as far as known: the number of its images, their paths in its
            folder, or their labels if they are not files, and its features (n, d).
    """
    file, kept = provenance_file(Path(subset)), read_provenance(subset)
    if kept is None:
        return None
    try:
        chosen, images, d, rows, listed = kept["indices"], *map(kept["pool"].get, ("images", "d", "features", "names"))
    except (LookupError, AttributeError):
        return f"{file} is not the provenance of a subset: whether {subset} was chosen from this pool is unknown"
    if chosen != indices_checksum(indices):
        return f"{subset} was changed since it was chosen: {file} describes other indices"
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
    """Return one line if a subset was chosen by features of images prepared in another way; else None.

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
    """Return a checksum of images' file names and immediate folders; where the pool itself is does not matter."""
    ends = ("/".join(name.rsplit("/", 2)[-2:]) for name in names)
    return f"{crc32(os.fsencode(chr(0).join(ends))):08x}"


def labels_checksum(labels: Sequence[int]) -> str | None:
    """Return a checksum of the images' labels, in order; None if one is unknown (-1)."""
    labels = np.asarray(labels, np.int64)
    return None if labels.min() < 0 else f"{crc32(labels):08x}"


def features_checksum(features: np.ndarray) -> str:
    """Return a checksum of features (n, d) as float32, without labels: all, or 65,536 rows in evenly spaced blocks."""
    blocks = min(-(-len(features) // ROWS_PER_BLOCK), MOST_BLOCKS)
    crc = 0
    for start in np.linspace(0, max(0, len(features) - ROWS_PER_BLOCK), blocks).astype(int):
        crc = crc32(np.ascontiguousarray(features[start : start + ROWS_PER_BLOCK], np.float32), crc)
    return f"{crc:08x}"


@cache
def project_version(root: Path = ROOT) -> str:
    """Return the version's name, with the commit if the project is a git checkout and git is installed."""
    if (root / ".git").exists():
        try:
            described = subprocess.run(
                ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=True
            )
            return f"{VERSION}, {described.stdout.strip()}"
        except (OSError, subprocess.CalledProcessError):
            pass
    return VERSION
