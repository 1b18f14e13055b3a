"""The chosen images of a subset and the pool images that each represents, with small copies for the page."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.command_line import worker_count
from common.errors import InputError
from common.images import open_rgb
from common.progress import progress_bar
from data_selection.evidence.evaluation import Evaluation

NEAREST_SHOWN = 6
LONGEST_SIDE = 64
QUALITY = 75


def chosen_images(ids: tuple[int, ...], evaluation: Evaluation) -> dict[str, Any]:
    """For each chosen image, in the order of `ids`: how many pool images it represents, and the nearest of them."""
    k = len(ids)
    nearest = nearest_represented(np.array(ids), evaluation.nearest, evaluation.similarity)
    return {
        "ids": ids,
        "stands_for": np.bincount(evaluation.nearest, minlength=k).tolist(),
        "nearest": nearest,
        "nearest_similarity": [[round(float(evaluation.similarity[index]), 4) for index in row] for row in nearest],
    }


def nearest_represented(chosen: np.ndarray, nearest: np.ndarray, similarity: np.ndarray) -> list[list[int]]:
    """For each chosen sample the few others most similar to it among those that it represents, most similar first.

    Args:
        chosen: indices into the pool (k,). nearest, similarity: which of them represents each sample (n,).
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
    """Thumbnails of at most so many chosen images, those that represent most, and a strip of the nearest of each.

    Returns: `positions` in `ids`, and for each of them its tile and its strip, encoded, None where none can be read.
    """
    by_weight = np.argsort(-np.array(shown["stands_for"]), kind="stable")[:most].tolist()

    def tile_and_strip(position: int) -> tuple[str | None, str | None]:
        others = [thumbnail(paths[index]) for index in shown["nearest"][position]]
        return encoded(thumbnail(paths[shown["ids"][position]])), encoded(strip(others))

    with ThreadPoolExecutor(worker_count(16)) as threads:
        drawn = list(progress_bar(threads.map(tile_and_strip, by_weight), "thumbnails", len(by_weight), unit="image"))
    return {"positions": by_weight, "tiles": [tile for tile, _ in drawn], "strips": [strip for _, strip in drawn]}


def thumbnail(path: Path) -> Image.Image | None:
    """The image, reduced if it is larger. None where it cannot be read: the report does without it."""
    try:
        image = open_rgb(path, upright=True, at_least=2 * LONGEST_SIDE)
    except InputError:
        return None
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image


def strip(images: Sequence[Image.Image | None]) -> Image.Image | None:
    """Images side by side in square cells as large as the largest image: one file instead of several."""
    side = max((max(image.size) for image in images if image), default=0)
    if not side:
        return None
    sheet = Image.new("RGBA", (side * len(images), side))
    for position, image in enumerate(images):
        if image:
            sheet.paste(image, (position * side + (side - image.width) // 2, (side - image.height) // 2))
    return sheet


def encoded(image: Image.Image | None) -> str | None:
    """WebP in base64, to follow `data:image/webp;base64,`."""
    if image is None:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
