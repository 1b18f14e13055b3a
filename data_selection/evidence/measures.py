"""Measures of a subset of a pool, on unit rows, by Euclidean distance; only class_balance needs labels.

Between unit rows |a - b| = sqrt(2 - 2 a . b). Similarities are computed a chunk at a time: memory is that of the pool.
"""

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from data_selection.activeft.assignment import nearest_of_all
from data_selection.activeft.pool import distance

Values = dict[str, float | None]  # what is measured of one subset, by name
ROWS_AT_A_TIME = 1024
EMD_STEPS = 10**9  # of the network simplex: more than any sample that fits in memory needs


def random_part(n: int, size: int, seed: int) -> np.ndarray:
    """At most `size` of n samples, ascending, int64. Sampled otherwise than random subsets, so equal to none."""
    return np.sort(np.random.default_rng(seed).choice(n, min(n, size), replace=False))


def representatives(pool: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Which chosen sample represents each pool sample: the most similar one; a chosen sample represents itself.

    Args:
        pool: unit rows (n, d). chosen: k distinct indices into it, int64.
    Returns:
        positions in `chosen` (n,), int64, and cosine similarities (n,).
    """
    nearest, similarity = nearest_of_all(pool, pool[chosen])
    nearest[chosen] = torch.arange(len(chosen), device=pool.device)  # also where another chosen one is its equal
    similarity[chosen] = 1
    return nearest, similarity.clamp(-1, 1)


def coverage(similarity: Tensor) -> dict[str, float]:
    """Distance of the pool's samples to the chosen ones that represent them: mean, 95th percentile, maximum."""
    distances = distance(similarity).cpu().numpy()
    return {
        "coverage_mean": float(distances.mean(dtype=np.float64)),
        "coverage_95": float(np.percentile(distances, 95)),
        "coverage_max": float(distances.max()),
    }


def diversity(rows: Tensor, duplicate_similarity: float) -> dict[str, float | None]:
    """Distance of each chosen sample to the nearest other one, mean and minimum, and how many are near-duplicates.

    Args:
        rows: unit rows (k, d). duplicate_similarity: cosine from which two samples are near-duplicates.
    Returns:
        None for the distances of a single sample. near_duplicates counts the samples that have one.
    """
    if len(rows) < 2:
        return {"diversity_mean": None, "diversity_min": None, "near_duplicates": 0}
    nearest = rows.new_empty(len(rows))
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        similarity = rows[start : start + ROWS_AT_A_TIME] @ rows.T  # (chunk, d) x (d, k) -> (chunk, k)
        similarity.diagonal(start).fill_(-torch.inf)  # itself
        nearest[start : start + ROWS_AT_A_TIME] = similarity.amax(dim=1)
    distances = distance(nearest)
    return {
        "diversity_mean": distances.mean().item(),
        "diversity_min": distances.min().item(),
        "near_duplicates": int((nearest >= duplicate_similarity).sum()),
    }


def shares(represented: np.ndarray) -> dict[str, float]:
    """How the pool is divided among the chosen samples.

    Args:
        represented: how many pool samples each chosen one represents, itself included (k,).
    Returns:
        the largest share of the pool, the evenness of the shares (the exponential of their entropy, divided by k: 1
        when all are equal, 1 / k when one represents all), and how many represent only themselves.
    """
    share = represented / represented.sum()
    return {
        "share_max": float(share.max()),
        "share_evenness": float(np.exp(-(share * np.log(share)).sum()) / len(share)),
        "alone": int((represented == 1).sum()),
    }


def earth_movers_distance(rows: Tensor, pool: Tensor) -> float:
    """The least mean distance over which the chosen samples' mass is moved to become the pool's, exactly.

    Both are weighted uniformly. ActiveFT's objective is meant to minimise it (Xie et al., CVPR 2023).
    Args:
        rows: unit rows (k, d). pool: unit rows (m, d), a sample of it; k m numbers are held, in float64.
    Raises:
        InputError when the exact solver stops early, which should not happen for samples that fit in memory.
    """
    import ot  # slow to load

    costs = torch.cdist(rows.double().cpu(), pool.double().cpu()).numpy()  # (k, m)
    weights = [np.full(size, 1 / size) for size in costs.shape]
    value, log = ot.emd2(*weights, costs, numItermax=EMD_STEPS, log=True)
    if log["warning"]:
        raise InputError(f"the Earth Mover's Distance was not solved ({log['warning']}): lower --emd_samples")
    return float(value)


def class_balance(labels: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """How the chosen samples' classes compare with the pool's, from all labels (n,), 0 and up.

    Returns: how many of the pool's classes are missing, the smallest and largest number of samples of a class, and the
        total variation distance between the class shares of subset and pool (0: equal, 1: nothing in common).
    """
    classes, label = np.unique(labels, return_inverse=True)
    of_pool = np.bincount(label)  # (classes,)
    of_subset = np.bincount(label[chosen], minlength=len(classes))
    return {
        "classes_missing": int((of_subset == 0).sum()),
        "class_smallest": int(of_subset.min()),
        "class_largest": int(of_subset.max()),
        "class_distance": total_variation(of_subset / len(chosen), of_pool / len(labels)),
    }


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
    """Between two lists of shares: 0 where they are equal, 1 where they have nothing in common."""
    return float(np.abs(first - second).sum() / 2)
