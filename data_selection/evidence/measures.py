"""Measures of one subset of a pool, chosen or random, on unit rows and by Euclidean distance.

For unit rows |a - b| = sqrt(2 - 2 a . b). Similarities are computed a chunk at a time: memory is that of the pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.progress import progress_bar
from data_selection.activeft.assignment import nearest_of_all, representatives
from data_selection.activeft.pool import Candidates, Pool, chunks, distance
from data_selection.activeft.prototypes import random_samples
from data_selection.evidence.duplicates import EQUAL

Values = dict[str, float | None]  # the measures of one subset, by name
ROWS_AT_A_TIME = 1024
EMD_STEPS = 10**9  # iterations of the network simplex, more than any sample that fits in memory needs


def random_part(n: int, size: int, seed: int) -> np.ndarray:
    """Draw at most `size` of n samples, ascending, int64; another generator than random subsets', so it equals none."""
    return np.sort(np.random.default_rng(seed).choice(n, min(n, size), replace=False))


def coverage(similarity: Tensor) -> dict[str, float]:
    """Return the pool's distances to the chosen samples that represent it: mean, 95th percentile, maximum."""
    distances = distance(similarity).cpu().numpy()
    return {
        "coverage_mean": float(distances.mean(dtype=np.float64)),
        "coverage_95": float(np.percentile(distances, 95)),
        "coverage_max": float(distances.max()),
    }


def diversity(rows: Tensor, duplicate_similarity: float) -> dict[str, float | None]:
    """Return the mean and minimum distance of unit rows (k, d) to their nearest other one, None for a single row.

    near_duplicates: how many have another row at a cosine of at least duplicate_similarity.
    """
    if len(rows) < 2:
        return {"diversity_mean": None, "diversity_min": None, "near_duplicates": 0}
    nearest = rows.new_empty(len(rows))
    for some in chunks(len(rows), ROWS_AT_A_TIME):
        similarity = rows[some] @ rows.T  # (chunk, d) x (d, k) -> (chunk, k)
        similarity.diagonal(some.start).fill_(-torch.inf)  # itself
        nearest[some] = similarity.amax(dim=1)
    distances = distance(nearest)
    return {
        "diversity_mean": distances.mean().item(),
        "diversity_min": distances.min().item(),
        "near_duplicates": int((nearest >= min(duplicate_similarity, EQUAL)).sum()),
    }


def shares(represented: np.ndarray) -> dict[str, float]:
    """Measure how chosen samples divide the pool, given how many samples each represents (k,), itself included.

    share_evenness: the exponential of the shares' entropy, divided by k: 1 when all are equal, 1 / k when one
    represents all. alone: how many represent only themselves.
    """
    share = represented / represented.sum()
    return {
        "share_max": float(share.max()),
        "share_evenness": float(np.exp(-(share * np.log(share)).sum()) / len(share)),
        "alone": int((represented == 1).sum()),
    }


def earth_movers_distance(rows: Tensor, pool: Tensor) -> float:
    """Return the least mean distance over which to move unit rows (k, d), of equal mass, to become a pool's (m, d).

    ActiveFT's objective is meant to minimise it (Xie et al., CVPR 2023). It is exact, and holds k m float64.
    Raises: InputError if the exact solver stops early, which should not happen for samples that fit in memory.
    """
    import ot  # slow to load

    costs = torch.cdist(rows.double().cpu(), pool.double().cpu()).numpy()  # (k, m)
    weights = [np.full(size, 1 / size) for size in costs.shape]
    value, log = ot.emd2(*weights, costs, numItermax=EMD_STEPS, log=True)
    if log["warning"]:
        raise InputError(f"the Earth Mover's Distance was not solved ({log['warning']}): lower --emd_samples")
    return float(value)


def class_balance(labels: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """Compare the chosen samples' classes with the pool's, from all labels (n,), 0 and up.

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
    """Return the total variation distance of two lists of shares: 0 if equal, 1 if they have nothing in common."""
    return float(np.abs(first - second).sum() / 2)


class PixelClasses(NamedTuple):
    """names: of the classes (c,). counts: labelled pixels of each class in each image of the pool (n, c)."""

    names: tuple[str, ...]
    counts: np.ndarray

    def shares(self, ids: Sequence[int] | None = None) -> np.ndarray:
        """Return each class's share (c,) of the labelled pixels of some images, or of the pool; 0 if there are none."""
        pixels = self.counts.sum(axis=0) if ids is None else self.counts[list(ids)].sum(axis=0)
        return pixels / max(1, pixels.sum())

    def balance(self, ids: Sequence[int]) -> Values:
        """Return how many of the pool's classes have no pixel in a subset, and the total variation distance of both."""
        chosen, pool = self.shares(ids), self.shares()
        missing = int(((chosen == 0) & (pool > 0)).sum())
        return {"pixel_classes_missing": missing, "pixel_distance": total_variation(chosen, pool)}


class Evaluation(NamedTuple):
    """values: every measure. nearest (n,): position of the chosen sample that represents each; similarity (n,)."""

    values: Values
    nearest: np.ndarray
    similarity: np.ndarray


class LabelledRows(NamedTuple):
    """Unit rows (n, d) and their labels (n,), 0 and up."""

    rows: Tensor
    labels: np.ndarray


@dataclass(frozen=True)
class Evaluator:
    """Measures subsets of a pool, all in the same way and against the same sample of the pool.

    pool: unit rows (n, d). labels: (n,), or None if unknown. held_out: samples to measure accuracies on.
    pixels: the classes in every image, or None if the pool has no masks.
    emd_samples: the exact EMD uses at most this many pool samples, and as many chosen ones, sampled with `seed`.
    """

    pool: Tensor
    labels: np.ndarray | None
    held_out: LabelledRows | None
    emd_samples: int
    duplicate_similarity: float
    seed: int
    pixels: PixelClasses | None = None

    def emd_sample(self, size: int) -> np.ndarray:
        """Return the positions that represent `size` samples in the EMD: all of them, or a random part."""
        return random_part(size, self.emd_samples, self.seed)

    def __call__(self, ids: tuple[int, ...]) -> Evaluation:
        chosen = torch.tensor(ids, device=self.pool.device)  # (k,)
        rows = self.pool[chosen]
        nearest, similarity = representatives(Pool(self.pool, Candidates(len(self.pool))), ids)
        represented = nearest.bincount(minlength=len(ids)).cpu().numpy()  # (k,)
        in_emd = self.emd_sample(len(ids)), self.emd_sample(len(self.pool))
        values = {
            "emd": earth_movers_distance(rows[in_emd[0]], self.pool[in_emd[1]]),
            **coverage(similarity),
            **diversity(rows, self.duplicate_similarity),
            **shares(represented),
        }
        if self.labels is not None:
            values |= class_balance(self.labels, np.array(ids))
            if self.held_out:
                known = LabelledRows(rows, self.labels[list(ids)])
                values |= accuracies(known, self.held_out, len(np.unique(self.labels)))
        if self.pixels:
            values |= self.pixels.balance(ids)
        return Evaluation(values, nearest.cpu().numpy(), similarity.cpu().numpy())


def accuracies(chosen: LabelledRows, held_out: LabelledRows, classes: int) -> dict[str, float]:
    """Return top-1 accuracies (percent) of readouts that know only the chosen samples; the pool has `classes` classes.

    nearest: the label of the most similar chosen sample; neighbours and linear: see common.readouts.
    """
    from common.readouts import fit_readout, top_accuracies  # scikit-learn: only reports with held-out images need it

    nearest, _ = nearest_of_all(held_out.rows, chosen.rows)
    right = chosen.labels[nearest.cpu().numpy()] == held_out.labels
    values = {"accuracy_nearest": 100 * float(right.mean())}
    for kind, key in (("knn", "accuracy_neighbours"), ("linear", "accuracy_linear")):
        readout = fit_readout(kind, chosen.rows.cpu().numpy(), chosen.labels, classes)
        values[key] = top_accuracies(readout, held_out.rows.cpu().numpy(), held_out.labels)["acc1"]
    return values


def evaluate_with_random(
    evaluator: Evaluator, subsets: Sequence[tuple[int, ...]], random_seeds: int, labeled: tuple[int, ...] = ()
) -> tuple[list[Evaluation], dict[int, list[Values]]]:
    """Evaluate subsets, and `random_seeds` random ones of each size; equal ones only once.

    Args:
        subsets: ascending indices into the pool. labeled: samples in all subsets, the random ones too.
    Returns:
        the evaluation of each subset, and for each size the measures of every random subset.
    """
    n = len(evaluator.pool)
    random = {
        k: [
            tuple(sorted((*labeled, *random_samples(Candidates(n, labeled), k - len(labeled), seed))))
            for seed in range(random_seeds)
        ]
        for k in dict.fromkeys(len(ids) for ids in subsets)
    }
    distinct = dict.fromkeys([*subsets, *(ids for each in random.values() for ids in each)])
    evaluated = {ids: evaluator(ids) for ids in progress_bar(distinct, desc="measuring subsets", unit="subset")}
    values = {k: [evaluated[ids].values for ids in each] for k, each in random.items()}
    return [evaluated[ids] for ids in subsets], values
