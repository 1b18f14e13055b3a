"""Build the parts of a run from the options: optimiser, schedule, loss, and the scenes in training order."""

import argparse
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import PolyLRScheduler
from torch import Tensor
from torch.utils.data import Sampler

from common.batch_stream import BatchStream, DrawnImages, EpochPlan
from common.command_line import usable
from common.errors import InputError
from common.image_loader import ImageLoader
from common.processes import Processes
from common.scenes import IGNORED
from common.training import TrainingState
from segmenter.augmentation import train_transform
from segmenter.datasets import Scenes
from segmenter.models import PixelClassifier
from segmenter.recipe_options import NO_INFLUENCE, PASSES


class EndlessShuffle(Sampler[int]):
    """The draws of one process: shuffles of all images, one after another; rank r takes every W-th draw from r."""

    def __init__(self, n: int, draws: int, seed: int, rank: int = 0, world_size: int = 1):
        self.n, self.draws, self.seed, self.rank, self.world_size = n, draws, seed, rank, world_size

    def __len__(self) -> int:
        return self.draws // self.world_size

    def __iter__(self) -> Iterator[int]:
        begun = -1
        for position in range(self.rank, self.draws, self.world_size):
            shuffle, place = divmod(position, self.n)
            if shuffle != begun:
                order, begun = np.random.default_rng((self.seed, shuffle)).permutation(self.n), shuffle
            yield int(order[place])

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the whole run is one epoch."""


def build_plan(args: argparse.Namespace, n: int, processes: Processes) -> tuple[EndlessShuffle, EpochPlan]:
    """Return which of n images this process draws in the run, and the plan of updates: one per iteration."""
    size, rest = divmod(args.batch_size, processes.size)
    if rest:
        raise InputError(f"--batch-size {args.batch_size} is not a multiple of {processes.size} processes")
    iterations = args.iterations or math.ceil(PASSES * n / args.batch_size)
    sampler = EndlessShuffle(n, iterations * args.batch_size, args.seed, processes.rank, processes.size)
    return sampler, EpochPlan(len(sampler), size, size, processes.size)


def build_state(
    args: argparse.Namespace, model: PixelClassifier, iterations: int, amp_dtype: torch.dtype | None
) -> TrainingState:
    """Build optimiser and schedule for a model that has its starting weights and is on its device.

    The schedule is polynomial, per iteration: lr = min_lr + (lr - min_lr) (1 - iteration / iterations)^power.
    """
    trained = model.decoder if model.frozen else model
    with usable(f"--opt {args.opt}"):
        optimizer = create_optimizer_v2(
            trained, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay, momentum=args.momentum
        )
    lr_scheduler = PolyLRScheduler(
        optimizer,
        t_initial=iterations,
        power=args.power,
        lr_min=args.min_lr,
        warmup_t=round(args.warmup * iterations),
        t_in_epochs=False,
    )
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16)
    return TrainingState(model, optimizer, lr_scheduler, scaler, metric="miou")


def describe_run(
    args: argparse.Namespace, train: Scenes, val: Scenes, iterations: int, weights: str | None
) -> dict[str, Any]:
    """Describe everything that a run's results depend on; a checkpoint is resumed only if all of it is unchanged."""
    options = {name: value for name, value in vars(args).items() if name not in NO_INFLUENCE}
    known = {} if weights is None else {"weights": weights}
    images = {"train_images": train.listing, "val_images": val.listing}
    return {**options, **known, **images, "iterations": iterations, "classes": list(train.labels.classes)}


def pixel_loss(logits: Tensor, targets: Tensor, processes: Processes) -> Tensor:
    """Return cross entropy of logits (b, c, h, w) and classes (b, h, w), averaged over all pixels not IGNORED.

    With several processes, averaging their losses gives the mean over all their pixels. No labelled pixel: 0.
    """
    counted = (targets != IGNORED).sum().float()
    processes.sum(counted)
    total = F.cross_entropy(logits.float(), targets.long(), ignore_index=IGNORED, reduction="sum")
    return total * processes.size / counted.clamp_min(1)


def build_train_loader(
    args: argparse.Namespace, train: Scenes, stream: BatchStream, processes: Processes
) -> ImageLoader:
    drawn = DrawnImages(train, train_transform(args), args.seed)
    return ImageLoader(drawn, stream, stream.plan.micro_size, args.num_workers, processes.device.type == "cuda")


def build_eval_loader(args: argparse.Namespace, val: Scenes, processes: Processes) -> ImageLoader:
    """Load this process's share of the validation scenes, one at a time."""
    batches = [[index] for index in range(processes.rank, len(val), processes.size)]
    return ImageLoader(val, batches, 1, args.num_workers, processes.device.type == "cuda")
