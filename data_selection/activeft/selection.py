"""The optimisation: prototypes that cover the pool (attraction) and differ from each other (repulsion)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from activeft.assignment import nearest_prototypes
from activeft.initialisation import farthest_points, random_samples
from activeft.matching import match_prototypes
from activeft.objective import gradient_through_normalisation, loss_and_gradient
from common.command_line import InputError, pick_device

ROWS_AT_A_TIME = 65536
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
    device: str = "auto",
    progress: bool = False,
) -> Selection:
    """Choose `budget` samples of a pool to label (ActiveFT, algorithm 1).

    Args:
        features: pool features (n, d), of any norm; a memory-mapped array is read a block at a time.
        budget: k, at most n.
        temperature, balance: tau and lambda of the objective.
        lr, max_iter, scheduler: Adam, for so many iterations, with a constant (none) or cosine learning rate.
        init, distance: prototypes start from random samples, or from farthest points (fps) by this distance.
        batch_size: pool samples drawn without replacement for each iteration; None, or n and more, is the whole pool.
        chunk: rows per matrix product, to bound memory; it does not change the result.
        seed: of the initial samples and of the batches.
        progress: show a bar with the loss.
    Raises:
        InputError: a budget outside 1..n, or a row that is zero or not finite.
    """
    pool = unit_rows(features, pick_device(device))
    n = len(pool)
    if not 1 <= budget <= n:
        raise InputError(f"a budget of {budget} samples does not fit a pool of {n}: it must be from 1 to {n}")
    start = random_samples(n, budget, seed) if init == "random" else farthest_points(pool, budget, seed, distance)
    theta = pool[start].clone().requires_grad_()  # (k, d)
    optimizer = torch.optim.Adam([theta], lr=lr)
    schedule = None
    if scheduler == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_iter, eta_min=COSINE_MIN_LR)
    draws = np.random.default_rng(seed)

    losses = torch.zeros(max_iter, device=pool.device)
    bar = tqdm(range(max_iter), desc="optimising prototypes", unit="it", disable=not progress)
    for iteration in bar:
        batch = pool
        if batch_size is not None and batch_size < n:
            rows = np.sort(draws.choice(n, batch_size, replace=False, shuffle=False))
            batch = pool[torch.from_numpy(rows).to(pool.device)]
        norms = theta.detach().norm(dim=1, keepdim=True)
        centres = theta.detach() / norms
        nearest, similarity = nearest_prototypes(batch, centres, chunk)
        losses[iteration], gradient = loss_and_gradient(batch, nearest, similarity, centres, temperature, balance)
        theta.grad = gradient_through_normalisation(gradient, centres, norms)
        optimizer.step()
        if schedule:
            schedule.step()
        if progress and (iteration % 10 == 0 or iteration == max_iter - 1):
            bar.set_postfix(loss=f"{losses[iteration]:.4f}")
    prototypes = torch.nn.functional.normalize(theta.detach(), dim=1)
    return Selection(sorted(match_prototypes(pool, prototypes)), prototypes, losses.tolist())


def unit_rows(features: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """L2-normalised float32 rows (n, d) on the device. Raises InputError for a row that is zero or not finite."""
    if features.ndim != 2:
        raise InputError(f"features have shape {tuple(features.shape)}, not (n, d)")
    unit = torch.empty(tuple(features.shape), device=device)
    for start in range(0, len(features), ROWS_AT_A_TIME):
        rows = torch.as_tensor(np.array(features[start : start + ROWS_AT_A_TIME], dtype=np.float32), device=device)
        norms = rows.norm(dim=1, keepdim=True)
        bad = ~(norms.isfinite() & (norms > 0)).squeeze(1)
        if bad.any():
            row = int(bad.int().argmax())
            what = "all zero" if norms[row] == 0 else "not finite"
            raise InputError(f"row {start + row} of the features is {what}: extract that image again, or leave it out")
        unit[start : start + len(rows)] = rows / norms
    return unit
