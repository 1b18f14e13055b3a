"""Herding: samples whose mean follows the pool's."""

import torch
from torch import Tensor
from tqdm import tqdm

from data_selection.activeft.known_samples import KnownSamples


def herding_samples(features: Tensor, k: int, known: KnownSamples) -> list[int]:
    """Herding (Welling, ICML 2009, eq. 5 and 6), on the features themselves.

    With mu the pool's mean, w_0 = mu: choose x_t = argmax w_{t-1} . x, then w_t = w_{t-1} + mu - x_t. On unit rows this
    is the sample that brings the mean of all chosen nearest to mu. Labelled samples count as chosen first.

    Args:
        features: unit rows (n, d).
    Returns: k distinct indices, in the order chosen.
    """
    mean = features.mean(dim=0)  # (d,)
    labeled = features[list(known.labeled)]  # (m, d)
    weight = (1 + len(labeled)) * mean - labeled.sum(dim=0)
    closed = known.closed(len(features), features.device)
    chosen: list[int] = []
    for _ in tqdm(range(k), desc="herding"):
        best = int((features @ weight).masked_fill_(closed, -torch.inf).argmax())  # (n, d) x (d,) -> (n,)
        chosen.append(best)
        closed[best] = True
        weight += mean - features[best]
    return chosen
