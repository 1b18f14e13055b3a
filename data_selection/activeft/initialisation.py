"""Which pool samples the prototypes start from."""

import random

import torch
from torch import Tensor
from tqdm import tqdm

from data_selection.activeft.known_samples import KnownSamples
from data_selection.activeft.sharding import Sharding

NOTHING_KNOWN = KnownSamples()


def random_samples(n: int, k: int, seed: int, known: KnownSamples = NOTHING_KNOWN) -> list[int]:
    """k of n samples without replacement, in the order drawn: what the published code draws after random.seed(seed).

    Beside labelled samples the draw is another one: they may have been drawn with the same seed, and the same numbers
    would then lead to their neighbours in the pool.
    """
    generator = random.Random(f"{seed} after {len(known.labeled)}" if known.labeled else seed)
    return generator.sample(known.open_indices(n), k)


def rows_of_pool(features: Tensor, indices: list[int], sharding: Sharding) -> Tensor:
    """The features (k, d) of these pool samples, whichever process holds them."""
    local = torch.tensor(indices, dtype=torch.int64, device=features.device) - sharding.rows.start  # (k,)
    mine = (local >= 0) & (local < len(features))
    rows = features.new_zeros(len(indices), features.shape[1])
    rows[mine] = features[local[mine]]
    sharding.sum(rows)
    return rows


def farthest_points(
    features: Tensor,
    k: int,
    seed: int,
    distance: str = "euclidean",
    sharding: Sharding | None = None,
    known: KnownSamples = NOTHING_KNOWN,
    progress: bool = False,
) -> list[int]:
    """Farthest point sampling: always the sample farthest from all chosen so far, and from the labelled ones.

    Without labelled samples the first is drawn at random.

    Args:
        features: rows (n, d), unit rows for the cosine distance; of several processes, each gives its own.
        distance: euclidean or cosine. On unit rows |a - b|^2 = 2 (1 - a . b), so both order the samples alike; they
            differ in rounding only, which decides between samples that are equally far.
    Returns:
        k distinct indices, in the order chosen; the first index on ties.
    """
    sharding = sharding or Sharding(len(features))
    first_row = sharding.rows.start
    squared_norms = features.square().sum(dim=1)  # (n,)
    to_chosen = torch.full((len(features),), torch.inf, device=features.device)
    to_chosen[known.closed(sharding.n, features.device)[sharding.rows]] = -torch.inf

    def come_nearer(newest: int) -> None:
        row = rows_of_pool(features, [newest], sharding)[0]  # (d,)
        products = features @ row  # (n, d) x (d,) -> (n,)
        if distance == "euclidean":
            to_newest = (squared_norms + row @ row - 2 * products).clamp_min(0).sqrt()
        else:
            to_newest = 1 - products
        torch.minimum(to_chosen, to_newest, out=to_chosen)
        if 0 <= newest - first_row < len(features):
            to_chosen[newest - first_row] = -torch.inf  # duplicates of it are at distance 0, itself is out

    for labeled in known.labeled:
        come_nearer(labeled)
    chosen: list[int] = []
    for _ in tqdm(range(k), desc="farthest points", disable=not progress):
        if not chosen and not known.labeled:
            chosen += random_samples(sharding.n, 1, seed, known)
        else:
            farthest = to_chosen.argmax()
            of_each_process = sharding.gather(to_chosen[farthest])  # (world_size,)
            winner = int(of_each_process.argmax())
            chosen.append(int(sharding.gather(farthest + first_row)[winner]))
        come_nearer(chosen[-1])
    return chosen
