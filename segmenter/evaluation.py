"""Segmenter's evaluation: a sliding window over each image, and one confusion matrix over all."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from common.processes import Processes, autocast
from common.scenes import IGNORED


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every `stride` pixels, the last one moved inside. At least one."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def sliding_window(
    model: nn.Module, image: Tensor, window: int, stride: int, batch_size: int, amp_dtype: torch.dtype | None = None
) -> Tensor:
    """Logits (c, h, w) of an image (3, h, w), on the model's device: the mean of all windows that cover a pixel."""
    height, width = image.shape[-2:]
    corners = [
        (top, left) for top in window_starts(height, window, stride) for left in window_starts(width, window, stride)
    ]
    windows = torch.stack([image[:, top : top + window, left : left + window] for top, left in corners])
    total, count = 0, torch.zeros(height, width, device=image.device)
    for start in range(0, len(windows), batch_size):
        with autocast(image.device, amp_dtype):
            logits = model(windows[start : start + batch_size]).float()  # (b, c, window, window)
        if start == 0:
            total = torch.zeros(logits.shape[1], height, width, device=image.device)
        for (top, left), part in zip(corners[start : start + batch_size], logits, strict=True):
            total[:, top : top + window, left : left + window] += part
            count[top : top + window, left : left + window] += 1
    return total / count


def predict(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (c, h, w), interpolated to the original size -> the class of every pixel (size)."""
    return F.interpolate(logits[None], size=size, mode="bilinear")[0].argmax(dim=0)


def count_pairs(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """confusion (c, c): pixels of each true (row) and predicted (column) class; IGNORED ones count for nothing."""
    known = truth != IGNORED
    pairs = truth[known].long() * classes + predicted[known]
    return pairs.bincount(minlength=classes**2).reshape(classes, classes)


def metrics(confusion: Tensor) -> dict[str, Any]:
    """Mean intersection over union, pixel accuracy, mean class accuracy, and each class's IoU, in percent.

    A class that is neither in the truth nor predicted has no IoU (None); means are over those that have one. All are
    None where no pixel is labelled.
    """
    confusion = confusion.double()
    hits, true, predicted = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
    iou, accuracy = hits / (true + predicted - hits), hits / true  # 0 / 0 is nan
    values = {"miou": iou.nanmean(), "pixel_acc": hits.sum() / confusion.sum(), "mean_acc": accuracy.nanmean()}
    percent = lambda value: None if value.isnan() else 100 * value.item()  # noqa: E731
    return {**{name: percent(value) for name, value in values.items()}, "iou": [percent(value) for value in iou]}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    scenes: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    processes: Processes,
    window: int,
    stride: int,
    batch_size: int,
    amp_dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """The metrics over the scenes of all processes: images (3, h, w), resized, and masks in their own resolution."""
    model.eval()
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=processes.device)
    for image, truth in tqdm(scenes, desc="evaluating", leave=False, disable=not processes.is_main):
        image, truth = image.to(processes.device), truth.to(processes.device)
        logits = sliding_window(model, image, window, stride, batch_size, amp_dtype)
        confusion += count_pairs(truth, predict(logits, truth.shape), classes)
    processes.sum(confusion)
    return metrics(confusion.cpu())
