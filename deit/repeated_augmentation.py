"""The sampler of the published recipe: every image of an epoch is drawn three times, each time augmented anew."""

import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

REPEATS = 3
DRAWS = 256  # an epoch is a whole number of these


class RepeatedAugmentationSampler(Sampler[int]):
    """DeiT's repeated augmentation (Hoffer et al., 2020) with ActiveFT's minimum of 256 draws an epoch.

    The n indices are shuffled with a generator seeded by the epoch, each is repeated three times, rank r takes every
    W-th from r, and only the first max(1, n // 256) * 256 / W of these are used: an epoch of 250 images is 256 draws
    from 86 of them. Over the epochs every image is trained on, provided that `set_epoch` is called for each.

    (departure) With fewer than 86 images, 3 n is less than 256 and the epoch is 3 n draws; the published sampler then
    announces more draws than it makes.
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
        draws = torch.randperm(self.n, generator=generator).repeat_interleave(REPEATS)
        padding = -len(draws) % self.world_size
        draws = torch.cat([draws, draws[:padding]])
        yield from draws[self.rank :: self.world_size][: len(self)].tolist()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
