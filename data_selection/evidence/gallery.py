"""The chosen images of a subset, and the pool images that each stands for."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.command_line import worker_count
from data_selection.evidence.evaluation import Evaluation
from data_selection.evidence.given import Subset
from data_selection.evidence.thumbnails import encoded, strip, thumbnail

NEAREST_SHOWN = 6


def chosen_images(subset: Subset, evaluation: Evaluation) -> dict[str, Any]:
    """For each chosen image, in the order of `ids`: how many pool images it stands for, and the nearest of them."""
    k = len(subset.ids)
    nearest = nearest_represented(np.array(subset.ids), evaluation.nearest, evaluation.similarity)
    return {
        "ids": subset.ids,
        "stands_for": np.bincount(evaluation.nearest, minlength=k).tolist(),
        "nearest": nearest,
        "nearest_similarity": [[round(float(evaluation.similarity[index]), 4) for index in row] for row in nearest],
    }


def nearest_represented(chosen: np.ndarray, nearest: np.ndarray, similarity: np.ndarray) -> list[list[int]]:
    """For each chosen sample the few others most similar to it among those that it stands for, most similar first.

    Args:
        chosen: indices into the pool (k,). nearest, similarity: which of them stands for each sample (n,).
    """
    order = np.lexsort((-similarity, nearest))  # by chosen sample, then by similarity
    starts = np.searchsorted(nearest[order], np.arange(len(chosen) + 1))
    found = []
    for position, (start, end) in enumerate(pairwise(starts)):
        best = order[start : min(end, start + NEAREST_SHOWN + 1)]
        others = best[best != chosen[position]]
        found.append(others[:NEAREST_SHOWN].tolist())
    return found


def pictures(shown: dict[str, Any], paths: Sequence[Path], most: int) -> dict[str, Any]:
    """Thumbnails of at most so many chosen images, those that stand for most, and a strip of the nearest of each.

    Returns: `positions` in `ids`, and for each of them its tile and its strip, encoded, None where none can be read.
    """
    by_weight = np.argsort(-np.array(shown["stands_for"]), kind="stable")[:most].tolist()

    def tile_and_strip(position: int) -> tuple[str | None, str | None]:
        others = [thumbnail(paths[index]) for index in shown["nearest"][position]]
        return encoded(thumbnail(paths[shown["ids"][position]])), encoded(strip(others))

    with ThreadPoolExecutor(worker_count(16)) as threads:
        drawn = list(tqdm(threads.map(tile_and_strip, by_weight), "thumbnails", len(by_weight), unit="image"))
    return {"positions": by_weight, "tiles": [tile for tile, _ in drawn], "strips": [strip for _, strip in drawn]}
