"""Everything that is measured of one subset of the pool, chosen or random."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.progress import progress_bar
from data_selection.activeft.assignment import nearest_of_all
from data_selection.activeft.initialisation import random_samples
from data_selection.activeft.pool import Candidates
from data_selection.evidence.measures import (
    Values,
    class_balance,
    coverage,
    diversity,
    earth_movers_distance,
    random_part,
    representatives,
    shares,
)
from data_selection.evidence.pixel_classes import PixelClasses


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

    pool: unit rows (n, d). labels (n,), or None where they are not known. held_out: what accuracies are measured on.
    pixels: the classes in every image, or None where the pool has no masks.
    emd_samples: the exact EMD uses at most so many pool samples and so many chosen ones, sampled with `seed`.
    """

    pool: Tensor
    labels: np.ndarray | None
    held_out: LabelledRows | None
    emd_samples: int
    duplicate_similarity: float
    seed: int
    pixels: PixelClasses | None = None

    def emd_sample(self, size: int) -> np.ndarray:
        """Positions that represent `size` samples in the EMD: all of them, or a random part."""
        return random_part(size, self.emd_samples, self.seed)

    def __call__(self, ids: tuple[int, ...]) -> Evaluation:
        chosen = torch.tensor(ids, device=self.pool.device)  # (k,)
        rows = self.pool[chosen]
        nearest, similarity = representatives(self.pool, chosen)
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
    """Top-1 accuracy in percent of readouts that know the chosen samples only; `classes` is how many the pool has.

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
    """Evaluate subsets, and as many random ones of each size as there are seeds; equal ones once.

    Args:
        subsets: ascending indices into the pool. labeled: samples that all subsets hold, and the random ones too.
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
