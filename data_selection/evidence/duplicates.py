"""Near-duplicates in a pool: bursts of photos, frames of a film, the same image saved twice."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.progress import progress_bar
from data_selection.activeft.assignment import nearest_of_all

ROWS_AT_A_TIME = 1024
COLUMNS_AT_A_TIME = 32768
LARGEST_POOL = 200_000  # of a report: the time grows with the square


def duplicate_of(rows: Tensor, similarity: float, first: Sequence[int] = ()) -> Tensor:
    """For each sample the one that it is a near-duplicate of: the first of its group, itself where it is that.

    Going through the samples in order, each joins the group of a first one to which its cosine is at least
    `similarity`, or begins a group. Members of a group are so similar to its first one, not all to each other.

    Args:
        rows: unit rows (n, d). first: samples that each begin a group, before all others.
    Returns: indices (n,), int64. About n d / 2 multiplications per sample, and memory for the rows and a chunk.
    """
    n, device = len(rows), rows.device
    group = torch.arange(n, device=device)
    begins = torch.zeros(n, dtype=torch.bool, device=device)
    if len(first):
        before = torch.tensor([*first], device=device)
        nearest, cosine = nearest_of_all(rows, rows[before])
        group = torch.where(cosine >= similarity, before[nearest], group)
        group[before] = before
        begins[before] = True
    waiting = (group == torch.arange(n, device=device)) & ~begins
    for start in progress_bar(range(0, n, ROWS_AT_A_TIME), desc="near-duplicates", leave=False):
        mine = waiting[start : start + ROWS_AT_A_TIME].nonzero().squeeze(1) + start  # (c,)
        chunk = rows[mine]
        best = torch.full((len(mine),), -torch.inf, device=device)
        for left in range(0, start, COLUMNS_AT_A_TIME):
            right = min(left + COLUMNS_AT_A_TIME, start)
            cosine = chunk @ rows[left:right].T  # (c, d) x (d, columns) -> (c, columns)
            cosine[:, ~begins[left:right]] = -torch.inf
            values, columns = cosine.max(dim=1)
            closer = values > best
            group[mine[closer & (values >= similarity)]] = columns[closer & (values >= similarity)] + left
            best = torch.maximum(best, values)
        alike = (chunk @ chunk.T >= similarity).triu(1)  # (c, c), each with those after it
        joined = best >= similarity
        for position in alike.any(dim=1).nonzero().squeeze(1).tolist():
            if not joined[position]:
                later = alike[position] & ~joined
                group[mine[later]] = mine[position]
                joined |= later
        begins[mine[~joined]] = True
    return group


def groups_of(pool: Tensor, similarity: float) -> list[list[int]] | None:
    """The groups of at least two near-duplicates, largest first; None for a pool that is too large to look for them."""
    if len(pool) > LARGEST_POOL:
        return None
    group = duplicate_of(pool, similarity).cpu().numpy()  # (n,)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    groups = [members.tolist() for members in np.split(order, starts[1:]) if len(members) > 1]
    return sorted(groups, key=len, reverse=True)
