"""BiLAF: core samples, by default from ActiveFT, then samples at the boundaries between their pseudo-classes."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.progress import progress_bar
from data_selection.activeft.assignment import representatives
from data_selection.activeft.pool import Candidates, Pool, distance, rows_at_a_time
from data_selection.activeft.selection import Settings, optimise

NEIGHBOURS = 10
PARTS = 10  # P_in = P_rm = 10%
PENALTY = 1.1  # delta
LEAST_CORE, POOL_PER_CORE = 50, 200  # the paper's core: 50 samples of CIFAR10, 0.5% of CIFAR100 and ImageNet

SelectCore = Callable[[Pool, int], list[int]]


def bilaf_samples(
    pool: Pool,
    k: int,
    seed: int,
    core_number: int | None = None,
    core_ids: Sequence[int] = (),
    select_core: SelectCore | None = None,
) -> list[int]:
    """BiLAF (Lu et al., NeurIPS 2024): K core samples, then boundary samples of the K pseudo-classes around them.

    Every sample belongs to the class of its nearest core sample; the tenth of a class in its sparsest parts is noise
    (`entering_order`). Each class gets a share of the budget, core included, in proportion to |U_i|, the number of its
    samples without noise, and spends it on those least clearly inside the class (`boundary_samples`).

    Shares are rounded down. The remainder goes one by one to the class furthest below its exact share, the first on
    ties; if a class has more labelled samples than its share, or fewer samples, the others make up the difference in
    the same way. Once all of U_i is chosen or near chosen samples, the near ones come next, then noise.

    Labelled samples come first in the core: all of them if they are fewer than K, else the K of them that `select_core`
    takes. The rest count as chosen in their classes. Excluded samples belong to their class, but are never chosen.

    (departure) This is the method of the paper. The published code does not normalise the features here, orders the
    samples of a class differently, and can choose a sample twice.

    Args:
        core_number: K, labelled samples included; by default 50 or 0.5% of the pool, whichever is more, but at most
            half of budget and labelled samples together.
        core_ids: the core itself, instead of K; those of them that are not labelled are chosen first.
        select_core: method to choose the core with, instead of ActiveFT.
    Returns: k distinct indices, the core first.
    Raises: InputError, at once, if the core does not fit the budget.
    """
    labeled = dict.fromkeys(pool.candidates.labeled)
    total = k + len(labeled)
    by_rule = min(max(LEAST_CORE, pool.n // POOL_PER_CORE), max(2, total // 2), total)
    count = len(core_ids) or core_number or by_rule
    new = len(set(core_ids).difference(labeled)) if core_ids else max(0, count - len(labeled))
    if new > k:
        raise InputError(f"{new} core samples are more than the budget of {k}: choose fewer, or label more")
    if count < 2 and new < k:
        raise InputError("one core sample has no boundary to others: at least 2 are needed")
    if excluded := set(core_ids).intersection(pool.candidates.excluded).difference(labeled):
        raise InputError(f"core sample {min(excluded)} is excluded: leave it out of one of the lists")
    activeft = lambda pool, count: optimise(pool, count, Settings(seed=seed), progress=True).indices  # noqa: E731
    core = list(core_ids) or core_samples(pool, count, select_core or activeft)

    known = dict.fromkeys([*core, *labeled])  # in the order chosen, before any boundary sample
    closed = pool.closed()
    closed[list(known)] = True
    cluster, _ = representatives(pool, core)
    members = cluster.argsort(stable=True).split(torch.bincount(cluster, minlength=len(core)).tolist())
    known_in = [[] for _ in core]
    for sample, owner in zip(known, cluster[list(known)].tolist(), strict=True):
        known_in[owner].append(sample)
    budgets = shares(
        total,
        sizes=[without_noise(len(some)) for some in members],
        least=[len(some) for some in known_in],
        most=[len(some) + int((~closed[own]).sum()) for some, own in zip(known_in, members, strict=True)],
    )
    chosen = [sample for sample in dict.fromkeys(core) if sample not in labeled]
    for own in progress_bar(range(len(core)), desc="boundaries"):
        if budgets[own] > len(known_in[own]):
            chosen += boundary_samples(pool.rows, core, own, members[own], known_in[own], budgets[own], closed)
    return chosen


def core_samples(pool: Pool, count: int, select_core: SelectCore) -> list[int]:
    """Choose `count` samples: all labelled ones, then others; or, if `count` are labelled, from these alone."""
    labeled = pool.candidates.labeled
    if count > len(labeled):
        return [*labeled, *select_core(pool, count - len(labeled))]
    others = sorted(set(range(pool.n)).difference(labeled))
    return select_core(Pool(pool.rows, Candidates(pool.n, excluded=tuple(others)), pool.processes), count)


def without_noise(size: int) -> int:
    """Return |U_i| for a class of N_i samples: P_rm N_i, rounded down, are noise; none in a class of fewer than 10."""
    return size - size // PARTS


def shares(total: int, sizes: Sequence[int], least: Sequence[int], most: Sequence[int]) -> list[int]:
    """Split `total` into whole numbers, as nearly proportional to the sizes as their bounds allow."""
    exact = total * np.array(sizes, dtype=np.int64)  # multiplied by the sum of the sizes, so that nothing is rounded
    unit, least, most = sum(sizes), np.array(least), np.array(most)
    parts = (exact // unit).clip(least, most)
    while missing := total - int(parts.sum()):
        step = 1 if missing > 0 else -1
        possible = parts < most if missing > 0 else parts > least
        short = np.where(possible, step * (exact - parts * unit), np.iinfo(np.int64).min)
        parts[short.argmax()] += step
    return parts.tolist()


def boundary_samples(
    features: Tensor, core: Sequence[int], own: int, members: Tensor, known: Sequence[int], budget: int, closed: Tensor
) -> list[int]:
    """Choose the boundary samples of one pseudo-class (steps 3, 5, 6 and 7).

    With d(x) the mean distance to all of U_i, and t_l the number of chosen samples of the class whose nearest other
    core is c_l, the next choice is always the candidate with the least
        min over l != i of (delta^t_l |x - c_l| - d(x)) / max(|x - c_l|, d(x)).
    Each chosen sample removes the floor(|U_i| / budget) candidates nearest to it, itself included.

    Args:
        core, own: the indices of all core samples, and the position of this class's among them.
        members: the indices (c,) of the class.
        known: the members already chosen, the core first; they count towards the budget.
        closed: mask (n,) of the pool's samples that cannot be chosen.
    Returns: budget - len(known) indices.
    """
    centres = features[list(core)]  # (k, d)
    members = entering_order(features, members, core[own])
    rows, size = features[members], without_noise(len(members))
    portions = rows.split(rows_at_a_time(size))
    inside = torch.cat([distance(some @ rows[:size].T).mean(dim=1) for some in portions])  # d(x) (c,)
    penalty = centres.new_ones(len(core))  # delta^t_l

    def least_score(samples: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for some in samples.split(rows_at_a_time(len(core))):
            outside, d = distance(rows[some] @ centres.T), inside[some, None]  # (chunk, d) x (d, k) -> (chunk, k)
            score = (penalty * outside - d) / torch.maximum(outside, d).clamp_min(torch.finfo(d.dtype).tiny)
            score[:, own] = torch.inf
            found.append(score.min(dim=1))
        return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])

    score, opponent = least_score(torch.arange(len(rows), device=rows.device))
    nearest_core = opponent.clone()  # while nothing is penalised, the nearest core has the least score
    open_members = ~closed[members]
    rank = torch.zeros(len(rows), dtype=torch.int8, device=rows.device)  # 0: candidates, which come first
    rank[size:] = 2  # noise

    def choose(position: int) -> None:
        open_members[position] = False
        near = (rows @ rows[position]).masked_fill_(rank != 0, -torch.inf)
        if rank[position] == 0:
            near[position] = torch.inf
        around = near.topk(size // budget)
        rank[around.indices[around.values > -torch.inf]] = 1
        if members[position] == core[own]:
            return
        rival = nearest_core[position]
        penalty[rival] *= PENALTY
        dearer = (open_members & (opponent == rival)).nonzero().squeeze(1)
        if len(dearer):
            score[dearer], opponent[dearer] = least_score(dearer)

    position_of = {sample: position for position, sample in enumerate(members.tolist())}
    for sample in known:
        choose(position_of[sample])
    chosen = []
    while len(known) + len(chosen) < budget:
        first = rank == rank[open_members].min()
        chosen.append(int(score.masked_fill(~(open_members & first), torch.inf).argmin()))
        choose(chosen[-1])
    return members[chosen].tolist()


def entering_order(features: Tensor, members: Tensor, core: int) -> Tensor:
    """Order a class's members as they enter U, which starts as its core; the noise, which never enters, last (step 3).

    In each round, those P_in N_i members enter (at least one) whose mean distance to their 10 nearest in U is least.
    """
    rows, size = features[members], without_noise(len(members))
    start = int((members == core).nonzero())
    order = [torch.tensor([start], device=rows.device)]
    outside = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    outside[start] = False
    nearest = rows.new_full((len(rows), NEIGHBOURS), torch.inf)  # distances to the nearest in U, ascending
    while (entered := len(rows) - int(outside.sum())) < size:
        waiting = outside.nonzero().squeeze(1)
        for some in waiting.split(rows_at_a_time(NEIGHBOURS + len(order[-1]))):
            to_newest = distance(rows[some] @ rows[order[-1]].T)  # (chunk, d) x (d, newest) -> (chunk, newest)
            both = torch.cat([nearest[some], to_newest], dim=1)
            nearest[some] = both.topk(NEIGHBOURS, dim=1, largest=False).values
        sparseness = nearest[waiting, : min(entered, NEIGHBOURS)].mean(dim=1)
        entering = min(max(1, len(rows) // PARTS), size - entered)
        order.append(waiting[sparseness.argsort(stable=True)[:entering]])
        outside[order[-1]] = False
    return members[torch.cat([*order, outside.nonzero().squeeze(1)])]
