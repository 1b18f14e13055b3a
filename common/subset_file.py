"""The file between choosing and training: indices into the pool, one JSON list."""

from collections import Counter
from pathlib import Path

from common.errors import InputError
from common.files import read_json


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


def losses_file(subset: Path) -> Path:
    """Where the loss of every iteration that led to a subset is kept, one per line."""
    return subset.with_name(f"{subset.stem}_losses.txt")
