"""One epoch of finetuning, and one evaluation."""

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from common.errors import InputError
from common.files import atomic_file
from common.processes import Processes, autocast
from deit.batch_stream import EpochPlan, seed_everything
from deit.training_state import Interruption, TrainingState

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """What stays the same for a whole run. criterion(images, outputs, targets) is the mean over the images."""

    criterion: nn.Module
    plan: EpochPlan
    seed: int
    mixup: Mixup | None = None
    clip_grad: float | None = None
    amp_dtype: torch.dtype | None = None
    evidence_dir: Path | None = None  # where a loss that is not finite leaves what is needed to look at it


def train_one_epoch(
    model: nn.Module,
    batches: Iterator[Batch],
    recipe: Recipe,
    state: TrainingState,
    processes: Processes,
    interruption: Interruption,
    bar: tqdm,
) -> bool:
    """Make the remaining updates of epoch `state.epoch`, from `state.update` on.

    batches: the run's micro-batches (b, 3, h, w) and their labels (b,). `model` may be wrapped for several processes.
    Returns: whether the run is to stop; the state says how far the epoch has come.
    Raises: InputError, in every process, when the loss is not finite.
    """
    model.train()
    for update in range(state.update, recipe.plan.updates):
        state.optimizer.zero_grad()
        sizes = recipe.plan.micro_batches(update)
        loss = torch.zeros((), device=processes.device)
        for number, size in enumerate(sizes, start=1):
            images, targets = to_network(next(batches), processes.device)
            # What is drawn from here on (mixup, stochastic depth) is this place's own, however the batch was loaded.
            seed_everything(recipe.seed, state.epoch, update, number, processes.rank)
            if recipe.mixup is not None and len(images) > 1:
                even = len(images) // 2 * 2  # mixup pairs images, and the last batch may be odd
                images, targets = recipe.mixup(images[:even], targets[:even])
            elif recipe.mixup is not None:
                targets = F.one_hot(targets, recipe.mixup.num_classes).float()
            with gradients_stay(model, until_last=number < len(sizes)):
                with autocast(processes.device, recipe.amp_dtype):
                    share = recipe.criterion(images, model(images), targets) * (size / sum(sizes))
                state.scaler.scale(share).backward()
            loss += share.detach()
        mean_loss, stop = agree(loss, interruption.requested, processes)
        if not math.isfinite(mean_loss):
            give_up(mean_loss, loss, (images, targets), update, recipe, state, processes)

        if recipe.clip_grad is not None:
            state.scaler.unscale_(state.optimizer)
            dispatch_clip_grad(model.parameters(), recipe.clip_grad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.model_ema is not None:
            state.model_ema.update(state.model)
        state.update = update + 1
        state.losses.append(mean_loss)
        bar.update()
        if stop:
            return True
    return False


def to_network(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; images of bytes become floats, normalised with ImageNet's mean and std."""
    images, targets = (part.to(device, non_blocking=True) for part in batch)
    if images.dtype == torch.uint8:
        mean, std = (
            torch.tensor(channels, device=device)[:, None, None]
            for channels in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        images = images.float().div_(255).sub_(mean).div_(std)
    return images, targets


def gradients_stay(model: nn.Module, until_last: bool) -> AbstractContextManager:
    """Several processes average their gradients once an update, with its last micro-batch."""
    return model.no_sync() if until_last and isinstance(model, DistributedDataParallel) else nullcontext()


def agree(loss: Tensor, stop: bool, processes: Processes) -> tuple[float, bool]:
    """The mean loss, and whether any process was asked to stop: the same in all processes."""
    both = torch.stack([loss.float(), torch.tensor(float(stop), device=loss.device)])
    if processes.size > 1:
        dist.all_reduce(both)
    return both[0].item() / processes.size, both[1].item() > 0


def give_up(
    mean_loss: float,
    own_loss: Tensor,
    batch: Batch,
    update: int,
    recipe: Recipe,
    state: TrainingState,
    processes: Processes,
) -> NoReturn:
    """Leave the evidence of a loss that is not finite, in the processes it arose in, and raise InputError in all."""
    lr = max(group["lr"] for group in state.optimizer.param_groups)
    where = f"epoch {state.epoch}, update {update}, lr {lr:g}"
    left = ""
    if recipe.evidence_dir is not None:
        left = f"; the weights and the last batch are in {recipe.evidence_dir}/nonfinite_*.pth"
        if not own_loss.isfinite():
            evidence = {"model": state.model.state_dict(), "images": batch[0], "targets": batch[1]}
            about = {"epoch": state.epoch, "update": update, "lr": lr, "loss": own_loss.item()}
            with atomic_file(recipe.evidence_dir / f"nonfinite_{processes.rank}.pth") as temporary:
                torch.save({**evidence, **about}, temporary)
    processes.barrier()
    raise InputError(f"the loss is {mean_loss} at {where}: lower --lr or --clip-grad{left}")


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    processes: Processes,
    amp_dtype: torch.dtype | None = None,
    sharded: bool = False,
    confusion: Tensor | None = None,
) -> dict[str, Any]:
    """Cross entropy, and top-1 and top-5 accuracy in percent.

    sharded: each process has its own part of the images, and the counts are summed; every image counts once.
    confusion: a matrix of zeros (c, c), to which the number of images of each true and predicted class is added.
    """
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64)  # loss, top-1, top-5, images
    for batch in tqdm(loader, desc="evaluating", leave=False, disable=not processes.is_main):
        images, targets = to_network(batch, processes.device)
        with autocast(processes.device, amp_dtype):
            logits = model(images).float()  # (b, c)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (b, 5)
        hits = ranked == targets[:, None]
        loss = F.cross_entropy(logits, targets, reduction="sum")
        totals += torch.tensor([loss.item(), hits[:, 0].sum().item(), hits.sum().item(), len(images)])
        if confusion is not None:
            pairs = targets * logits.shape[1] + ranked[:, 0]
            confusion += pairs.cpu().bincount(minlength=confusion.numel()).reshape(confusion.shape)
    if sharded and processes.size > 1:
        for counts in (totals,) if confusion is None else (totals, confusion):
            summed = counts.to(processes.device)
            dist.all_reduce(summed)
            counts.copy_(summed)
    loss, top1, top5, count = totals.tolist()
    return {"loss": loss / count, "acc1": 100 * top1 / count, "acc5": 100 * top5 / count}
