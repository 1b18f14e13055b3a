"""The pool over several processes: each holds its own rows, and sums over samples are sums over processes too."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import InputError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Sharding:
    """A pool of n samples, and process `rank` of `world_size` that share it. One alone holds all of it."""

    n: int
    rank: int = 0
    world_size: int = 1

    @property
    def rows(self) -> slice:
        """The rows of the pool that this process holds."""
        return self.part(self.n)

    def part(self, n: int) -> slice:
        """This process's share of n things: consecutive ones, the same number for all to within one."""
        return slice(n * self.rank // self.world_size, n * (self.rank + 1) // self.world_size)

    def sum(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes, which is the same in all of them."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, of one shape, stacked in order (world_size, ...)."""
        if self.world_size == 1:
            return tensor[None]
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.stack(gathered)

    def together(self, work: Callable[[], Result]) -> Result:
        """Do this process's part of some work. Where it fails in one process it fails in all, so that none waits."""
        error, result = None, None
        try:
            result = work()
        except InputError as raised:
            error = raised
        if self.world_size > 1:
            errors: list[str | None] = [None] * self.world_size
            dist.all_gather_object(errors, str(error) if error else None)
            error = error or next((InputError(message) for message in errors if message), None)
        if error:
            raise error
        return result
