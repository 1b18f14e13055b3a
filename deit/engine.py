"""Losses from labels and from a teacher (Touvron et al., DeiT, 2021), steps of the schedule, and evaluation."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from common.networks import normalised
from common.processes import Processes, autocast
from common.progress import progress_bar
from common.training import Batch, TrainingState, to_network


@dataclass(frozen=True)
class ClassificationLoss:
    """Mean loss of a batch of labelled images, with mixup and a teacher if the recipe has them.

    base(logits, targets) is the loss on the labels. With a teacher: (1 - alpha) * base of the class head + alpha *
    loss of the distillation head, hard (cross entropy with the teacher's argmax) or soft (`soft_distillation`).
    """

    base: nn.Module
    mixup: Mixup | None = None
    teacher: nn.Module | None = None
    kind: str = "none"
    alpha: float = 0.5
    tau: float = 1.0

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """images (b, 3, h, w), targets (b,) or soft (b, c) -> scalar."""
        if self.mixup is not None:
            even = len(images) // 2 * 2  # mixup pairs images: the last of an odd batch stays as it is
            soft = mixup_target(targets, self.mixup.num_classes, 1.0, self.mixup.label_smoothing)  # (b, c)
            if even:
                images[:even], soft[:even] = self.mixup(images[:even], targets[:even])
            targets = soft
        outputs = model(images)
        by_class, by_distillation = outputs if isinstance(outputs, tuple) else (outputs, None)
        loss = self.base(by_class, targets)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = self.teacher(images)
        if self.kind == "soft":
            distillation = soft_distillation(by_distillation, taught, self.tau)
        else:
            distillation = F.cross_entropy(by_distillation, taught.argmax(dim=1))
        return loss * (1 - self.alpha) + distillation * self.alpha


def end_epoch(state: TrainingState, evaluated: bool) -> None:
    """Step the schedule with the number of the epoch that ends; so epochs 0 and 1 run at --warmup-lr, as published.

    After the warm-up, the plateau schedule counts only epochs that were `evaluated`.
    """
    waits = follows_a_plateau(state) and state.epoch > state.lr_scheduler.warmup_t and not evaluated
    if not waits:
        state.lr_scheduler.step(state.epoch, max(0.0, state.best_score))
    state.next_epoch()


def follows_a_plateau(state: TrainingState) -> bool:
    return hasattr(state.lr_scheduler, "lr_scheduler")


def step_schedule_to(state: TrainingState) -> None:
    """Set the rate for `state.epoch` by this run's schedule, which may be longer than the one in its checkpoint."""
    if state.epoch and not follows_a_plateau(state):  # a plateau schedule is restored with the state
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
    """Return cross entropy, and top-1 and top-5 accuracy in percent.

    sharded: each process evaluates its own part of the images, and the counts are summed; every image counts once.
    confusion: a matrix of zeros (c, c); the images of each true (row) and predicted (column) class are counted in it.
    """
    model.eval()
    processes.broadcast(model.buffers())  # batch norm's statistics: each process has its own
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
    for counts in (totals, confusion) if sharded and processes.size > 1 else ():
        if counts is not None:
            summed = counts.to(processes.device)
            processes.sum(summed)
            counts.copy_(summed)
    loss, top1, top5, count = totals.tolist()
    return {"loss": loss / count, "acc1": 100 * top1 / count, "acc5": 100 * top5 / count}


def base_criterion(soft_targets: bool, smoothing: float) -> nn.Module:
    """Return cross entropy: for soft targets (which include any smoothing), with label smoothing, or plain."""
    if soft_targets:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()


def soft_distillation(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Return tau^2 / (b c) * sum of KL over logits (b, c). (The published code, too, divides by b * c, not by b.)"""
    student, teacher = (F.log_softmax(logits / tau, dim=1) for logits in (student, teacher))
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * tau**2 / student.numel()


@torch.inference_mode()
def most_probable(
    model: nn.Module, parts: Iterable[Tensor], trained: dict[str, Any], amp_dtype: torch.dtype | None
) -> np.ndarray:
    """Return two classes per image, (b, 4): the most probable class, its probability, the next class, its probability.

    parts: images as bytes (_, 3, h, w), on the model's device. trained: the run that a checkpoint describes.
    """
    logits = []
    for images in parts:
        prepared = normalised(images, trained["mean"], trained["std"])
        with autocast(images.device, amp_dtype):
            logits.append(model(prepared).float())
    probabilities, classes = torch.cat(logits).softmax(dim=1).topk(2)  # (b, 2)
    return torch.stack([classes, probabilities], dim=2).flatten(1).cpu().numpy()
