"""One epoch of finetuning, one evaluation, and the losses: of labels, and of a teacher (Touvron et al., DeiT, 2021)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from tqdm import tqdm

from common.networks import normalised
from common.processes import Interruption, Processes, autocast
from common.progress import progress_bar
from common.training import Batch, Recipe, TrainingState, to_network, update_weights


@dataclass(frozen=True)
class ClassificationLoss:
    """Mean loss of a batch, with mixup where the recipe has it. criterion(images, outputs, targets) gives it."""

    criterion: nn.Module
    mixup: Mixup | None = None

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """images (b, 3, h, w), targets (b,) -> scalar."""
        if self.mixup is not None and len(images) > 1:
            even = len(images) // 2 * 2  # mixup pairs images, and the last batch may be odd
            images, targets = self.mixup(images[:even], targets[:even])
        elif self.mixup is not None:
            targets = F.one_hot(targets, self.mixup.num_classes).float()
        return self.criterion(images, model(images), targets)


def train_one_epoch(
    model: nn.Module,
    batches: Iterator[Batch],
    recipe: Recipe,
    state: TrainingState,
    processes: Processes,
    interruption: Interruption,
    bar: tqdm,
    frozen: bool = False,
) -> bool:
    """Make the remaining updates of epoch `state.epoch`, from `state.update` on.

    batches: the run's micro-batches (b, 3, h, w) and their labels (b,). `model` may be wrapped for several processes.
    frozen: only a linear head is trained, and the backbone stays as it is evaluated: no stochastic depth, no dropout,
    no update of batch norm's statistics.
    Returns: whether the run is to stop; the state says how far the epoch has come.
    Raises: InputError, in every process, when the loss is not finite.
    """
    model.train(not frozen)
    while state.update < recipe.plan.updates:
        stop = update_weights(model, batches, recipe, state, processes, interruption)
        bar.update()
        if stop:
            return True
    return False


def end_epoch(state: TrainingState) -> None:
    """Step the schedule with the number of the epoch that ends: as published, epochs 0 and 1 run at --warmup-lr."""
    state.lr_scheduler.step(state.epoch, max(0.0, state.best_score))
    state.next_epoch()


def step_schedule_to(state: TrainingState) -> None:
    """Set the rate of `state.epoch` on this run's schedule, which may be longer than that of its checkpoint."""
    if state.epoch and not hasattr(state.lr_scheduler, "lr_scheduler"):  # plateau was resumed with the state
        state.lr_scheduler.step(state.epoch - 1)


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
    for batch in progress_bar(loader, desc="evaluating", leave=False, disable=not processes.is_main):
        images, targets = to_network(batch, processes.device, model)
        with autocast(processes.device, amp_dtype):
            logits = model(images).float()  # (b, c)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (b, 5)
        hits = ranked == targets[:, None]
        loss = F.cross_entropy(logits, targets, reduction="sum")
        totals += torch.tensor([loss.item(), hits[:, 0].sum().item(), hits.sum().item(), len(images)])
        if confusion is not None:
            pairs = targets * logits.shape[1] + ranked[:, 0]
            confusion += pairs.cpu().bincount(minlength=confusion.numel()).reshape(confusion.shape)
    if sharded:
        for counts in (totals,) if confusion is None else (totals, confusion):
            summed = counts.to(processes.device)
            processes.sum(summed)
            counts.copy_(summed)
    loss, top1, top5, count = totals.tolist()
    return {"loss": loss / count, "acc1": 100 * top1 / count, "acc5": 100 * top5 / count}


def base_criterion(soft_targets: bool, smoothing: float) -> nn.Module:
    """Cross entropy: with soft targets (mixup, which has the smoothing in them), with label smoothing, or plain."""
    if soft_targets:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()


class DistillationLoss(nn.Module):
    """(1 - alpha) * base loss of the class head + alpha * distillation loss of the distillation head.

    soft: tau^2 / numel * sum KL(teacher / tau || student / tau); hard: cross entropy with the teacher's argmax.
    kind "none" is the base loss alone.
    """

    def __init__(self, base: nn.Module, teacher: nn.Module | None, kind: str, alpha: float, tau: float):
        super().__init__()
        self.base, self.teacher, self.kind, self.alpha, self.tau = base, teacher, kind, alpha, tau

    def forward(self, images: Tensor, outputs: Tensor | tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """images (b, 3, h, w), outputs (b, c) or one such for each head, targets (b,) or soft (b, c) -> scalar."""
        by_class, by_distillation = outputs if isinstance(outputs, tuple) else (outputs, None)
        loss = self.base(by_class, targets)
        if self.kind == "none":
            return loss
        with torch.no_grad():
            teacher = self.teacher(images)
        if self.kind == "soft":
            distillation = soft_distillation(by_distillation, teacher, self.tau)
        else:
            distillation = F.cross_entropy(by_distillation, teacher.argmax(dim=1))
        return loss * (1 - self.alpha) + distillation * self.alpha


def soft_distillation(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """tau^2 / numel * sum KL over logits (b, c). (The published code divides by b * c, not by b.)"""
    student, teacher = (F.log_softmax(logits / tau, dim=1) for logits in (student, teacher))
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * tau**2 / student.numel()


@torch.inference_mode()
def most_probable(
    model: nn.Module, parts: Iterable[Tensor], trained: dict[str, Any], amp_dtype: torch.dtype | None
) -> np.ndarray:
    """The two most probable classes of each image, (b, 4): class, its probability, the next class, its probability.

    parts: images as bytes (_, 3, h, w), on the model's device. trained: what a checkpoint says of its run.
    """
    logits = []
    for images in parts:
        prepared = normalised(images, trained["mean"], trained["std"])
        with autocast(images.device, amp_dtype):
            logits.append(model(prepared).float())
    probabilities, classes = torch.cat(logits).softmax(dim=1).topk(2)  # (b, 2)
    return torch.stack([classes, probabilities], dim=2).flatten(1).cpu().numpy()
