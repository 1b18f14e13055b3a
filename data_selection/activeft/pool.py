"""The pool as every method sees it: unit features, and which samples may be chosen."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.processes import ALONE, Processes

ROWS_AT_A_TIME = 8192
CHUNK_ELEMENTS = 1 << 22  # similarities to a whole pool held at once
FEWEST_ROWS = 64  # rows at a time, however large the pool: a matrix product of fewer is slow


@dataclass(frozen=True)
class Candidates:
    """The samples of a pool of n that may be chosen: all but the labeled and the excluded.

    labeled: samples that already have labels. Like chosen samples, they cover the pool and repel others, but they use
    no budget. excluded: samples never to choose. They remain part of the pool to cover.
    """

    n: int
    labeled: tuple[int, ...] = ()
    excluded: tuple[int, ...] = ()

    def beside(self, indices: Iterable[int]) -> "Candidates":
        """Return the candidates once these samples are labelled too."""
        return Candidates(self.n, (*self.labeled, *indices), self.excluded)

    def closed(self, device: torch.device | str = "cpu") -> Tensor:
        """Return a mask (n,), bool, of the samples that cannot be chosen: labelled or excluded."""
        closed = torch.zeros(self.n, dtype=torch.bool, device=device)
        closed[[*self.labeled, *self.excluded]] = True
        return closed

    def open_indices(self) -> range | list[int]:
        """Return the samples that can be chosen, ascending."""
        if not self.labeled and not self.excluded:
            return range(self.n)
        return (~self.closed()).nonzero().squeeze(1).tolist()

    def check(self, budget: int) -> None:
        """Raise InputError unless all indices are in the pool and `budget` samples can be chosen."""
        for name, indices in (("labeled", self.labeled), ("excluded", self.excluded)):
            outside = next((index for index in indices if not 0 <= index < self.n), None)
            if outside is not None:
                raise InputError(f"{name} sample {outside} is not in the pool, which has samples 0 to {self.n - 1}")
        if len(set(self.labeled)) < len(self.labeled):
            raise InputError("a labeled sample is listed twice: list every index once")
        left = len(self.open_indices())
        if not left:
            raise InputError(f"nothing is left to choose: all {self.n} samples are labelled or excluded")
        if not isinstance(budget, Integral) or isinstance(budget, bool):
            raise InputError(f"a budget is a whole number of samples, not {budget!r}")
        if not 1 <= budget <= left:
            kept = f", of which {self.n - left} are labelled or excluded" if left < self.n else ""
            raise InputError(
                f"a budget of {budget} samples does not fit a pool of {self.n}{kept}: it must be from 1 to {left}"
            )


@dataclass(frozen=True)
class Pool:
    """rows (m, d): the features of the consecutive samples that this process holds; all n when it is alone."""

    rows: Tensor
    candidates: Candidates
    processes: Processes = ALONE

    @property
    def n(self) -> int:
        return self.candidates.n

    @property
    def first(self) -> int:
        """The pool index of the first row."""
        return self.processes.part(self.n).start

    def closed(self) -> Tensor:
        """Return a mask (m,), bool, of this process's samples that cannot be chosen."""
        return self.candidates.closed(self.rows.device)[self.processes.part(self.n)]

    def places_of(self, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Return these samples' positions in `rows` (k,), int64, and whether this process holds them (k,), bool."""
        local = torch.tensor([*indices], dtype=torch.int64, device=self.rows.device) - self.first
        return local, (local >= 0) & (local < len(self.rows))

    def rows_of(self, indices: Iterable[int]) -> Tensor:
        """Return the features (k, d) of these samples, whichever process holds them."""
        local, mine = self.places_of(indices)
        rows = self.rows.new_zeros(len(local), self.rows.shape[1])
        rows[mine] = self.rows[local[mine]]
        self.processes.sum(rows)
        return rows


def read_pool(
    features: np.ndarray | Tensor, candidates: Candidates, processes: Processes = ALONE, unit: bool = True
) -> Pool:
    """Make a pool of features (n, d); with several processes, each reads its own part of them.

    Raises InputError, in every process, if samples are fewer than processes, or a row is zero or not finite.
    """
    if candidates.n < processes.size:
        raise InputError(f"{processes.size} processes cannot share a pool of {candidates.n} samples: start fewer")
    part = processes.part(candidates.n)
    rows = processes.together(lambda: read_rows(features, processes.device, part, unit))
    return Pool(rows, candidates, processes)


def read_rows(
    features: np.ndarray | Tensor, device: torch.device, part: slice = slice(None), unit: bool = True
) -> Tensor:
    """Read a part of rows (n, d) as float32 onto the device, L2-normalised if `unit`; a mapped file piece by piece.

    Raises InputError if a row is zero or not finite.
    """
    if not isinstance(features, np.ndarray | Tensor):
        raise InputError(f"features are a {type(features).__name__}: give an array or a tensor (n, d)")
    if features.ndim != 2:
        raise InputError(f"features have shape {tuple(features.shape)}, not (n, d)")
    first, last, _ = part.indices(len(features))
    pool = torch.empty((last - first, features.shape[1]), device=device)
    for piece in chunks(len(pool), ROWS_AT_A_TIME):
        rows = pool[piece]
        source = features[first + piece.start : first + piece.stop]
        rows.copy_(source.detach() if isinstance(source, Tensor) else torch.from_numpy(source.astype(np.float32)))
        norms = rows.norm(dim=1, keepdim=True)
        bad = ~(norms.isfinite() & (norms > 0)).squeeze(1)
        if bad.any():
            row = int(bad.int().argmax())
            what = "all zero" if norms[row] == 0 else "not finite, or too large"
            row += first + piece.start
            raise InputError(f"row {row} of the features is {what}: extract that image again, or leave it out")
        if unit:
            rows.div_(norms)
    return pool


def chunks(n: int, size: int) -> Iterator[slice]:
    """Return slices of at most `size` that together cover 0..n - 1."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def rows_at_a_time(n: int) -> int:
    """Return a number of rows whose similarities to n samples fit into memory."""
    return max(FEWEST_ROWS, CHUNK_ELEMENTS // n)


def distance(similarity: Tensor) -> Tensor:
    """Return the Euclidean distance between unit vectors of this cosine similarity: |a - b| = sqrt(2 - 2 a . b)."""
    return (2 - 2 * similarity).clamp_min(0).sqrt()
