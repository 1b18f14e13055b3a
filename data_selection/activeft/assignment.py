"""Find the nearest prototype of every sample, exactly, at a fraction of the cost of all n x k similarities.

On a GPU, or with few prototypes, this is a matrix product and a maximum, a chunk of rows at a time: `nearest_of_all`.
On a CPU, `NearestPrototypes` saves most of that work from one iteration to the next, because prototypes move slowly:

1. Each sample has a *floor*, a little below its similarity to the nearest prototype, and each prototype a *reach*. A
   *list* holds all (sample, prototype) pairs whose similarity could rise above the floor while the prototype moves no
   farther than its reach. By Cauchy-Schwarz |f . c' - f . c| <= |c' - c|, so no other pair can (as in the neighbour
   lists of molecular dynamics: Verlet, Physical Review 1967).
2. In every iteration, each sample is compared with its previous nearest prototype. Every pair on the list has an upper
   *bound*, which grows with the prototype's steps (Elkan, ICML 2003); its similarity is recomputed only if the bound is
   above the similarity to the previous nearest. The best of all these is the nearest prototype.
3. A prototype that has moved beyond its reach is listed anew. A sample whose best similarity is below its floor is
   compared with all prototypes. Once all this has cost more than a new list would, a new list is made, unless it would
   not last: then the plain product is taken for this iteration.

Listing needs only upper bounds, so it is done in fewer dimensions: with Pf the projection of f onto the principal axes
of the features, f . c <= Pf . Pc + |f - Pf| |c - Pc|.
"""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from data_selection.activeft.pool import Pool, chunks

CHUNK_ELEMENTS = 1 << 20  # similarities held at once on a CPU: they stay in its cache
GPU_CHUNK_ELEMENTS = 1 << 26
FEW_PROTOTYPES = 128  # up to this many, the plain product is as fast
FALL = 0.02  # the floor is this far below a sample's similarity to its nearest prototype
SHORTEST_HORIZON = 1.0  # iterations that a list must be expected to last: with fewer, the plain product is as fast
FEWEST_PAIRS, MOST_PAIRS = 5, 20  # pairs per sample on a new list, on average; the reaches follow from this
NEARLY = 0.7  # share of the reach: a prototype that has moved this far is listed anew along with those beyond theirs
OUTSIDE_AXES = 0.02  # share of the features' mean square that the principal axes leave out
# The unit of cost is one similarity in the plain product.
COST_OF_LISTING = 0.5  # per similarity
COST_OF_READING = 16  # per sample
ROWS_AT_A_TIME = 8192


def nearest_of_all(features: Tensor, centres: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Return a_i (n,) and f_i . c_{a_i} (n,) from all similarities in float32, a chunk of rows at a time."""
    elements = CHUNK_ELEMENTS if features.device.type == "cpu" else GPU_CHUNK_ELEMENTS
    chunk = min(chunk or max(64, elements // len(centres)), len(features))
    similarity = features.new_empty(len(features))
    nearest = torch.empty_like(similarity, dtype=torch.int64)
    buffer = features.new_empty(chunk, len(centres))  # a new one per chunk would fragment memory
    for piece in chunks(len(features), max(1, chunk)):
        some = features[piece]
        product = torch.mm(some, centres.T, out=buffer[: len(some)])  # (chunk, d) x (d, k) -> (chunk, k)
        torch.max(product, dim=1, out=(similarity[piece], nearest[piece]))
    return nearest, similarity


def representatives(pool: Pool, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Find, for each sample of this process, the most similar of the distinct `chosen`; for a chosen one, itself.

    Returns: positions in `chosen` (m,), int64, and cosine similarities (m,), of unit rows.
    """
    nearest, similarity = nearest_of_all(pool.rows, pool.rows_of(chosen))
    local, mine = pool.places_of(chosen)
    nearest[local[mine]] = mine.nonzero().squeeze(1)  # even if another chosen one is equal to it
    similarity[local[mine]] = 1
    return nearest, similarity.clamp(-1, 1)


class NearestPrototypes:
    """Finds the nearest prototype of every sample, call after call, for prototypes that move a little between calls.

    Args:
        features: unit rows (n, d), float32.
        k: the number of prototypes.
        chunk: rows per matrix product; it bounds memory and never changes the result.
    """

    def __init__(self, features: Tensor, k: int, chunk: int | None = None):
        self.features, self.chunk = features, chunk
        self.plain = features.device.type != "cpu" or min(len(features), k) <= FEW_PROTOTYPES
        self.centres: Tensor | None = None  # those of the last call
        self.nearest: Tensor | None = None  # each sample's, as far as the list knows (n,)
        self.projected: ProjectedRows | None = None
        self.pairs: PairList | None = None

    def __call__(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Return a_i (n,), int64, the argmax over unit rows c_j (k, d) of f_i . c_j, and f_i . c_{a_i} (n,)."""
        before, self.centres = self.centres, centres
        if self.plain or before is None:
            self.nearest, similarity = nearest_of_all(self.features, centres, self.chunk)
            return self.nearest, similarity
        steps = (centres - before).norm(dim=1)  # (k,)
        starts = torch.arange(len(self.features) + 1)
        similarity = listed_similarities(self.features, centres, starts, self.nearest)
        if self.pairs is None or not self.pairs.follow(centres, steps, self.nearest):
            self.pairs = None  # free the old list before making a new one
            self.projected = self.projected or ProjectedRows(self.features)
            self.projected.vectors[:, -1] = FALL - similarity  # -floor
            horizon = self.projected.horizon(centres, steps)
            if horizon < SHORTEST_HORIZON:
                self.nearest, similarity = nearest_of_all(self.features, centres, self.chunk)
                return self.nearest, similarity
            self.pairs = PairList(self.projected, centres, steps, self.nearest, horizon, self.chunk)
        self.nearest, similarity = self.pairs.best(centres, self.nearest, similarity)
        rows = (similarity < self.pairs.floor).nonzero().squeeze(1)
        if not len(rows):
            return self.nearest, similarity
        self.pairs.work += len(rows) * len(centres)
        nearest = self.nearest.clone()  # self.nearest must stay what the list knows
        nearest[rows], similarity[rows] = nearest_of_all(self.features.index_select(0, rows), centres, self.chunk)
        return nearest, similarity


class ProjectedRows:
    """Unit rows (n, d) in their principal axes: vectors (n, e + 2), the last two columns 1 and -floor of a list."""

    def __init__(self, features: Tensor):
        self.features, self.axes = features, principal_axes(features)
        self.rounding = features.shape[1] * 2**-23  # largest rounding error of a similarity of unit vectors
        self.vectors = torch.ones(len(features), self.axes.shape[1] + 3)
        for piece in chunks(len(features), ROWS_AT_A_TIME):
            self.vectors[piece, :-2] = bounding(features[piece], self.axes)

    def horizon(self, centres: Tensor, steps: Tensor) -> float:
        """Return for how many iterations a list of a few pairs per sample would hold, estimated from a sample.

        It is negative if more pairs than that are above the floor already, as in a pool of images that are much alike.
        """
        n, k = len(self.vectors), len(centres)
        sampled = self.vectors[:: max(1, n * k // CHUNK_ELEMENTS)]
        bounds = sampled[:, :-2] @ bounding(centres, self.axes).T  # (some, e) x (e, k) -> (some, k)
        iterations = (-sampled[:, -1:] - bounds) / speeds(steps)  # until it could rise above the floor
        pairs = min(FEWEST_PAIRS + k // 200, MOST_PAIRS)  # the dearer a list, the longer it should last
        return iterations.flatten().kthvalue(min(pairs * len(sampled), iterations.numel())).values.item()


class PairList:
    """The (sample, prototype) pairs that could be nearest, until prototypes have moved too far.

    It is made from the prototypes' centres (k, d), the lengths of their last steps (k,), each sample's nearest
    prototype (n,) and the samples' floors, for so many iterations of such steps (horizon).
    """

    def __init__(
        self,
        projected: ProjectedRows,
        centres: Tensor,
        steps: Tensor,
        nearest: Tensor,
        horizon: float,
        chunk: int | None,
    ):
        k = len(centres)
        self.projected, self.horizon, self.chunk = projected, horizon, chunk
        self.floor, self.work = -projected.vectors[:, -1], 0  # work: done since the list was made
        self.listed_at, self.reach, self.path = centres.clone(), torch.zeros(k), torch.zeros(k)
        self.rows = self.columns = torch.empty(0, dtype=torch.int32)  # the listed pairs (p,)
        self.bounds = torch.empty(0)  # upper bounds on similarity - path (p,)
        self._add(torch.arange(k), centres, steps, nearest)

    def follow(self, centres: Tensor, steps: Tensor, nearest: Tensor) -> bool:
        """After prototypes have made steps (k,), list anew those that are beyond their reach.

        Returns: False if a new list would be cheaper.
        """
        n, k = len(self.floor), len(centres)
        self.path += steps
        moved = (centres - self.listed_at).norm(dim=1) / self.reach
        if not (moved > 1).any():
            return True
        far = (moved > NEARLY).nonzero().squeeze(1)
        self.work += n * (COST_OF_READING + COST_OF_LISTING * len(far))
        if self.work > COST_OF_LISTING * n * k:
            return False
        is_far = torch.zeros(k, dtype=torch.bool).index_fill_(0, far, True)
        self.bounds[is_far[self.columns]] = -torch.inf  # drops these pairs
        self._add(far, centres, steps, nearest)
        return True

    def _add(self, some: Tensor, centres: Tensor, steps: Tensor, nearest: Tensor) -> None:
        """List the pairs of all samples with some prototypes (m,), given all prototypes' centres and last steps."""
        m = len(some)
        centres, reach = centres[some], speeds(steps)[some] * self.horizon
        self.listed_at[some], self.reach[some] = centres, reach
        # (m, e + 2): bounding vectors, the margin to add to each product, 1
        vectors = F.pad(bounding(centres, self.projected.axes), (0, 2), value=1.0)
        vectors[:, -2] = reach + 4 * self.projected.rounding
        vectors = vectors.T.contiguous()
        beyond = reach + self.path[some]
        rows, columns, bounds = [self.rows], [self.columns], [self.bounds]
        chunk = min(self.chunk or max(64, CHUNK_ELEMENTS // 2 // m), len(self.floor))
        # New ones per chunk would fragment memory.
        buffer, flags = torch.empty(chunk, m), torch.empty(chunk * m, dtype=torch.bool)
        for piece in chunks(len(self.floor), chunk):
            bounding_rows = self.projected.vectors[piece]
            # How far similarities could rise above the floor: (chunk, e + 2) x (e + 2, m) -> (chunk, m)
            above = torch.mm(bounding_rows, vectors, out=buffer[: len(bounding_rows)]).view(-1)
            places = torch.gt(above, 0, out=flags[: len(above)]).nonzero().squeeze(1)
            row, column = places // m, places % m
            rows.append((row + piece.start).int())
            columns.append(some.index_select(0, column).int())
            bounds.append(above[places] + self.floor[piece][row] - beyond[column])
        self.rows, self.columns, self.bounds = torch.cat(rows), torch.cat(columns), torch.cat(bounds)
        self.bounds[self.columns == nearest.int()[self.rows]] = -torch.inf  # computed in any case, outside the list

    def best(self, centres: Tensor, nearest: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """Find each sample's nearest listed prototype and its similarity, given the previous nearest and its (n,)."""
        bounds = self.path.index_select(0, self.columns).add_(self.bounds)
        broken = (bounds > similarity.index_select(0, self.rows)).nonzero().squeeze(1)  # (b,)
        rows, order = self.rows[broken].sort(stable=True)
        broken = broken[order]
        columns = self.columns[broken]
        starts = F.pad(torch.bincount(rows, minlength=len(similarity)).cumsum(0), (1, 0))
        found = listed_similarities(self.projected.features, centres, starts, columns)
        self.bounds[broken] = found + (self.projected.rounding - self.path[columns])

        best = similarity.scatter_reduce(0, rows.long(), found, "amax")
        better = ((found == best[rows]) & (found > similarity[rows])).nonzero().squeeze(1)
        better = better[rows[better].diff(prepend=rows.new_tensor([-1])) > 0]  # one per sample
        broken, rows, columns = broken[better], rows[better].long(), columns[better].long()
        # On the list, the previous nearest takes the place of the new one.
        before = nearest[rows]
        self.columns[broken] = before.int()
        self.bounds[broken] = similarity[rows] + (self.projected.rounding - self.path[before])
        return nearest.index_put((rows,), columns), best


def speeds(steps: Tensor) -> Tensor:
    """Return how far each prototype may move per iteration (k,); a slow one may become as fast as the others."""
    return steps + steps.mean() + 1e-6


def principal_axes(features: Tensor) -> Tensor:
    """Return orthonormal columns (d, e - 1), enough to hold nearly all of the features' mean square."""
    moments = sum(rows.T @ rows for rows in features.split(ROWS_AT_A_TIME))  # (rows, d)^T x (rows, d) -> (d, d)
    energy, axes = torch.linalg.eigh(moments)  # ascending
    outside = int((energy.cumsum(0) < OUTSIDE_AXES * energy.sum()).sum())
    return axes[:, outside:].contiguous()


def bounding(rows: Tensor, axes: Tensor) -> Tensor:
    """Return Px and |x - Px| of rows x (n, d): vectors (n, e) whose products are upper bounds on the rows' products."""
    inside = rows @ axes  # (n, d) x (d, e - 1) -> (n, e - 1)
    outside = (rows.square().sum(dim=1) - inside.square().sum(dim=1)).clamp_min(0).add(1e-6).sqrt()
    return torch.cat([inside, outside[:, None]], dim=1)


def listed_similarities(features: Tensor, centres: Tensor, starts: Tensor, columns: Tensor) -> Tensor:
    """Return f_i . c_j (p,) for the few prototypes j listed for each sample i: columns[starts[i]:starts[i + 1]].

    Of the product of features (n, d) and centres (k, d), only the listed entries are computed; no (p, d) rows are
    gathered. starts (n + 1,), columns (p,).
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")  # it is in beta, and its invariants are unchecked
        shape = len(features), len(centres)
        wanted = torch.sparse_csr_tensor(starts.int(), columns.int(), torch.zeros(len(columns)), shape)
        return torch.sparse.sampled_addmm(wanted, features, centres.T, beta=0.0).values()
