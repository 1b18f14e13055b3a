"""The optimisation: prototypes that cover the pool (attraction) and differ from each other (repulsion)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import InputError
from common.processes import Processes, pick_device
from data_selection.activeft.assignment import NearestPrototypes
from data_selection.activeft.estimate import in_words, memory_bytes, seconds_at_most
from data_selection.activeft.initialisation import farthest_points, random_samples, rows_of_pool
from data_selection.activeft.known_samples import KnownSamples
from data_selection.activeft.matching import match_prototypes
from data_selection.activeft.objective import gradient_through_normalisation, loss_and_gradient
from data_selection.activeft.sharding import Sharding

ROWS_AT_A_TIME = 8192
COSINE_MIN_LR = 1e-6


@dataclass(frozen=True)
class Selection:
    """indices: k distinct pool samples, ascending. prototypes: unit rows (k, d). losses: J at every iteration."""

    indices: list[int]
    prototypes: Tensor
    losses: list[float]


def select(
    features: np.ndarray | Tensor,
    budget: int,
    *,
    temperature: float = 0.07,
    balance: float = 1.0,
    lr: float = 0.001,
    max_iter: int = 300,
    init: str = "random",
    distance: str = "euclidean",
    scheduler: str = "none",
    batch_size: int | None = None,
    chunk: int | None = None,
    seed: int = 0,
    labeled: Sequence[int] = (),
    excluded: Sequence[int] = (),
    device: str = "auto",
    processes: Processes | None = None,
    progress: bool = False,
    observe: Callable[[int, Tensor], None] | None = None,
) -> Selection:
    """Choose `budget` samples of a pool to label (ActiveFT, algorithm 1).

    Args:
        features: pool features (n, d), of any norm; a memory-mapped array is read a block at a time.
        budget: k, the number of samples to choose.
        temperature, balance: tau and lambda of the objective.
        lr, max_iter, scheduler: Adam, for so many iterations, with a constant (none) or cosine learning rate.
        init, distance: prototypes start from random samples, or from farthest points (fps) by this distance.
        batch_size: pool samples drawn without replacement for each iteration; None, or n and more, is the whole pool.
        chunk: rows per matrix product, to bound memory; it does not change the result.
        seed: of the initial samples and of the batches.
        labeled: pool samples that have labels already. They are fixed prototypes: they attract samples and repel the
            other prototypes, never move, and are not among the chosen.
        excluded: pool samples that must not be chosen. They still are part of the pool to cover.
        processes: this process among those that share the work, each with its own rows of the pool; every one of them
            calls this function and gets the same result. None is this process alone, on `device`.
        progress: say what it will cost, and show a bar with the loss.
        observe: called with the number of steps made, from 0 to max_iter, and the unit prototypes (k, d) after them.
    Raises:
        InputError: a budget that does not fit the pool, indices outside it, or a row that is zero or not finite.
    """
    processes = processes or Processes(pick_device(device))
    sharding = Sharding(len(features), processes.rank, processes.size)
    n = sharding.n
    if n < sharding.world_size:
        raise InputError(f"{sharding.world_size} processes cannot share a pool of {n} samples: start fewer")
    known = KnownSamples(tuple(labeled), tuple(excluded))
    known.check(n, budget)
    whole_pool = batch_size is None or batch_size >= n
    batch_rows = len(range(n)[sharding.rows]) if whole_pool else -(-batch_size // sharding.world_size)
    if progress and processes.is_main:
        needed = memory_bytes(len(range(n)[sharding.rows]), batch_rows, features.shape[-1], budget + len(labeled))
        print(
            f"{n} x {features.shape[-1]} features, {budget} to choose: about {needed / 1e9:.2f} GB of memory",
            flush=True,
        )
    pool = sharding.together(lambda: unit_rows(features, processes.device, sharding.rows))  # (n, d), or a part of it
    if init == "random":
        start = random_samples(n, budget, seed, known)
    else:
        start = farthest_points(pool, budget, seed, distance, sharding, known)
    theta = rows_of_pool(pool, start, sharding).requires_grad_()  # (k, d)
    fixed = rows_of_pool(pool, list(labeled), sharding)  # (m, d)
    optimizer = torch.optim.Adam([theta], lr=lr)
    schedule = None
    if scheduler == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_iter, eta_min=COSINE_MIN_LR)
    draws = np.random.default_rng(seed)  # all processes draw the same
    batch, nearest_prototypes = pool, NearestPrototypes(pool, chunk)

    if progress and processes.is_main:
        each, total = seconds_at_most(
            pool, torch.cat([theta.detach(), fixed]), temperature, batch_rows, max_iter, sharding.world_size
        )
        print(f"at most {in_words(total)} on {pool.device}, {in_words(each)} an iteration", flush=True)

    losses = torch.zeros(max_iter, device=pool.device)
    bar = tqdm(range(max_iter), desc="optimising prototypes", unit="it", disable=not (progress and processes.is_main))
    for iteration in bar:
        if not whole_pool:
            batch = pool[drawn_rows(draws, batch_size, sharding).to(pool.device)]
            nearest_prototypes = NearestPrototypes(batch, chunk)
        norms = theta.detach().norm(dim=1, keepdim=True)
        moving = theta.detach() / norms  # (k, d)
        if observe:
            observe(iteration, moving)
        centres = torch.cat([moving, fixed])  # (k + m, d)
        nearest, similarity = nearest_prototypes(centres)
        losses[iteration], gradient = loss_and_gradient(
            batch, nearest, similarity, centres, temperature, balance, sharding
        )
        theta.grad = gradient_through_normalisation(gradient[:budget], moving, norms)
        optimizer.step()
        if schedule:
            schedule.step()
        if progress and (iteration % 10 == 0 or iteration == max_iter - 1):
            bar.set_postfix(loss=f"{losses[iteration]:.4f}")
    prototypes = torch.nn.functional.normalize(theta.detach(), dim=1)
    if observe:
        observe(max_iter, prototypes)
    chosen = match_prototypes(pool, prototypes, sharding, closed=known.closed(n, pool.device))
    return Selection(sorted(chosen), prototypes, losses.tolist())


def drawn_rows(draws: np.random.Generator, batch_size: int, sharding: Sharding) -> Tensor:
    """Draw a batch of the pool without replacement. Returns: those of its rows that this process holds, ascending."""
    drawn = np.sort(draws.choice(sharding.n, batch_size, replace=False, shuffle=False))
    first, last = np.searchsorted(drawn, (sharding.rows.start, sharding.rows.stop))
    return torch.from_numpy(drawn[first:last] - sharding.rows.start)


def unit_rows(features: np.ndarray | Tensor, device: torch.device, which: slice = slice(None)) -> Tensor:
    """L2-normalised rows of the pool: `rows_on_device`, each divided by its norm."""
    return rows_on_device(features, device, which, unit=True)


def rows_on_device(
    features: np.ndarray | Tensor, device: torch.device, which: slice = slice(None), unit: bool = False
) -> Tensor:
    """The pool (n, d), or some of its rows, as float32 on the device; a memory-mapped array is read piece by piece.

    Raises InputError for a row that is zero or not finite.
    """
    if features.ndim != 2:
        raise InputError(f"features have shape {tuple(features.shape)}, not (n, d)")
    first, last, _ = which.indices(len(features))
    pool = torch.empty((last - first, features.shape[1]), device=device)
    for start in range(0, len(pool), ROWS_AT_A_TIME):
        rows = pool[start : start + ROWS_AT_A_TIME]
        source = features[first + start : first + start + len(rows)]
        rows.copy_(source if isinstance(source, Tensor) else torch.from_numpy(source.astype(np.float32)))
        norms = rows.norm(dim=1, keepdim=True)
        bad = ~(norms.isfinite() & (norms > 0)).squeeze(1)
        if bad.any():
            row = int(bad.int().argmax())
            what = "all zero" if norms[row] == 0 else "not finite"
            row += first + start
            raise InputError(f"row {row} of the features is {what}: extract that image again, or leave it out")
        if unit:
            rows.div_(norms)
    return pool
