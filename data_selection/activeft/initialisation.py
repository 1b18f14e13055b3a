"""Which pool samples the prototypes start from."""

import random

import torch
from torch import Tensor

from activeft.sharding import Sharding


def random_samples(n: int, k: int, seed: int) -> list[int]:
    """k of n samples without replacement, in the order drawn: what the published code draws after random.seed(seed)."""
    return random.Random(seed).sample(range(n), k)


def rows_of_pool(features: Tensor, indices: list[int], sharding: Sharding) -> Tensor:
    """The features (k, d) of these pool samples, whichever process holds them."""
    local = torch.tensor(indices, device=features.device) - sharding.rows.start  # (k,)
    mine = (local >= 0) & (local < len(features))
    rows = features.new_zeros(len(indices), features.shape[1])
    rows[mine] = features[local[mine]]
    sharding.sum(rows)
    return rows


def farthest_points(
    features: Tensor, k: int, seed: int, distance: str = "euclidean", sharding: Sharding | None = None
) -> list[int]:
    """Farthest point sampling: a random first sample, then always the one farthest from all chosen so far.

    Args:
        features: unit rows (n, d); of several processes, each gives its own.
        distance: euclidean or cosine. On unit rows |a - b|^2 = 2 (1 - a . b), so both order the samples alike; they
            differ in rounding only, which decides between samples that are equally far.
    Returns:
        k distinct indices, in the order chosen; the first index on ties.
    """
    sharding = sharding or Sharding(len(features))
    first_row = sharding.rows.start
    chosen = random_samples(sharding.n, 1, seed)
    to_chosen = torch.full((len(features),), torch.inf, device=features.device)
    while len(chosen) < k:
        newest = rows_of_pool(features, chosen[-1:], sharding)[0]  # (d,)
        to_newest = 1 - features @ newest  # (n, d) x (d,) -> (n,)
        if distance == "euclidean":
            to_newest = (2 * to_newest).clamp_min(0).sqrt()
        to_chosen = torch.minimum(to_chosen, to_newest)
        if 0 <= chosen[-1] - first_row < len(features):
            to_chosen[chosen[-1] - first_row] = -torch.inf  # duplicates of it are at distance 0, itself is out
        farthest = to_chosen.argmax()
        of_each_process = sharding.gather(to_chosen[farthest])  # (world_size,)
        winner = int(of_each_process.argmax())
        chosen.append(int(sharding.gather(farthest + first_row)[winner]))
    return chosen
