"""A map of the pool: two coordinates for each sample."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from common.errors import InputError
from data_selection.evidence.measures import random_part

FEWEST_FOR_NEIGHBOURHOODS = 20


def check_map(kind: str, n: int) -> None:
    """Raises InputError when a map needs more than n samples, or a library that is not installed."""
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
        tsne = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=seed)
        return tsne.fit_transform(rows), ["t-SNE 1", "t-SNE 2"]
    import umap  # optional

    reducer = umap.UMAP(metric="cosine", random_state=seed, n_jobs=1)  # one job: what a fixed seed needs
    return reducer.fit_transform(rows), ["UMAP 1", "UMAP 2"]


def map_of_pool(pool: Tensor, subsets: Sequence[Sequence[int]], kind: str, samples: int, seed: int) -> dict[str, Any]:
    """A map of so many random samples of the pool and of all chosen ones.

    Returns: the two `axes`, and `index`, `x` and `y` of each sample; the first `pool` of them are the random ones.
    """
    drawn = random_part(len(pool), samples, seed).tolist()
    chosen = {index for ids in subsets for index in ids}
    index = [*drawn, *sorted(chosen.difference(drawn))]
    where, axes = project(kind, pool[index].cpu().numpy(), seed, fitted=len(drawn))
    x, y = where.round(4).T.tolist()
    return {"kind": kind, "axes": axes, "pool": len(drawn), "index": index, "x": x, "y": y}
