"""Which pool samples the prototypes start from."""

import random

import torch

from common.progress import progress_bar
from data_selection.activeft.pool import Candidates, Pool


def random_samples(candidates: Candidates, k: int, seed: int) -> list[int]:
    """k samples without replacement, in the order drawn: what the published code draws after random.seed(seed).

    Beside labelled samples the draw is another one: they may have been drawn with the same seed, and the same numbers
    would then lead to their neighbours in the pool.
    """
    labeled = len(candidates.labeled)
    generator = random.Random(f"{seed} after {labeled}" if labeled else seed)
    return generator.sample(candidates.open_indices(), k)


def farthest_points(pool: Pool, k: int, seed: int, distance: str = "euclidean", progress: bool = False) -> list[int]:
    """Farthest point sampling: always the sample farthest from all chosen so far, and from the labelled ones.

    Without labelled samples the first is drawn at random.

    Args:
        pool: unit rows for the cosine distance.
        distance: euclidean or cosine. On unit rows |a - b|^2 = 2 (1 - a . b), so both order the samples alike; they
            differ in rounding only, which decides between samples that are equally far.
    Returns:
        k distinct indices, in the order chosen; the first index on ties.
    """
    features, processes = pool.rows, pool.processes
    squared_norms = features.square().sum(dim=1)  # (n,)
    to_chosen = torch.full((len(features),), torch.inf, device=features.device)
    to_chosen[pool.closed()] = -torch.inf

    def come_nearer(newest: int) -> None:
        row = pool.rows_of([newest])[0]  # (d,)
        products = features @ row  # (n, d) x (d,) -> (n,)
        if distance == "euclidean":
            to_newest = (squared_norms + row @ row - 2 * products).clamp_min(0).sqrt()
        else:
            to_newest = 1 - products
        torch.minimum(to_chosen, to_newest, out=to_chosen)
        if 0 <= newest - pool.first < len(features):
            to_chosen[newest - pool.first] = -torch.inf  # duplicates of it are at distance 0, itself is out

    for labeled in pool.candidates.labeled:
        come_nearer(labeled)
    chosen: list[int] = []
    for _ in progress_bar(range(k), desc="farthest points", disable=not progress):
        if not chosen and not pool.candidates.labeled:
            chosen += random_samples(pool.candidates, 1, seed)
        else:
            farthest = to_chosen.argmax()
            winner = int(processes.gather(to_chosen[farthest]).argmax())  # (size,)
            chosen.append(int(processes.gather(farthest + pool.first)[winner]))
        come_nearer(chosen[-1])
    return chosen
