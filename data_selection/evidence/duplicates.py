"""Near-duplicates in a pool: bursts of photos, frames of a film, the same image saved twice."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.progress import progress_bar
from data_selection.activeft.assignment import nearest_of_all

ROWS_AT_A_TIME = 1024
EQUAL = 1 - 1e-6  # the cosine of equal rows, less the rounding error
LARGEST_POOL = 200_000  # a report searches no larger one: the time grows with the square


def duplicate_of(rows: Tensor, similarity: float, first: Sequence[int] = ()) -> Tensor:
    """Return, for each sample, the first of its group of near-duplicates (which may be itself).

    In order, each sample joins a group if its cosine to the group's first sample is at least `similarity`, or else
    begins a group. Members of a group are that similar to its first sample, not necessarily to each other.

    Args:
        rows: unit rows (n, d). first: samples that each begin a group, before all others.
    Returns: indices (n,), int64. Costs at most n d / 2 multiplications per sample, and memory for the firsts' rows.
    """
    similarity = min(similarity, EQUAL)
    group = torch.arange(len(rows), device=rows.device)
    leaders = torch.tensor([*first], dtype=torch.int64, device=rows.device)  # the first of each group
    others = group[~torch.isin(group, leaders)]
    for mine in progress_bar(others.split(ROWS_AT_A_TIME), desc="near-duplicates", leave=False):
        chunk, joined = rows[mine], torch.zeros_like(mine, dtype=torch.bool)  # (c, d), (c,)
        if len(leaders):
            nearest, cosine = nearest_of_all(chunk, rows[leaders])
            joined = cosine >= similarity
            group[mine[joined]] = leaders[nearest[joined]]
        alike = (chunk @ chunk.T >= similarity).triu(1)  # (c, c), each with those after it
        for position in alike.any(dim=1).nonzero().squeeze(1).tolist():
            if not joined[position]:
                later = alike[position] & ~joined
                group[mine[later]] = mine[position]
                joined |= later
        leaders = torch.cat([leaders, mine[~joined]])
    return group


def groups_of(pool: Tensor, similarity: float) -> list[list[int]] | None:
    """Return the groups of at least two near-duplicates, largest first; None if the pool is too large to search."""
    if len(pool) > LARGEST_POOL:
        return None
    group = duplicate_of(pool, similarity).cpu().numpy()  # (n,)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    groups = [members.tolist() for members in np.split(order, starts[1:]) if len(members) > 1]
    return sorted(groups, key=len, reverse=True)
