"""Everything that is measured of one subset of the pool, chosen or random."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data_selection.activeft.initialisation import random_samples
from data_selection.activeft.pool import Candidates
from data_selection.evidence.accuracy import LabelledRows, accuracies
from data_selection.evidence.measures import (
    class_balance,
    coverage,
    diversity,
    earth_movers_distance,
    random_part,
    representatives,
    shares,
)
from data_selection.evidence.table import Values


class Evaluation(NamedTuple):
    """values: every measure. nearest (n,): position of the chosen sample that stands for each, similarity (n,)."""

    values: Values
    nearest: np.ndarray
    similarity: np.ndarray


@dataclass(frozen=True)
class Evaluator:
    """Measures subsets of a pool, all in the same way and against the same sample of the pool.

    pool: unit rows (n, d). labels (n,), or None where they are not known. held_out: what accuracies are measured on.
    emd_samples: at most so many pool samples, and so many chosen ones, drawn with `seed`, for the exact EMD.
    """

    pool: Tensor
    labels: np.ndarray | None
    held_out: LabelledRows | None
    emd_samples: int
    duplicate_similarity: float
    seed: int

    def emd_sample(self, size: int) -> np.ndarray:
        """Positions that stand for `size` samples in the EMD: all, or as many as it is computed of."""
        return random_part(size, self.emd_samples, self.seed)

    def __call__(self, ids: tuple[int, ...]) -> Evaluation:
        chosen = torch.tensor(ids, device=self.pool.device)  # (k,)
        rows = self.pool[chosen]
        nearest, similarity = representatives(self.pool, chosen)
        stands_for = nearest.bincount(minlength=len(ids)).cpu().numpy()  # (k,)
        in_emd = self.emd_sample(len(ids)), self.emd_sample(len(self.pool))
        values = {
            "emd": earth_movers_distance(rows[in_emd[0]], self.pool[in_emd[1]]),
            **coverage(similarity),
            **diversity(rows, self.duplicate_similarity),
            **shares(stands_for),
        }
        if self.labels is not None:
            values |= class_balance(self.labels, np.array(ids))
            if self.held_out:
                known = LabelledRows(rows, self.labels[list(ids)])
                values |= accuracies(known, self.held_out, len(np.unique(self.labels)))
        return Evaluation(values, nearest.cpu().numpy(), similarity.cpu().numpy())


def evaluate_with_random(
    evaluator: Evaluator, subsets: Sequence[tuple[int, ...]], random_seeds: int
) -> tuple[list[Evaluation], dict[int, list[Values]]]:
    """Evaluate subsets, and as many random ones of each size as there are seeds; equal ones once.

    Args:
        subsets: ascending indices into the pool.
    Returns:
        the evaluation of each subset, and for each size the measures of every random subset.
    """
    n = len(evaluator.pool)
    random = {
        k: [tuple(sorted(random_samples(Candidates(n), k, seed))) for seed in range(random_seeds)]
        for k in dict.fromkeys(len(ids) for ids in subsets)
    }
    distinct = dict.fromkeys([*subsets, *(ids for each in random.values() for ids in each)])
    evaluated = {ids: evaluator(ids) for ids in tqdm(distinct, desc="measuring subsets", unit="subset")}
    values = {k: [evaluated[ids].values for ids in each] for k, each in random.items()}
    return [evaluated[ids] for ids in subsets], values
