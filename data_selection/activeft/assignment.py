"""The nearest prototype of every sample, exactly, at a fraction of the cost of all n x k similarities.

On a GPU, or for few prototypes, it is a matrix product and a maximum, a chunk of rows at a time. On a CPU three facts
save most of that work from one iteration to the next:

1. Prototypes move slowly. A sample keeps its few best prototypes as *candidates* and an upper *bound* on its similarity
   to all others. By Cauchy-Schwarz |f . c' - f . c| <= |c' - c|, so the bound grows by no more than the others moved.
   While the best candidate stays above the bound it is the nearest prototype, and the sample is *settled*: it costs a
   few dot products instead of k.
2. Some prototypes are faster than others. Bounds are therefore kept for groups of prototypes, of like speed (Yinyang
   k-means, Ding et al., ICML 2015), so that a few fast ones do not loosen the bounds on all others.
3. A sample that is not settled is *screened* against all prototypes to renew its candidates and bounds. Screening may
   be rough, because its error, which is known, is added to the bounds: it runs in bfloat16 where that is fast.

The similarities of the candidates, which decide, are always float32. The few samples that are unsettled even right
after screening (several prototypes as near as bfloat16 can tell) are compared with all prototypes in float32.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from data_selection.activeft.matching import top_of_groups

CHUNK_ELEMENTS = 1 << 20  # similarities held at once on a CPU: they stay in its cache
GPU_CHUNK_ELEMENTS = 1 << 26
CANDIDATES = 4
MOST_GROUPS = 64
FEW_PROTOTYPES = 128  # with so few, the plain product is as fast
BELOW_ANY_COSINE = -2.0
ROW_STEP = 256


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
        screening: precision in which samples are screened; None is what this processor multiplies fastest.
    """

    def __init__(self, features: Tensor, k: int, chunk: int | None = None, screening: torch.dtype | None = None):
        n = len(features)
        self.features, self.chunk, self.k = features, chunk, k
        self.plain = features.device.type != "cpu" or k <= FEW_PROTOTYPES
        if self.plain:
            return
        self.screening = screening or screening_dtype()
        self.group_size = round_up(max(-(-k // MOST_GROUPS), int(k**0.5)), 16)  # sizes that vector instructions like
        groups = -(-k // self.group_size)
        self.order = torch.arange(k)  # of the prototypes; each group_size of them are a group
        self.centres = self.centres_at_grouping = features.new_zeros(k, features.shape[1])  # of the last call
        self.candidates = torch.zeros(n, CANDIDATES, dtype=torch.int32)
        self.bounds = torch.full((n, groups), torch.inf)  # on similarity - travelled
        self.travelled = torch.zeros(groups)  # the sum over calls of the longest step in each group
        self.screened_since_grouping = 0
        self.rounding_of_features = torch.cat(
            [(rows - rows.to(self.screening)).norm(dim=1) for rows in features.split(self._rows_at_a_time())]
        )  # (n,)

    def __call__(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """The argmax over prototypes of f_i . c_j.

        Args:
            centres: unit rows c_j (k, d).
        Returns:
            a_i (n,), int64, and f_i . c_{a_i} (n,).
        """
        if self.plain:
            return nearest_of_all(self.features, centres, self.chunk)
        self._follow(centres)
        nearest, similarity, settled = self._nearest_candidate(slice(None))
        unsettled = (~settled).nonzero().squeeze(1)
        self.screened_since_grouping += len(unsettled)
        if self.screened_since_grouping > 2 * len(self.features):  # new groups are not dearer than what old ones cost
            self._group_by_speed()
            unsettled = torch.arange(len(self.features))
        if not len(unsettled):
            return nearest, similarity
        self._prepare_screening()
        for rows in whole_steps(unsettled).split(self._rows_at_a_time()):
            nearest[rows], similarity[rows] = self._screen(rows)
        return nearest, similarity

    def _follow(self, centres: Tensor) -> None:
        """The prototypes moved: by at most so much the similarities of each group grew."""
        steps = F.pad((centres - self.centres).norm(dim=1)[self.order], (0, self._padding()))
        self.travelled += steps.view(-1, self.group_size).amax(dim=1)
        self.centres = centres

    def _padding(self) -> int:
        """Prototypes that the last group has too few."""
        return len(self.travelled) * self.group_size - len(self.order)

    def _rows_at_a_time(self) -> int:
        return self.chunk or max(ROW_STEP, CHUNK_ELEMENTS // len(self.order) // ROW_STEP * ROW_STEP)

    def _group_by_speed(self) -> None:
        self.order = (self.centres - self.centres_at_grouping).norm(dim=1).argsort(descending=True)
        self.centres_at_grouping = self.centres
        self.travelled.zero_()
        self.screened_since_grouping = 0

    def _nearest_candidate(self, rows: slice | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of these samples: the nearest candidate, its similarity, and whether no other prototype can be nearer."""
        candidates = self.candidates[rows]
        similarity, best = listed_similarities(self.features[rows], self.centres, candidates).max(dim=1)
        nearest = candidates.gather(1, best[:, None]).squeeze(1).long()
        return nearest, similarity, similarity >= (self.bounds[rows] + self.travelled).amax(dim=1)

    def _prepare_screening(self) -> None:
        centres = self.centres[self.order]
        self.rough_centres = centres.to(self.screening)
        self.rounding_of_centres = (centres - self.rough_centres).norm(dim=1).max()

    def _screen(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Renew the candidates and bounds of these samples. Returns their nearest prototypes and similarities."""
        groups = torch.full((len(rows), len(self.order) + self._padding()), BELOW_ANY_COSINE)
        rough_features = self.features[rows].to(self.screening)
        groups[:, : len(self.order)] = F.linear(rough_features, self.rough_centres)  # (rows, d) x (d, k) -> (rows, k)
        groups = groups.view(len(rows), len(self.travelled), self.group_size)

        _, positions = top_of_groups(groups, CANDIDATES)  # (rows, CANDIDATES)
        self.candidates[rows] = self.order[positions].int()

        groups.flatten(1).scatter_(1, positions, BELOW_ANY_COSINE)
        others = groups.amax(dim=2)  # (rows, groups)
        self.bounds[rows] = others + self._screening_error(rows, others) - self.travelled

        nearest, similarity, settled = self._nearest_candidate(rows)
        if not settled.all():
            nearest[~settled], similarity[~settled] = nearest_of_all(self.features[rows[~settled]], self.centres)
        return nearest, similarity

    def _screening_error(self, rows: Tensor, similarity: Tensor) -> Tensor:
        """A bound on f . c - (its rough value), for unit f and c rounded to f' and c'.

        |f . c - f' . c'| <= |f - f'| |c| + |f'| |c - c'|; the sum is in float32 and its result is rounded again.
        """
        eps = torch.finfo(self.screening).eps
        of_inputs = self.rounding_of_features[rows, None] + (1 + eps) * self.rounding_of_centres  # (rows, 1)
        return of_inputs + eps / 2 * similarity.abs() + self.features.shape[1] * 2**-23


def round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def whole_steps(rows: Tensor) -> Tensor:
    """The rows, the last repeated up to a multiple of ROW_STEP: BLAS keeps code, and memory, for every shape it saw."""
    return torch.cat([rows, rows[-1:].expand(-len(rows) % ROW_STEP)])


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


def screening_dtype() -> torch.dtype:
    """bfloat16 where the processor has instructions that multiply it, else float32: the same on every run."""
    capable = [getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("amx_tile", "avx512_bf16")]
    return torch.bfloat16 if any(capable) else torch.float32
