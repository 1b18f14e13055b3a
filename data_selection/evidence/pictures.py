"""Contents of the page: a map of the pool, the chosen images with those that each represents, near-duplicates."""

import base64
import importlib.util
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from common.cpus import worker_count
from common.errors import InputError
from common.images import open_rgb
from common.pool_paths import PoolPaths
from common.progress import progress_bar
from data_selection.evidence.duplicates import groups_of
from data_selection.evidence.measures import Evaluation, random_part

FEWEST_FOR_NEIGHBOURHOODS = 20
NEAREST_SHOWN = 6
GROUPS_SHOWN = 60
LONGEST_SIDE = 64
QUALITY = 75

Thumbnails = Callable[[int], Image.Image | None]  # index -> reduced image, None if it cannot be read


def check_map(kind: str, n: int) -> None:
    """Raise InputError if a map needs more than n samples, or a library that is not installed."""
    if kind != "pca" and n < FEWEST_FOR_NEIGHBOURHOODS:
        raise InputError(f"--map {kind} needs at least {FEWEST_FOR_NEIGHBOURHOODS} samples, not {n}: use --map pca")
    if kind == "umap" and importlib.util.find_spec("umap") is None:
        raise InputError("--map umap needs umap-learn: pip install umap-learn")


def project(kind: str, rows: np.ndarray, seed: int, fitted: int) -> tuple[np.ndarray, list[str]]:
    """Place rows (m, d) on a plane. PCA is fitted to the first `fitted` rows, t-SNE and UMAP to all.

    Returns: (m, 2), and what the two axes mean.
    """
    if (rows == rows[0]).all():  # t-SNE would divide by their variance, and crash
        return np.zeros((len(rows), 2)), ["all images are the same"] * 2
    # Each of these libraries is slow to load.
    if kind == "pca":
        from sklearn.decomposition import PCA

        pca = PCA(min(2, fitted, rows.shape[1]), random_state=seed).fit(rows[:fitted])
        where = np.zeros((len(rows), 2))
        where[:, : pca.n_components_] = pca.transform(rows)
        parts = np.nan_to_num([*pca.explained_variance_ratio_, 0])  # nan: all rows are the same
        return where, [f"component {axis + 1} ({parts[axis]:.0%} of the variance)" for axis in (0, 1)]
    if kind == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(rows) - 1) / 3)
        tsne = TSNE(
            metric="cosine", init="pca" if rows.shape[1] > 1 else "random", perplexity=perplexity, random_state=seed
        )
        return tsne.fit_transform(rows), ["t-SNE 1", "t-SNE 2"]
    import umap  # optional

    reducer = umap.UMAP(metric="cosine", random_state=seed, n_jobs=1)  # one job: a fixed seed requires it
    return reducer.fit_transform(rows), ["UMAP 1", "UMAP 2"]


def map_of_pool(pool: Tensor, subsets: Sequence[Sequence[int]], kind: str, samples: int, seed: int) -> dict[str, Any]:
    """Make a map of `samples` random samples of the pool and of all chosen ones.

    Returns: the two `axes`, and `index`, `x` and `y` of each sample; the first `pool` of them are the random ones.
    """
    drawn = random_part(len(pool), samples, seed).tolist()
    chosen = {index for ids in subsets for index in ids}
    index = [*drawn, *sorted(chosen.difference(drawn))]
    where, axes = project(kind, pool[index].cpu().numpy(), seed, fitted=len(drawn))
    x, y = where.round(4).T.tolist()
    return {"kind": kind, "axes": axes, "pool": len(drawn), "index": index, "x": x, "y": y}


def chosen_images(ids: tuple[int, ...], evaluation: Evaluation) -> dict[str, Any]:
    """Return, for each chosen image in the order of `ids`, how many images it represents, and the nearest of them."""
    k = len(ids)
    nearest = nearest_represented(np.array(ids), evaluation.nearest, evaluation.similarity)
    return {
        "ids": ids,
        "represents": np.bincount(evaluation.nearest, minlength=k).tolist(),
        "nearest": nearest,
        "nearest_similarity": [[round(float(evaluation.similarity[index]), 4) for index in row] for row in nearest],
    }


def nearest_represented(chosen: np.ndarray, nearest: np.ndarray, similarity: np.ndarray) -> list[list[int]]:
    """Return, for each chosen sample, the few others most similar to it that it represents, most similar first.

    Args:
        chosen: indices into the pool (k,). nearest: which of them represents each sample (n,). similarity: to it (n,).
    """
    order = np.lexsort((-similarity, nearest))  # by chosen sample, then by similarity
    starts = np.searchsorted(nearest[order], np.arange(len(chosen) + 1))
    found = []
    for position, (start, end) in enumerate(pairwise(starts)):
        best = order[start : min(end, start + NEAREST_SHOWN + 1)]
        others = best[best != chosen[position]]
        found.append(others[:NEAREST_SHOWN].tolist())
    return found


def pictures(shown: dict[str, Any], thumbnail: Thumbnails, most: int) -> dict[str, Any]:
    """Draw thumbnails of the chosen images that represent most, at most `most`, and a strip of the nearest of each.

    Returns: `positions` in `ids`, and for each its tile and its strip, encoded, None if no image can be read.
    """
    by_weight = np.argsort(-np.array(shown["represents"]), kind="stable")[:most].tolist()

    def tile_and_strip(position: int) -> tuple[str | None, str | None]:
        others = [*map(thumbnail, shown["nearest"][position])]
        return encoded(thumbnail(shown["ids"][position])), encoded(strip(others))

    with ThreadPoolExecutor(worker_count(16)) as threads:
        drawn = list(progress_bar(threads.map(tile_and_strip, by_weight), "thumbnails", len(by_weight), unit="image"))
    return {"positions": by_weight, "tiles": [tile for tile, _ in drawn], "strips": [strip for _, strip in drawn]}


def pool_duplicates(pool: Tensor, similarity: float, thumbnail: Thumbnails | None) -> dict[str, Any] | None:
    """Return the pool's largest groups of near-duplicates, with strips of pictures; None if the pool is too large."""
    groups = groups_of(pool, similarity)
    if groups is None:
        return None
    shown = [
        {
            "size": len(group),
            "ids": group[:NEAREST_SHOWN],
            "strip": encoded(strip([*map(thumbnail, group[:NEAREST_SHOWN])])) if thumbnail else None,
        }
        for group in groups[:GROUPS_SHOWN]
    ]
    return {"groups": len(groups), "images": sum(map(len, groups)), "shown": shown}


def thumbnails_of(pool: PoolPaths) -> Thumbnails:
    """Return a function that draws a pool's images. Raises InputError if the data set cannot be loaded."""
    data_set, paths = pool.data_set(), pool.files()

    def thumbnail(index: int) -> Image.Image | None:
        try:
            content = data_set.content(index) if data_set else None
            image = open_rgb(paths[index], upright=True, at_least=2 * LONGEST_SIDE, content=content)
        except InputError:  # the report does without it
            return None
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        return image

    return thumbnail


def strip(images: Sequence[Image.Image | None]) -> Image.Image | None:
    """Paste images side by side in square cells as large as the largest image: one file instead of several."""
    side = max((max(image.size) for image in images if image), default=0)
    if not side:
        return None
    sheet = Image.new("RGBA", (side * len(images), side))
    for position, image in enumerate(images):
        if image:
            sheet.paste(image, (position * side + (side - image.width) // 2, (side - image.height) // 2))
    return sheet


def encoded(image: Image.Image | None) -> str | None:
    """Encode as WebP in base64, to follow `data:image/webp;base64,`."""
    if image is None:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
