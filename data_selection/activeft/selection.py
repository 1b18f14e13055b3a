"""The optimisation: prototypes that cover the pool (attraction) and differ from each other (repulsion)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam  # the class torch.optim.Adam loads torch._dynamo, which takes a second

from common.errors import InputError
from common.processes import Processes, pick_device
from common.progress import progress_bar
from data_selection.activeft.assignment import NearestPrototypes
from data_selection.activeft.objective import gradient_through_normalisation, loss_and_gradient
from data_selection.activeft.pool import Candidates, Pool, read_pool
from data_selection.activeft.prototypes import farthest_points, match_prototypes, random_samples

Observer = Callable[[int, Tensor], None]

ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "maximize": False}  # torch's
COPIES_OF_PROTOTYPES = 10  # theta, its gradient, two moments, c, sums of attraction and repulsion, and temporaries
BYTES_PER_SAMPLE = 600  # the list of pairs, and what an iteration derives from it
WORKING_BYTES = 100 << 20  # chunks of similarities, libraries' buffers


@dataclass(frozen=True)
class Settings:
    """Settings of the optimisation, by default as published for CIFAR. Raises InputError if a value is invalid.

    temperature, balance: tau and lambda of the objective.
    lr, max_iter, scheduler: Adam's; the learning rate is constant (none) or falls to MIN_LR along a cosine.
    init, distance: prototypes start from random samples, or from farthest points (fps) by this distance.
    batch_size: pool samples drawn without replacement for each iteration; None, or n or more, is the whole pool.
    chunk: rows per matrix product, to bound memory; it does not change the result.
    seed: for the initial samples and the batches.
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

    def __post_init__(self) -> None:
        whole = lambda value, least: isinstance(value, Integral) and value >= least  # noqa: E731
        finite = lambda value: isinstance(value, Real) and math.isfinite(value)  # noqa: E731
        for name, is_right, rule in (
            ("temperature", finite(self.temperature) and self.temperature > 0, "a number above 0"),
            ("balance", finite(self.balance) and self.balance >= 0, "a number >= 0"),
            ("lr", finite(self.lr) and self.lr > 0, "a number above 0"),
            ("max_iter", whole(self.max_iter, 1), "a whole number >= 1"),
            ("init", self.init in ("random", "fps"), "random or fps"),
            ("distance", self.distance in ("euclidean", "cosine"), "euclidean or cosine"),
            ("scheduler", self.scheduler in ("none", "cosine"), "none or cosine"),
            ("batch_size", self.batch_size is None or whole(self.batch_size, 1), "None or a whole number >= 1"),
            ("chunk", self.chunk is None or whole(self.chunk, 1), "None or a whole number >= 1"),
            ("seed", whole(self.seed, 0), "a whole number >= 0"),
        ):
            if not is_right:
                raise InputError(f"{name} {getattr(self, name)!r} must be {rule}")

    def starting_samples(self, pool: Pool, budget: int) -> list[int]:
        """Return the samples at which the prototypes start: random ones, or farthest points (fps)."""
        if self.init == "random":
            return random_samples(pool.candidates, budget, self.seed)
        return farthest_points(pool, budget, self.seed, self.distance)

    def batches(self, n: int, part: slice) -> Iterator[np.ndarray] | None:
        """For each iteration, draw a random batch of the n samples and return those in `part`; None means use all.

        Samples are ascending and counted from the part's start. All processes draw the same batches.
        """
        if self.batch_size is None or self.batch_size >= n:
            return None
        choice = partial(np.random.default_rng(self.seed).choice, n, self.batch_size, replace=False, shuffle=False)
        batches = (np.sort(choice()) for _ in range(self.max_iter))
        return (batch[(batch >= part.start) & (batch < part.stop)] - part.start for batch in batches)


@dataclass(frozen=True)
class Selection:
    """indices: k distinct pool samples, ascending. losses: J at every iteration. prototypes: unit rows (k, d)."""

    indices: list[int]
    losses: Sequence[float] = ()
    prototypes: Tensor | None = None


def select(
    features: np.ndarray | Tensor,
    budget: int,
    *,
    labeled: Sequence[int] = (),
    excluded: Sequence[int] = (),
    device: str = "auto",
    processes: Processes | None = None,
    progress: bool = False,
    observe: Observer | None = None,
    **settings: object,
) -> Selection:
    """Choose `budget` samples of a pool to label (ActiveFT, algorithm 1).

    Args:
        features: pool features (n, d), of any norm; a memory-mapped array is read a block at a time.
        budget: k, the number of samples to choose.
        labeled: pool samples that already have labels. They are fixed prototypes: they attract samples and repel the
            other prototypes, never move, and are not among the chosen.
        excluded: pool samples that must not be chosen. They remain part of the pool to cover.
        processes: this process among those that share the work, each with its own rows of the pool; every one of them
            calls this function and gets the same result. None is this process alone, on `device`.
        progress: show a bar with the loss.
        observe: called with the number of steps made, from 0 to max_iter, and the unit prototypes (k, d) after them.
        settings: fields of `Settings`, such as seed=1 or temperature=0.1.
    Raises:
        InputError: if the budget does not fit the pool, an index is outside it, or a row is zero or not finite.
    """
    candidates = Candidates(len(features), plain_indices("labeled", labeled), plain_indices("excluded", excluded))
    settings = Settings(**settings)
    candidates.check(budget)
    pool = read_pool(features, candidates, processes or Processes(pick_device(device)))
    return optimise(pool, budget, settings, progress, observe)


def plain_indices(name: str, given: Sequence[int] | np.ndarray | Tensor) -> tuple[int, ...]:
    """Return indices as plain numbers. Raises InputError for a mask, and for anything but whole numbers."""
    indices = torch.as_tensor(given if isinstance(given, np.ndarray | Tensor) else list(given))
    if indices.numel() and (indices.dtype == torch.bool or indices.is_floating_point()):
        raise InputError(f"{name} holds {indices.dtype}: give the indices of samples, of a mask its nonzero()")
    return tuple(indices.tolist())


def optimise(
    pool: Pool, budget: int, settings: Settings, progress: bool = False, observe: Observer | None = None
) -> Selection:
    """Do the same for a pool that is already read: what reference.py does, in bounded memory."""
    processes, tau = pool.processes, settings.temperature
    part, k = processes.part(pool.n), budget + len(pool.candidates.labeled)
    theta = pool.rows_of(settings.starting_samples(pool, budget))  # (k, d)
    labeled = pool.rows_of(pool.candidates.labeled)  # (m, d)
    batches = settings.batches(pool.n, part)
    batch, nearest_prototypes = pool.rows, NearestPrototypes(pool.rows, k, settings.chunk)
    mean, square, steps = torch.zeros_like(theta), torch.zeros_like(theta), torch.zeros(())  # Adam's
    losses = torch.zeros(settings.max_iter, device=theta.device)
    shown = progress and processes.is_main
    bar = progress_bar(range(settings.max_iter), "optimising prototypes", unit="it", disable=not shown)
    for iteration in bar:
        if batches:
            batch = pool.rows[torch.from_numpy(next(batches)).to(theta.device)]
            nearest_prototypes = NearestPrototypes(batch, k, settings.chunk)
        norms = theta.norm(dim=1, keepdim=True)
        moving = theta / norms  # (k, d)
        if observe:
            observe(iteration, moving)
        centres = torch.cat([moving, labeled])  # (k + m, d)
        nearest, similarity = nearest_prototypes(centres)
        losses[iteration], gradient = loss_and_gradient(
            batch, nearest, similarity, centres, tau, settings.balance, processes
        )
        gradient = gradient_through_normalisation(gradient[:budget], moving, norms)
        adam([theta], [gradient], [mean], [square], [], [steps], lr=lr_at(iteration, settings), **ADAM)
        if shown and (iteration % 10 == 0 or iteration == settings.max_iter - 1):
            bar.set_postfix(loss=f"{losses[iteration]:.4f}")
    prototypes = unit_prototypes(theta, settings)
    if observe:
        observe(settings.max_iter, prototypes)
    return Selection(sorted(match_prototypes(pool, prototypes)), losses.tolist(), prototypes)


def unit_prototypes(theta: Tensor, settings: Settings) -> Tensor:
    """Return theta as unit rows (k, d). Raises InputError if the optimisation diverged."""
    prototypes = F.normalize(theta, dim=1)
    if not prototypes.isfinite().all():
        lowered = f"temperature {settings.temperature:g} is too low, or lr {settings.lr:g} too high"
        raise InputError(f"the optimisation diverged: {lowered}")
    return prototypes


def lr_at(iteration: int, settings: Settings) -> float:
    """Return the learning rate: constant, or that of CosineAnnealingLR stepped after every iteration."""
    if settings.scheduler == "none":
        return settings.lr
    fallen = (1 + math.cos(math.pi * iteration / settings.max_iter)) / 2
    return settings.MIN_LR + (settings.lr - settings.MIN_LR) * fallen


def memory_bytes(pool_rows: int, batch_rows: int, d: int, k: int) -> int:
    """Estimate the memory of a process that holds `pool_rows` of the pool and uses `batch_rows` in an iteration."""
    # On top of the pool comes the batch or, if it is the whole pool, its projection on principal axes, no larger.
    return 4 * d * (pool_rows + batch_rows + COPIES_OF_PROTOTYPES * k) + BYTES_PER_SAMPLE * batch_rows + WORKING_BYTES
