"""All batches of a run as one stream: its workers live for the whole run, and a run can start anywhere in it.

What an image looks like after augmentation depends only on --seed, the epoch and its position among the epoch's draws:
not on the number of workers, processes or accumulation steps, nor on where a run was interrupted.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

REPEATS = 3  # per image, in an epoch of repeated augmentation
DRAWS = 256  # the number of draws in such an epoch is a multiple of this


class Draw(NamedTuple):
    """One draw of an epoch: the image's index, and its position among the draws of the epoch in all processes."""

    index: int
    epoch: int
    position: int


@dataclass(frozen=True)
class EpochPlan:
    """How one process's draws of an epoch are split into updates, and updates into micro-batches.

    draws: per epoch, in this process. update_size: draws per update. micro_size: draws per forward pass.
    The last update, and the last micro-batch of an update, may be smaller. processes: how many follow this plan.
    """

    draws: int
    update_size: int
    micro_size: int
    processes: int = 1

    @property
    def images_per_update(self) -> int:
        """The number of images per update, over all processes."""
        return self.update_size * self.processes

    @property
    def updates(self) -> int:
        return math.ceil(self.draws / self.update_size)

    def micro_batches(self, update: int) -> list[int]:
        """Return the sizes of the micro-batches of one update."""
        size = min(self.update_size, self.draws - update * self.update_size)
        return [min(self.micro_size, size - start) for start in range(0, size, self.micro_size)]


class RepeatedAugmentationSampler(Sampler[int]):
    """DeiT's repeated augmentation (Hoffer et al., 2020) with ActiveFT's minimum of 256 draws per epoch.

    The n indices are shuffled with a generator seeded by the epoch, each is repeated three times, rank r takes every
    W-th from r, and only the first max(1, n // 256) * 256 / W of these are used: an epoch of 250 images is 256 draws
    from 86 of them. Over many epochs every image is trained on, provided that `set_epoch` is called for each.

    (departure) With fewer than 86 images, 3 n is less than 256 and the epoch is 3 n draws; the published sampler then
    reports a greater length than the number of draws it makes.
    (timm's own RepeatAugSampler gives an empty epoch below 256 images.)
    """

    def __init__(self, n: int, rank: int = 0, world_size: int = 1):
        self.n, self.rank, self.world_size = n, rank, world_size
        self.epoch = 0

    def __len__(self) -> int:
        selected = max(1, self.n // DRAWS) * DRAWS // self.world_size
        return min(selected, math.ceil(self.n * REPEATS / self.world_size))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch)
        draws = torch.randperm(self.n, generator=generator).repeat_interleave(REPEATS).tolist()
        endless = itertools.cycle(draws)  # the last processes' last draws wrap around to the first
        yield from itertools.islice(endless, self.rank, self.rank + len(self) * self.world_size, self.world_size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class BatchStream(Sampler[list[Draw]]):
    """The micro-batches of one process, from a given place in the run to its end.

    sampler: yields the image indices of this rank's draws in an epoch, every W-th from r; set_epoch reshuffles them.
    """

    def __init__(self, sampler: Sampler[int], plan: EpochPlan, rank: int, epochs: range, first_update: int = 0):
        self.sampler, self.plan, self.rank = sampler, plan, rank
        self.epochs, self.first_update = epochs, first_update

    def __iter__(self) -> Iterator[list[Draw]]:
        for epoch in self.epochs:
            # (departure) In every launch mode: without this, a single process only ever sees a third of a small subset.
            self.sampler.set_epoch(epoch)
            positions = itertools.count(self.rank, self.plan.processes)
            draws = (Draw(index, epoch, position) for index, position in zip(self.sampler, positions, strict=False))
            for update in range(self.plan.updates):
                for size in self.plan.micro_batches(update):
                    batch = [next(draws) for _ in range(size)]
                    if epoch > self.epochs.start or update >= self.first_update:
                        yield batch


class DrawnImages(Dataset):
    """Augmented images, indexed by Draw. augment(image, target): returns the pair that is trained on."""

    def __init__(self, images: Dataset, augment: Callable[[Any, Any], tuple[Any, Any]], seed: int):
        self.images, self.augment, self.seed = images, augment, seed

    def __getitem__(self, draw: Draw) -> tuple[Any, Any]:
        image, target = self.images[draw.index]
        seed_augmentation(self.seed, draw.epoch, draw.position)
        return self.augment(image, target)


def seed_augmentation(*key: int) -> int:
    """Seed Python's, numpy's and torch's CPU generators with one number derived from all of `key`; return it."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds every device: 80 us per image
    return seed


def seed_everything(*key: int) -> None:
    """Seed the same generators, and those of the devices."""
    torch.manual_seed(seed_augmentation(*key))
