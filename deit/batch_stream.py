"""All batches of a run as one stream: workers live through it, and any place in it can be the start.

What an image looks like after augmentation depends on --seed, the epoch and its position among the epoch's draws, and
on nothing else: not on the number of workers, processes or accumulation steps, nor on where a run was interrupted.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from common.image_datasets import Transform


class Draw(NamedTuple):
    """One draw of an epoch: which image, and its position among all draws of the epoch in all processes."""

    index: int
    epoch: int
    position: int


@dataclass(frozen=True)
class EpochPlan:
    """How one process's draws of an epoch become updates, and updates micro-batches.

    draws: of this process in an epoch. update_size: of them in one update. micro_size: of them in one forward pass.
    The last update, and the last micro-batch of an update, may be smaller.
    """

    draws: int
    update_size: int
    micro_size: int

    @property
    def updates(self) -> int:
        return math.ceil(self.draws / self.update_size)

    def micro_batches(self, update: int) -> list[int]:
        """The sizes of the micro-batches of one update."""
        size = min(self.update_size, self.draws - update * self.update_size)
        return [min(self.micro_size, size - start) for start in range(0, size, self.micro_size)]


class BatchStream(Sampler[list[Draw]]):
    """The micro-batches of one process, from one place in the run to its end.

    sampler: the indices of an epoch's draws, rank r having every W-th from r; shuffled anew by set_epoch.
    """

    def __init__(
        self, sampler: Sampler[int], plan: EpochPlan, rank: int, world_size: int, epochs: range, first_update: int = 0
    ):
        self.sampler, self.plan, self.rank, self.world_size = sampler, plan, rank, world_size
        self.epochs, self.first_update = epochs, first_update

    def __iter__(self) -> Iterator[list[Draw]]:
        for epoch in self.epochs:
            # (departure) In every launch mode: a single process that never does this sees a third of a small subset.
            self.sampler.set_epoch(epoch)
            draws = iter(
                Draw(index, epoch, self.rank + self.world_size * order) for order, index in enumerate(self.sampler)
            )
            for update in range(self.plan.updates):
                for size in self.plan.micro_batches(update):
                    batch = [next(draws) for _ in range(size)]
                    if epoch > self.epochs.start or update >= self.first_update:
                        yield batch


class DrawnImages(Dataset):
    """Augmented images by their draw: (image, label)."""

    def __init__(self, images: Dataset, transform: Transform, seed: int):
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, draw: Draw) -> tuple[Any, int]:
        image, label = self.images[draw.index]
        seed_augmentation(self.seed, draw.epoch, draw.position)
        return self.transform(image), label


def seed_augmentation(*key: int) -> int:
    """Seed Python's, numpy's and torch's CPU generators with a number made of all of `key`. Returns the number."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed sees to every device, which costs 80 us an image
    return seed


def seed_everything(*key: int) -> None:
    """The same, and the generators of the devices."""
    torch.manual_seed(seed_augmentation(*key))
