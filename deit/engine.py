"""One epoch of finetuning, and one evaluation."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.data import Mixup
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from tqdm import tqdm

from common.command_line import InputError
from common.processes import Processes


def autocast(device: torch.device, amp_dtype: torch.dtype | None) -> AbstractContextManager:
    return torch.autocast(device.type, amp_dtype) if amp_dtype else nullcontext()


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    processes: Processes,
    epoch: int,
    bar: tqdm,
    mixup: Mixup | None = None,
    ema: ModelEmaV3 | None = None,
    clip_grad: float | None = None,
    amp_dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """Train on every batch of the loader once.

    criterion(images, outputs, targets) is a scalar; `model` may be wrapped for several processes.
    Returns: lr (the largest of the parameter groups) and loss, the mean over the steps and processes.
    Raises: InputError, in every process, when the loss is not finite.
    """
    model.train()
    losses = []
    lr = max(group["lr"] for group in optimizer.param_groups)
    for step, (images, targets) in enumerate(loader):
        if mixup is not None and len(images) % 2:  # mixup pairs images, and the last batch may be odd
            if len(images) == 1:
                continue
            images, targets = images[:-1], targets[:-1]
        images = images.to(processes.device, non_blocking=True)
        targets = targets.to(processes.device, non_blocking=True)
        if mixup is not None:
            images, targets = mixup(images, targets)
        with autocast(processes.device, amp_dtype):
            loss = criterion(images, model(images), targets)
        losses.append(mean_over_processes(loss, processes))
        if not math.isfinite(losses[-1]):
            raise InputError(
                f"the loss is {losses[-1]} at epoch {epoch}, step {step}, lr {lr:g}: lower --lr, or --clip-grad"
            )

        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if clip_grad is not None:
            scaler.unscale_(optimizer)
            dispatch_clip_grad(model.parameters(), clip_grad)
        scaler.step(optimizer)
        scaler.update()
        if ema is not None:
            ema.update(unwrapped(model))
        bar.update()
    return {"lr": lr, "loss": sum(losses) / max(1, len(losses))}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def mean_over_processes(value: Tensor, processes: Processes) -> float:
    value = value.detach().float().clone()
    if processes.world_size > 1:
        dist.all_reduce(value)
    return value.item() / processes.world_size


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    processes: Processes,
    amp_dtype: torch.dtype | None = None,
    sharded: bool = False,
) -> dict[str, Any]:
    """Cross entropy and top-1 and top-5 accuracy in percent.

    sharded: each process has its own part of the images, and the counts are summed; every image counts once.
    """
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64)  # loss, top-1, top-5, images
    for images, targets in tqdm(loader, desc="evaluating", leave=False, disable=not processes.is_main):
        images, targets = images.to(processes.device), targets.to(processes.device)
        with autocast(processes.device, amp_dtype):
            logits = model(images).float()  # (b, c)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (b, 5)
        hits = ranked == targets[:, None]
        loss = F.cross_entropy(logits, targets, reduction="sum")
        totals += torch.tensor([loss.item(), hits[:, 0].sum().item(), hits.sum().item(), len(images)])
    if sharded and processes.world_size > 1:
        totals = totals.to(processes.device)
        dist.all_reduce(totals)
    loss, top1, top5, count = totals.tolist()
    return {"loss": loss / count, "acc1": 100 * top1 / count, "acc5": 100 * top5 / count}
