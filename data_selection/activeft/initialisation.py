"""Which pool samples the prototypes start from."""

import random

import torch
from torch import Tensor


def random_samples(n: int, k: int, seed: int) -> list[int]:
    """k of n samples without replacement, in the order drawn: what the published code draws after random.seed(seed)."""
    return random.Random(seed).sample(range(n), k)


def farthest_points(features: Tensor, k: int, seed: int, distance: str = "euclidean") -> list[int]:
    """Farthest point sampling: a random first sample, then always the one farthest from all chosen so far.

    Args:
        features: unit rows (n, d).
        distance: euclidean or cosine. On unit rows |a - b|^2 = 2 (1 - a . b), so both order the samples alike; they
            differ in rounding only, which decides between samples that are equally far.
    Returns:
        k distinct indices, in the order chosen; the first index on ties.
    """
    chosen = random_samples(len(features), 1, seed)
    to_chosen = torch.full((len(features),), torch.inf, device=features.device)
    while len(chosen) < k:
        to_newest = 1 - features @ features[chosen[-1]]  # (n, d) x (d,) -> (n,)
        if distance == "euclidean":
            to_newest = (2 * to_newest).clamp_min(0).sqrt()
        to_chosen = torch.minimum(to_chosen, to_newest)
        to_chosen[chosen[-1]] = -torch.inf  # duplicates of a chosen sample are at distance 0, itself is out
        chosen.append(int(to_chosen.argmax()))
    return chosen
