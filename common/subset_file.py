"""The file between choosing and training: indices into the pool, one JSON list. What has labels may also be a CSV."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError
from common.files import read_json
from common.image_list import labelled_images, notes_on
from common.pool_paths import read_pool_paths


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
    files: Sequence[str], feature_path: str, n: int, option: str = "--labeled_ids"
) -> tuple[list[int], list[str]]:
    """The samples of a pool of n that have labels, and what should be said of them.

    files: JSON lists of indices, or lists of images of which the rows with a label count (see image_list.py).
    Raises: InputError for what cannot be read, an image outside the pool, or one with two labels.
    """
    lists = [path for path in files if is_image_list(path)]
    ids = [index for path in files if path not in lists for index in read_subset_ids(path, n, option)]
    notes: list[str] = []
    if lists:
        labelled = labelled_images(lists, option)
        ids += sorted(read_pool_paths(feature_path, n).rows_of(labelled, option))  # as the subset's own JSON has them
        notes = notes_on(labelled, option)
    return list(dict.fromkeys(ids)), notes


def is_image_list(path: str) -> bool:
    """Whether a file lists images, not indices: a CSV or text, or a JSON of tasks with labels."""
    if Path(path).suffix.lower() in (".csv", ".txt", ".tsv"):
        return True
    try:
        return "{" in Path(path).read_text(errors="replace")[:64]
    except OSError:
        return False  # said by who reads it


def losses_file(subset: Path) -> Path:
    """Where the loss of every iteration that led to a subset is kept, one per line."""
    return subset.with_name(f"{subset.stem}_losses.txt")
