"""Herding: samples whose mean follows the pool's."""

import torch

from common.progress import progress_bar
from data_selection.activeft.pool import Pool


def herding_samples(pool: Pool, k: int, seed: int) -> list[int]:
    """Herding (Welling, ICML 2009, eq. 5 and 6), on the features themselves.

    With mu the pool's mean, w_0 = mu: choose x_t = argmax w_{t-1} . x, then w_t = w_{t-1} + mu - x_t. On unit rows this
    is the sample that brings the mean of all chosen nearest to mu. Labelled samples count as chosen first.

    Args:
        seed: without effect; the choice is deterministic.
    Returns: k distinct indices, in the order chosen.
    """
    features = pool.rows
    mean = features.mean(dim=0)  # (d,)
    labeled = features[list(pool.candidates.labeled)]  # (m, d)
    weight = (1 + len(labeled)) * mean - labeled.sum(dim=0)
    closed = pool.closed()
    chosen: list[int] = []
    for _ in progress_bar(range(k), desc="herding"):
        best = int((features @ weight).masked_fill_(closed, -torch.inf).argmax())  # (n, d) x (d,) -> (n,)
        chosen.append(best)
        closed[best] = True
        weight += mean - features[best]
    return chosen
