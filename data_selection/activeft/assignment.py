"""The nearest prototype of every sample, exactly, at a fraction of the cost of all n x k similarities.

On a GPU, or for few prototypes, it is a matrix product and a maximum, a chunk of rows at a time: `nearest_of_all`. On a
CPU `NearestPrototypes` saves most of that work from one iteration to the next, because prototypes move slowly:

1. A sample keeps a *shortlist* of its few best prototypes. Their similarities are computed in every iteration.
2. All other prototypes are in groups, and for each group the sample keeps an upper *bound* on its similarity to them.
   By Cauchy-Schwarz |f . c' - f . c| <= |c' - c|, so the bound grows by no more than the fastest of the group moved
   (Yinyang k-means, Ding et al., ICML 2015). A group's members are of like speed, so that few bounds suffer from a
   fast one.
3. While the best of the shortlist is above all bounds it is the nearest prototype. Where a bound is broken, the sample
   is compared with that group alone, which mostly shows that the bound had grown too large: it is *tightened*.
4. If the group does have a better prototype, the sample is compared with all: *ranked*. So is every sample once the
   bounds cost more than that, and the groups are then formed anew, because prototypes change their speed.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from data_selection.activeft.matching import top_of_groups
from data_selection.activeft.pool import chunks

CHUNK_ELEMENTS = 1 << 20  # similarities held at once on a CPU: they stay in its cache
GPU_CHUNK_ELEMENTS = 1 << 26
SHORTLIST = 4
MOST_GROUPS = 64
FEW_PROTOTYPES = 128  # with so few, the plain product is as fast
BELOW_ANY_COSINE = -2.0
ROW_STEP = 256
ROWS_AT_A_TIME = 4096  # samples compared with one group at once
COST_OF_TIGHTENING = 4  # of a similarity, when one computed to rank costs 1: rows are gathered for it


def nearest_of_all(features: Tensor, centres: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """a_i (n,) and f_i . c_{a_i} (n,) from all similarities in float32, a chunk of rows at a time."""
    elements = CHUNK_ELEMENTS if features.device.type == "cpu" else GPU_CHUNK_ELEMENTS
    chunk = chunk or max(64, elements // len(centres))
    best = [(rows @ centres.T).max(dim=1) for rows in features.split(chunk)]  # (chunk, d) x (d, k) -> (chunk, k)
    return torch.cat([b.indices for b in best]), torch.cat([b.values for b in best])


class NearestPrototypes:
    """Finds the nearest prototype of every sample, call after call, for prototypes that move a little between calls.

    Args:
        features: unit rows (n, d), float32.
        k: the number of prototypes.
        chunk: rows per matrix product; it bounds memory and never changes the result.
    """

    def __init__(self, features: Tensor, k: int, chunk: int | None = None):
        n, d = features.shape
        self.features, self.chunk = features, chunk
        self.plain = features.device.type != "cpu" or k <= FEW_PROTOTYPES
        if self.plain:
            return
        self.group_size = round_up(max(-(-k // MOST_GROUPS), int(k**0.5)), 16)  # sizes that vector instructions like
        groups = -(-k // self.group_size)
        self.order = torch.arange(k)  # of the prototypes by speed; each group_size of them are a group
        self.centres = features.new_zeros(k, d)  # of the last call, not in this order
        self.shortlist = torch.zeros(n, SHORTLIST, dtype=torch.int32)  # positions in the order
        self.bounds = torch.zeros(groups, n)  # on similarity - travelled, of prototypes that are not in the shortlist
        self.travelled = torch.zeros(groups)  # the sum over calls of the longest step in each group
        self.rounding = d * 2**-23  # of a similarity of unit vectors, at most
        self.work = torch.inf  # similarities computed since all samples were ranked

    def __call__(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """The argmax over prototypes of f_i . c_j.

        Args:
            centres: unit rows c_j (k, d).
        Returns:
            a_i (n,), int64, and f_i . c_{a_i} (n,).
        """
        if self.plain:
            return nearest_of_all(self.features, centres, self.chunk)
        steps = (centres - self.centres).norm(dim=1)  # (k,)
        self.centres = centres
        if self.work > self.bounds.shape[1] * len(centres):
            self.order = steps.argsort(descending=True)
            self.travelled.zero_()
            self.work = 0
            return self._rank(torch.arange(len(self.features)), centres.index_select(0, self.order))
        steps = F.pad(steps[self.order], (0, self.bounds.shape[0] * self.group_size - len(steps)))
        self.travelled += steps.view(-1, self.group_size).amax(dim=1)
        return self._follow(centres.index_select(0, self.order))

    def _follow(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """What __call__ returns, for prototypes (k, d) in order that have moved a little."""
        similarity, best = listed_similarities(self.features, centres, self.shortlist).max(dim=1)
        nearest = self.order[self.shortlist.gather(1, best[:, None]).squeeze(1)]
        unsettled = torch.zeros(len(nearest), dtype=torch.bool)
        for group, broken in enumerate(self._broken_bounds(similarity)):
            for piece in chunks(len(broken), ROWS_AT_A_TIME):
                rows = broken[piece]
                still_broken = self._tighten(group, rows, centres) > similarity.index_select(0, rows)
                unsettled[rows[still_broken]] = True
        rows = unsettled.nonzero().squeeze(1)
        nearest[rows], similarity[rows] = self._rank(rows, centres)
        return nearest, similarity

    def _broken_bounds(self, similarity: Tensor) -> tuple[Tensor, ...]:
        """For each group, the samples whose bound on it is above the similarity (n,) of the best in their shortlist."""
        travelled = self.travelled[:, None]
        rows = ((self.bounds + travelled).amax(dim=0) > similarity).nonzero().squeeze(1)  # mostly few
        groups, places = (self.bounds.index_select(1, rows) + travelled > similarity[rows]).nonzero().unbind(1)
        return rows[places].split(groups.bincount(minlength=len(travelled)).tolist())

    def _tighten(self, group: int, rows: Tensor, centres: Tensor) -> Tensor:
        """Renew the bounds of these samples on a group. Returns what they are now, (rows,)."""
        first = group * self.group_size
        members = centres[first : first + self.group_size]  # (size, d)
        similarity = self.features.index_select(0, rows) @ members.T  # (rows, d) x (d, size) -> (rows, size)
        self.work += COST_OF_TIGHTENING * similarity.numel()
        listed, size = self.shortlist.index_select(0, rows).long() - first, len(members)  # (rows, SHORTLIST)
        listed = torch.where((listed >= 0) & (listed < size), listed, size)  # of other groups: a column of waste
        others = F.pad(similarity, (0, 1)).scatter_(1, listed, BELOW_ANY_COSINE)[:, :size].amax(dim=1)  # (rows,)
        bounds = others + self.rounding
        self.bounds[group, rows] = bounds - self.travelled[group]
        return bounds

    def _rank(self, rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Renew the shortlists and all bounds of these samples. Returns their nearest prototypes and similarities."""
        k, groups = len(centres), len(self.travelled)
        rows_at_a_time = self.chunk or max(ROW_STEP, CHUNK_ELEMENTS // k // ROW_STEP * ROW_STEP)
        padded = torch.full((min(rows_at_a_time, len(rows)), groups * self.group_size), BELOW_ANY_COSINE)
        highest = torch.empty(len(rows))
        for piece in chunks(len(rows), rows_at_a_time):
            some = rows[piece]
            similarity = padded[: len(some)]
            grouped = similarity.view(len(some), groups, self.group_size)
            # (rows, d) x (d, k) -> (rows, k)
            torch.mm(self.features.index_select(0, some), centres.T, out=similarity[:, :k])
            best, listed = top_of_groups(grouped, SHORTLIST)  # (rows, SHORTLIST)
            self.shortlist[some], highest[piece] = listed.int(), best[:, 0]
            others = similarity.scatter_(1, listed, BELOW_ANY_COSINE).view_as(grouped).amax(dim=2)  # (rows, groups)
            self.bounds[:, some] = (others + (self.rounding - self.travelled)).T
        return self.order[self.shortlist[rows, 0]], highest


def round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def listed_similarities(features: Tensor, centres: Tensor, listed: Tensor) -> Tensor:
    """f_i . c_j for the few prototypes j listed for each sample i.

    A product of two matrices of which only the listed entries are computed: nothing (n, m, d) is gathered.
    Args:
        features (n, d), centres (k, d), listed (n, m), int32.
    Returns:
        (n, m)
    """
    n, m = listed.shape
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")  # beta, and unchecked invariants
        starts = torch.arange(0, n * m + 1, m)
        wanted = torch.sparse_csr_tensor(starts, listed.flatten().long(), torch.zeros(n * m), (n, len(centres)))
        return torch.sparse.sampled_addmm(wanted, features, centres.T, beta=0.0).values().view(n, m)
