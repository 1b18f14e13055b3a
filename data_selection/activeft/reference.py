"""ActiveFT as the paper states it, in plain autograd: the method. Change it here first, then make it fast.

It computes what the published code computes, at the same cost: all n x k similarities exist at once, so it is for small
pools. selection.py takes the same steps, fast; the tests compare it with this file. To try another loss, change `loss`
and run the selection scripts with --reference.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import InputError
from data_selection.activeft.pool import Pool
from data_selection.activeft.selection import Selection, Settings, unit_prototypes

MOST_SIMILARITIES = 1 << 29  # n k; with their gradient they take 6 GB


def loss(features: Tensor, theta: Tensor, tau: float, balance: float) -> Tensor:
    """Return J (paper, eq. 5 to 7, in the form of the published code) of unit features (n, d), prototypes (k, d).

    (departure) In log space: exp(1 / tau) overflows float32 below tau = 0.0113.
    """
    c = F.normalize(theta, dim=1)
    s, a = (features @ c.T / tau).max(dim=1)  # (n, d) x (d, k) -> (n, k) -> (n,): the nearest prototype of each sample
    log_s = (c @ c.detach().T / tau).logsumexp(dim=1)  # (k, d) x (d, k) -> (k, k) -> (k,): log S_j, with l = j in it
    log_balance = math.log(balance) if balance else -math.inf
    return F.softplus(log_balance + log_s[a] - s).mean()  # -log( exp(s_i) / (exp(s_i) + lambda S_{a_i}) )


def match(features: Tensor, centres: Tensor, closed: Tensor) -> list[int]:
    """For each prototype in order, take the most similar sample that is neither `closed` (n,) nor taken already."""
    free = centres @ features.T  # (k, d) x (d, n) -> (k, n)
    free[:, closed] = -torch.inf
    chosen: list[int] = []
    for similarity in free:
        similarity[chosen] = -torch.inf
        chosen.append(int(similarity.argmax()))
    return chosen


def optimise(pool: Pool, budget: int, settings: Settings) -> Selection:
    """Choose `budget` samples. Raises InputError if the pool's similarities would take too much memory."""
    n, k = pool.n, budget + len(pool.candidates.labeled)
    if n * k > MOST_SIMILARITIES or pool.processes.size > 1:
        raise InputError(
            f"the reference would hold all {n} x {k} similarities in one process, which allows {MOST_SIMILARITIES}: "
            "leave --reference out"
        )
    theta = pool.rows_of(settings.starting_samples(pool, budget)).requires_grad_()  # (k, d)
    labeled = pool.rows_of(pool.candidates.labeled)  # (m, d): prototypes that never move
    optimiser = torch.optim.Adam([theta], lr=settings.lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.max_iter, eta_min=settings.MIN_LR)
    batches, losses = settings.batches(n, slice(0, n)), []
    for _ in range(settings.max_iter):
        batch = pool.rows[next(batches)] if batches else pool.rows
        objective = loss(batch, torch.cat([theta, labeled]), settings.temperature, settings.balance)
        optimiser.zero_grad()
        objective.backward()
        optimiser.step()
        if settings.scheduler == "cosine":
            cosine.step()
        losses.append(objective.item())
    prototypes = unit_prototypes(theta.detach(), settings)
    return Selection(sorted(match(pool.rows, prototypes, pool.closed())), losses, prototypes)
