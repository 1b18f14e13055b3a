"""From pool samples to prototypes, which start at them, and back: each prototype takes its most similar sample."""

import random

import torch
from torch import Tensor

from common.progress import progress_bar
from data_selection.activeft.pool import FEWEST_ROWS, Candidates, Pool, chunks

PROTOTYPES_AT_A_TIME = 512
CHUNK_ELEMENTS = 1 << 21  # similarities held at once
RANKED = 8  # samples ranked per prototype


def random_samples(candidates: Candidates, k: int, seed: int) -> list[int]:
    """Draw k samples without replacement, in the order drawn: the published code's draw after random.seed(seed).

    With labelled samples the draw is a different one: they may have been drawn with the same seed, and the same random
    numbers would then yield their neighbours in the pool.
    """
    labeled = len(candidates.labeled)
    generator = random.Random(f"{seed} after {labeled}" if labeled else int(seed))
    return generator.sample(candidates.open_indices(), k)


def farthest_points(pool: Pool, k: int, seed: int, distance: str = "euclidean", progress: bool = False) -> list[int]:
    """Farthest point sampling: always choose the sample farthest from all chosen so far and from the labelled ones.

    Without labelled samples, the first is drawn at random.

    Args:
        pool: unit rows for the cosine distance.
        distance: euclidean or cosine. On unit rows |a - b|^2 = 2 (1 - a . b), so both order the samples alike; they
            differ only in rounding, which decides between samples that are equally far or nearly copies.
    Returns:
        k distinct indices, in the order chosen; the first index on ties.
    """
    features, processes = pool.rows, pool.processes
    to_chosen = torch.full((len(features),), torch.inf, device=features.device)
    to_chosen[pool.closed()] = -torch.inf

    def come_nearer(newest: int) -> None:
        row = pool.rows_of([newest])[0]  # (d,)
        if distance == "euclidean":  # computed from differences: by a product, a copy would not be at 0
            to_newest = torch.cdist(features, row[None], compute_mode="donot_use_mm_for_euclid_dist").squeeze(1)
        else:
            to_newest = 1 - features @ row  # (n, d) x (d,) -> (n,)
        torch.minimum(to_chosen, to_newest, out=to_chosen)
        if 0 <= newest - pool.first < len(features):
            to_chosen[newest - pool.first] = -torch.inf  # it is out; its duplicates are at distance 0

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


def match_prototypes(pool: Pool, centres: Tensor, ranked: int = RANKED) -> list[int]:
    """For j = 0 .. k-1 in order, take the sample most similar to c_j among those that can be chosen and are left.

    Prototypes are matched in batches, and only each one's few best free samples are ranked; if others of its batch took
    them all, its whole row is searched again. Among equally similar samples (copies, up to rounding), any one is taken.

    Args:
        pool: unit rows (n, d), of which at least k can be chosen.
        centres: rows (k, d). The most similar unit row has the largest product with c_j, and is the nearest to it.
        ranked: samples ranked per prototype; it does not change the result.
    Returns:
        k distinct indices into the pool, in the order of the prototypes.
    """
    taken = pool.closed()
    chosen: dict[int, None] = {}  # in order

    def best_free(some: Tensor, m: int) -> list[list[int]]:
        similarity, rows = most_similar_free(pool.rows, some, taken, m)
        similarity = pool.processes.gather(similarity).transpose(0, 1).flatten(1)  # (some, processes * m)
        rows = pool.processes.gather(rows + pool.first).transpose(0, 1).flatten(1)
        # A process with fewer than m free samples pads with -inf: these rank last, and are left out.
        order = similarity.sort(dim=1, descending=True, stable=True)
        indices = rows.gather(1, order.indices)[:, :m]
        known = order.values[:, :m].isfinite()
        return [row[mask].tolist() for row, mask in zip(indices.cpu(), known.cpu(), strict=True)]

    for some in centres.split(PROTOTYPES_AT_A_TIME):
        for centre, best in zip(some, best_free(some, ranked), strict=True):
            free = next((index for index in best if index not in chosen), None)
            if free is None:
                free = best_free(centre[None], 1)[0][0]
            chosen[free] = None
            if 0 <= free - pool.first < len(taken):
                taken[free - pool.first] = True
    return list(chosen)


def most_similar_free(features: Tensor, centres: Tensor, taken: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Find, for each centre, the m most similar samples that are not taken, a chunk of samples at a time.

    Returns: similarities (k, m), descending, -inf if fewer are free, and rows of `features` (k, m).
    """
    k, n = len(centres), len(features)
    best = torch.full((k, m), -torch.inf, device=centres.device)
    best_rows = torch.zeros((k, m), dtype=torch.int64, device=centres.device)
    for rows in chunks(n, max(FEWEST_ROWS, CHUNK_ELEMENTS // k)):
        similarity = (centres @ features[rows].T).masked_fill_(taken[rows], -torch.inf)  # (k, d) x (d, chunk)
        values, positions = similarity.topk(min(m, similarity.shape[1]), dim=1)
        best, order = torch.cat([best, values], dim=1).topk(m, dim=1)
        best_rows = torch.cat([best_rows, positions + rows.start], dim=1).gather(1, order)
    return best, best_rows
