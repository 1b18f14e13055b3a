"""What is known of some pool samples before the choice: which have labels already, and which must not be chosen."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import InputError


@dataclass(frozen=True)
class KnownSamples:
    """Indices into the pool.

    labeled: they cover the pool and repel what is chosen, as chosen samples do, but cost nothing of the budget.
    excluded: never chosen. They stay in the pool that is to be covered, as long as it lists them.
    """

    labeled: tuple[int, ...] = ()
    excluded: tuple[int, ...] = ()

    def and_labeled(self, indices: Iterable[int]) -> "KnownSamples":
        return KnownSamples((*self.labeled, *indices), self.excluded)

    def closed(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        """Whether each of the n samples is labelled or excluded, and so cannot be chosen: (n,), bool."""
        closed = torch.zeros(n, dtype=torch.bool, device=device)
        closed[[*self.labeled, *self.excluded]] = True
        return closed

    def open_indices(self, n: int) -> range | list[int]:
        """The samples that can be chosen, ascending."""
        if not self.labeled and not self.excluded:
            return range(n)
        return (~self.closed(n)).nonzero().squeeze(1).tolist()

    def check(self, n: int, budget: int) -> None:
        """Raises InputError unless all indices are in the pool, and a budget of so many samples can be chosen."""
        for name, indices in (("labeled", self.labeled), ("excluded", self.excluded)):
            outside = next((index for index in indices if not 0 <= index < n), None)
            if outside is not None:
                raise InputError(f"{name} sample {outside} is not in the pool, which has samples 0 to {n - 1}")
        if len(set(self.labeled)) < len(self.labeled):
            raise InputError("a labeled sample is listed twice: every index must stand there once")
        left = len(self.open_indices(n))
        if not left:
            raise InputError(f"nothing is left to choose: all {n} samples are labelled or excluded")
        if not 1 <= budget <= left:
            kept = f", of which {n - left} are labelled or excluded" if left < n else ""
            raise InputError(
                f"a budget of {budget} samples does not fit a pool of {n}{kept}: it must be from 1 to {left}"
            )
