"""What a selection is asked for, and what it gives."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    """How the prototypes are optimised. The defaults are the published ones for CIFAR.

    temperature, balance: tau and lambda of the objective.
    lr, max_iter, scheduler: of Adam; the learning rate is constant (none), or falls to MIN_LR along a cosine.
    init, distance: prototypes start from random samples, or from farthest points (fps) by this distance.
    batch_size: pool samples drawn without replacement for each iteration; None, or n and more, is the whole pool.
    chunk: rows per matrix product, to bound memory; it does not change the result.
    seed: of the initial samples and of the batches.
    """

    temperature: float = 0.07
    balance: float = 1.0
    lr: float = 0.001
    max_iter: int = 300
    init: str = "random"
    distance: str = "euclidean"
    scheduler: str = "none"
    batch_size: int | None = None
    chunk: int | None = None
    seed: int = 0

    MIN_LR = 1e-6

    def batches(self, n: int) -> "Batches | None":
        """The batches drawn from a pool of n samples, or None for the whole pool in every iteration."""
        whole = self.batch_size is None or self.batch_size >= n
        return None if whole else Batches(n, self.batch_size, np.random.default_rng(self.seed))


@dataclass(frozen=True)
class Batches:
    """Random batches of a pool of n samples; all processes draw the same."""

    n: int
    size: int
    generator: np.random.Generator

    def draw(self, part: slice) -> np.ndarray:
        """The next batch: its samples that are in this part of the pool, ascending, counted from the part's start."""
        drawn = np.sort(self.generator.choice(self.n, self.size, replace=False, shuffle=False))
        first, last = np.searchsorted(drawn, (part.start, part.stop))
        return drawn[first:last] - part.start


@dataclass(frozen=True)
class Selection:
    """indices: k distinct pool samples, ascending. losses: J at every iteration. prototypes: unit rows (k, d)."""

    indices: list[int]
    losses: Sequence[float] = ()
    prototypes: Tensor | None = None
