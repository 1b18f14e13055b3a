"""One update of the weights, the same in every trainer: micro-batches, mixed precision, several processes, clipping."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.batch_stream import EpochPlan, seed_everything
from common.errors import InputError
from common.networks import normalised
from common.processes import Interruption, Processes, autocast
from common.run_folder import write_checkpoint
from common.training_state import TrainingState

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """What stays the same for a whole run.

    loss(model, images, targets): the mean over the images, a scalar. seed: of what the loss and the model draw.
    evidence_dir: where a loss that is not finite leaves what is needed to look at it.
    """

    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    plan: EpochPlan
    seed: int
    clip_grad: float | None = None
    amp_dtype: torch.dtype | None = None
    evidence_dir: Path | None = None


def update_weights(
    model: nn.Module,
    batches: Iterator[Batch],
    recipe: Recipe,
    state: TrainingState,
    processes: Processes,
    interruption: Interruption,
) -> bool:
    """Make update `state.update` of epoch `state.epoch`, and count it.

    batches: the run's micro-batches, images (b, 3, h, w) and targets. `model` may be wrapped for several processes.
    Returns: whether the run is to stop, the same in all processes.
    Raises: InputError, in every process, when the loss is not finite.
    """
    state.optimizer.zero_grad()
    sizes = recipe.plan.micro_batches(state.update)
    loss = torch.zeros((), device=processes.device)
    for number, size in enumerate(sizes, start=1):
        images, targets = to_network(next(batches), processes.device, state.model)
        # What is drawn from here on (mixup, stochastic depth) is this place's own, however the batch was loaded.
        seed_everything(recipe.seed, state.epoch, state.update, number, processes.rank)
        with gradients_stay(model, until_last=number < len(sizes)):
            with autocast(processes.device, recipe.amp_dtype):
                share = recipe.loss(model, images, targets) * (size / sum(sizes))
            state.scaler.scale(share).backward()
        loss += share.detach()
    mean_loss, stop = agree(loss, interruption.requested, processes)
    if not math.isfinite(mean_loss):
        give_up(mean_loss, loss, (images, targets), recipe, state, processes)

    if recipe.clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        dispatch_clip_grad(model.parameters(), recipe.clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.model_ema is not None:
        made = state.epoch * recipe.plan.updates + state.update + 1
        state.model_ema.update(state.model, step=made if state.model_ema.use_warmup else None)
    state.update += 1
    state.losses.append(mean_loss)
    return stop


def in_parallel(model: nn.Module, processes: Processes, some_unused: bool = False) -> nn.Module:
    """The model as it is trained: alone, or averaging its gradients with the other processes.

    some_unused: some of its weights have no part in the loss.
    """
    if processes.size == 1:
        return model
    device_ids = [processes.device] if processes.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=some_unused)


def to_network(batch: Batch, device: torch.device, model: nn.Module | None = None) -> Batch:
    """The batch on the device; images of bytes become floats, normalised as the model expects, else by ImageNet."""
    images, targets = (part.to(device, non_blocking=True) for part in batch)
    if images.dtype == torch.uint8:
        images = normalised(images, *getattr(model, "statistics", (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)))
    return images, targets


def gradients_stay(model: nn.Module, until_last: bool) -> AbstractContextManager:
    """Several processes average their gradients once per update, with its last micro-batch."""
    return model.no_sync() if until_last and isinstance(model, DistributedDataParallel) else nullcontext()


def agree(loss: Tensor, stop: bool, processes: Processes) -> tuple[float, bool]:
    """The mean loss, and whether any process was asked to stop: the same in all processes."""
    both = torch.stack([loss.float(), torch.tensor(float(stop), device=loss.device)])
    if processes.size > 1:
        dist.all_reduce(both)
    return both[0].item() / processes.size, both[1].item() > 0


def give_up(
    mean_loss: float, own_loss: Tensor, batch: Batch, recipe: Recipe, state: TrainingState, processes: Processes
) -> NoReturn:
    """Raise InputError for a loss that is not finite; the process it arose in saves its weights and batch first."""
    place = {"epoch": state.epoch, "update": state.update, "lr": state.lr}
    if recipe.evidence_dir and not own_loss.isfinite():
        evidence = {"loss": own_loss.item(), "model": state.model.state_dict(), "images": batch[0], "targets": batch[1]}
        write_checkpoint(recipe.evidence_dir / f"nonfinite_{processes.rank}.pth", place | evidence)
    processes.barrier()
    where = "epoch {epoch}, update {update}, lr {lr:g}".format(**place)
    saved = f"; the weights and the last batch are in {recipe.evidence_dir}/nonfinite_*.pth"
    advice = "lower --lr or --clip-grad" + saved * bool(recipe.evidence_dir)
    raise InputError(f"the loss is {mean_loss} at {where}: {advice}")
