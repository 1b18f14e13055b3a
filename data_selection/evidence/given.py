"""What the user gave for a report, read and checked before the work begins."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import InputError
from common.feature_file import paths_file, read_features, read_image_paths
from common.subset_file import losses_file, read_subset_ids


class Subset(NamedTuple):
    """ids: distinct, ascending. losses: of the optimisation that chose them, None where one was not finite."""

    name: str
    path: Path
    ids: tuple[int, ...]
    losses: list[float | None]


def read_subsets(paths: Sequence[str], feature_path: str, n: int) -> list[Subset]:
    """The subsets, by the names of their files, less the pool's name that the selection puts in front.

    Raises: InputError for a file that is no subset of n samples, or losses beside it that are no list of numbers.
    """
    distinct = list(dict.fromkeys(map(Path, paths)))
    names = [path.stem.removeprefix(f"{Path(feature_path).stem}_") for path in distinct]
    names = [name if names.count(name) == 1 else str(path) for name, path in zip(names, distinct, strict=True)]
    return [
        Subset(name, path, tuple(sorted(read_subset_ids(path, n))), read_losses(path))
        for name, path in zip(names, distinct, strict=True)
    ]


def read_losses(subset: Path) -> list[float | None]:
    """The losses that the selection wrote beside its subset, none where it wrote none."""
    path = losses_file(subset)
    if not path.is_file():
        return []
    try:
        losses = [float(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise InputError(f"{path} is not one number a line ({error}): choose the subset again, or remove it") from None
    return [loss if math.isfinite(loss) else None for loss in losses]


def known_labels(labels: np.ndarray) -> np.ndarray | None:
    """Labels (n,), or None unless every sample has one."""
    return labels if (labels >= 0).all() else None


def read_held_out(path: str, d: int, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Held-out features (m, d) and labels (m,). Raises InputError unless they, and the pool's labels, can be used."""
    features, held_out_labels = read_features(path)
    if features.shape[1] != d:
        raise InputError(f"--eval_feature_path {path} has {features.shape[1]} features a row, and the pool has {d}")
    if labels is None:
        raise InputError("--eval_feature_path needs a label for every sample of the pool, and some are -1 (unknown)")
    if known_labels(held_out_labels) is None:
        raise InputError(f"--eval_feature_path {path} needs a label for every sample, and some are -1 (unknown)")
    return features, held_out_labels


def image_paths(feature_path: str, n: int, subsets: Sequence[Subset]) -> list[Path] | None:
    """The images of the pool, or None where they are not known. Says so when chosen images are not there."""
    if not paths_file(Path(feature_path)).is_file():
        return None
    paths = read_image_paths(feature_path, n)
    chosen = sorted({index for subset in subsets for index in subset.ids})
    missing = [paths[index] for index in chosen if not paths[index].is_file()]
    if missing:
        print(f"{len(missing)} of {len(chosen)} chosen images are not there ({missing[0]}): their tiles stay empty")
    return paths
