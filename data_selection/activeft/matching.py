"""From prototypes back to images: each prototype takes the pool sample most similar to it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from data_selection.activeft.sharding import Sharding
from data_selection.activeft.top import top_of_groups

PROTOTYPES_AT_A_TIME = 512
CHUNK_ELEMENTS = 1 << 21  # similarities held at once
CANDIDATES = 8
GROUP = 64  # samples whose best is found before any are ranked


def match_prototypes(
    features: Tensor,
    centres: Tensor,
    sharding: Sharding | None = None,
    candidates: int = CANDIDATES,
    closed: Tensor | None = None,
) -> list[int]:
    """For j = 0 .. k-1 in order, the sample most similar to c_j that no earlier prototype took.

    Only each prototype's best few free candidates are ranked, for some prototypes at a time; a whole row is looked at
    again where others of these prototypes took them all.

    Args:
        features: unit rows (n, d), n >= k; of several processes, each gives its own.
        centres: rows (k, d). The most similar unit row has the largest product with c_j, and is the nearest to it.
        closed: samples that must not be taken, (n,) of the whole pool; k others are left.
    Returns:
        k distinct indices into the pool, in the order of the prototypes.
    """
    sharding = sharding or Sharding(len(features))
    first_row = sharding.rows.start
    taken = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    if closed is not None:
        taken |= closed[sharding.rows]
    chosen: dict[int, None] = {}  # in order

    def best_free(some: Tensor, m: int) -> list[list[int]]:
        similarity, rows = most_similar_free(features, some, taken, m)
        similarity = sharding.gather(similarity).transpose(0, 1).flatten(1)  # (some, world_size * m)
        rows = sharding.gather(rows + first_row).transpose(0, 1).flatten(1)
        # A process with fewer than m free samples fills up with -inf: those rank last, and are left out.
        ranked = similarity.sort(dim=1, descending=True, stable=True)
        indices = rows.gather(1, ranked.indices)[:, :m]
        known = ranked.values[:, :m].isfinite()
        return [row[mask].tolist() for row, mask in zip(indices.cpu(), known.cpu(), strict=True)]

    for some in centres.split(PROTOTYPES_AT_A_TIME):
        for centre, ranked in zip(some, best_free(some, candidates), strict=True):
            free = next((index for index in ranked if index not in chosen), None)
            if free is None:
                free = best_free(centre[None], 1)[0][0]
            chosen[free] = None
            if 0 <= free - first_row < len(taken):
                taken[free - first_row] = True
    return list(chosen)


def most_similar_free(features: Tensor, centres: Tensor, taken: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """For each centre the m samples not taken that are most similar to it, a chunk of samples at a time.

    Returns: similarities (k, m), descending, -inf where fewer are free, and rows of `features` (k, m).
    """
    k, n = len(centres), len(features)
    best = torch.full((k, m), -torch.inf, device=centres.device)
    best_rows = torch.zeros((k, m), dtype=torch.int64, device=centres.device)
    chunk = max(GROUP, CHUNK_ELEMENTS // k // GROUP * GROUP)
    for start in range(0, n, chunk):
        rows = slice(start, start + chunk)
        similarity = centres @ features[rows].T  # (k, d) x (d, chunk) -> (k, chunk)
        similarity.masked_fill_(taken[rows], -torch.inf)
        # Padded to whole groups, of which there are at least m.
        missing = max(m * GROUP, -(-similarity.shape[1] // GROUP) * GROUP) - similarity.shape[1]
        groups = F.pad(similarity, (0, missing), value=-torch.inf).view(k, -1, GROUP)
        values, positions = top_of_groups(groups, m)
        best, order = torch.cat([best, values], dim=1).topk(m, dim=1)
        best_rows = torch.cat([best_rows, positions + start], dim=1).gather(1, order)
    return best, best_rows
