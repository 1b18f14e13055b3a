"""From prototypes back to images: each prototype takes the pool sample most similar to it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from data_selection.activeft.pool import Pool, chunks

PROTOTYPES_AT_A_TIME = 512
CHUNK_ELEMENTS = 1 << 21  # similarities held at once
RANKED = 8  # samples that are ranked for each prototype
GROUP = 64  # samples whose best is found before any are ranked


def match_prototypes(pool: Pool, centres: Tensor, ranked: int = RANKED) -> list[int]:
    """For j = 0 .. k-1 in order, the sample most similar to c_j that can be chosen and that no earlier prototype took.

    Only each prototype's best few free samples are ranked, for some prototypes at a time; a whole row is looked at
    again where others of these prototypes took them all.

    Args:
        pool: unit rows (n, d), of which at least k can be chosen.
        centres: rows (k, d). The most similar unit row has the largest product with c_j, and is the nearest to it.
        ranked: how many samples are ranked for each prototype; it does not change the result.
    Returns:
        k distinct indices into the pool, in the order of the prototypes.
    """
    taken = pool.closed()
    chosen: dict[int, None] = {}  # in order

    def best_free(some: Tensor, m: int) -> list[list[int]]:
        similarity, rows = most_similar_free(pool.rows, some, taken, m)
        similarity = pool.processes.gather(similarity).transpose(0, 1).flatten(1)  # (some, processes * m)
        rows = pool.processes.gather(rows + pool.first).transpose(0, 1).flatten(1)
        # A process with fewer than m free samples fills up with -inf: those rank last, and are left out.
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
    """For each centre the m samples not taken that are most similar to it, a chunk of samples at a time.

    Returns: similarities (k, m), descending, -inf where fewer are free, and rows of `features` (k, m).
    """
    k, n = len(centres), len(features)
    best = torch.full((k, m), -torch.inf, device=centres.device)
    best_rows = torch.zeros((k, m), dtype=torch.int64, device=centres.device)
    chunk = max(GROUP, CHUNK_ELEMENTS // k // GROUP * GROUP)
    for rows in chunks(n, chunk):
        similarity = centres @ features[rows].T  # (k, d) x (d, chunk) -> (k, chunk)
        similarity.masked_fill_(taken[rows], -torch.inf)
        # Padded to whole groups, of which there are at least m.
        missing = max(m * GROUP, -(-similarity.shape[1] // GROUP) * GROUP) - similarity.shape[1]
        groups = F.pad(similarity, (0, missing), value=-torch.inf).view(k, -1, GROUP)
        values, positions = top_of_groups(groups, m)
        best, order = torch.cat([best, values], dim=1).topk(m, dim=1)
        best_rows = torch.cat([best_rows, positions + rows.start], dim=1).gather(1, order)
    return best, best_rows


def top_of_groups(groups: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m largest values of each row, whose values are divided into groups, faster than torch.topk.

    They are in the m groups that have the largest maxima, and a maximum is much cheaper than a ranking.
    Args:
        groups: (rows, g, size), with g >= m.
    Returns:
        values, descending, and their positions in the row, from 0 to g * size - 1, both (rows, m).
    """
    size = groups.shape[2]
    best_groups = groups.amax(dim=2).topk(m, dim=1).indices  # (rows, m)
    members = groups.gather(1, best_groups[:, :, None].expand(-1, -1, size)).flatten(1)  # (rows, m * size)
    best = members.topk(m, dim=1)
    return best.values, best_groups.gather(1, best.indices // size) * size + best.indices % size
