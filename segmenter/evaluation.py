"""Segmenter's evaluation: a sliding window over each image, one confusion matrix for all; pictures of predictions."""

import colorsys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors

from common.errors import InputError
from common.files import atomic_file
from common.images import ImageFiles, open_rgb
from common.processes import Processes, autocast
from common.progress import progress_bar
from common.run_folder import MOST_NAMED_CLASSES, save_figure
from common.scenes import IGNORED, MaskLabels
from segmenter.datasets import Scenes

GOLDEN_RATIO = 0.618034
STRENGTH = 0.6  # weight of the colours over the image
ROWS = 4  # scenes per picture


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows start along a side: every `stride` pixels, the last moved inside. There is at least one."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]


@dataclass(frozen=True)
class SlidingWindow:
    """Prediction of whole images: windows of `size` pixels per side, `stride` apart, `batch_size` in one pass."""

    size: int
    stride: int
    batch_size: int
    amp_dtype: torch.dtype | None = None

    def logits(self, model: nn.Module, image: Tensor) -> Tensor:
        """Image (3, h, w), on the model's device -> logits (c, h, w), the mean of all windows that cover a pixel."""
        height, width = image.shape[-2:]
        corners = [
            (slice(top, top + self.size), slice(left, left + self.size))
            for top in window_starts(height, self.size, self.stride)
            for left in window_starts(width, self.size, self.stride)
        ]
        total, count = None, torch.zeros(height, width, device=image.device)
        for start in range(0, len(corners), self.batch_size):
            some = corners[start : start + self.batch_size]
            with autocast(image.device, self.amp_dtype):
                parts = model(torch.stack([image[:, rows, columns] for rows, columns in some])).float()
            if total is None:
                total = torch.zeros(parts.shape[1], height, width, device=image.device)
            for (rows, columns), part in zip(some, parts, strict=True):
                total[:, rows, columns] += part
                count[rows, columns] += 1
        return total / count

    def predict(self, model: nn.Module, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the class of every pixel at the original `size`, to which the logits are interpolated."""
        return F.interpolate(self.logits(model, image)[None], size=size, mode="bilinear")[0].argmax(dim=0)


def count_pairs(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Count the pixels of each true (row) and predicted (column) class, (c, c); IGNORED ones are left out."""
    known = truth != IGNORED
    pairs = truth[known].long() * classes + predicted[known]
    return pairs.bincount(minlength=classes**2).reshape(classes, classes)


def metrics(confusion: Tensor) -> dict[str, Any]:
    """Return mean intersection over union, pixel accuracy, mean class accuracy, and each class's IoU, in percent.

    The IoU of a class that is neither in the truth nor predicted is None; means are over the defined values. All are
    None if no pixel is labelled.
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
    batches: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    processes: Processes,
    window: SlidingWindow,
) -> dict[str, Any]:
    """Return the metrics over the scenes of all processes.

    batches: this process's scenes, one each: a resized image (1, 3, h, w) and its mask (1, H, W) in original size.
    """
    model.eval()
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=processes.device)
    for images, masks in progress_bar(batches, desc="evaluating", leave=False, disable=not processes.is_main):
        image, truth = images[0].to(processes.device), masks[0].to(processes.device)
        confusion += count_pairs(truth, window.predict(model, image, truth.shape), classes)
    processes.sum(confusion)
    return metrics(confusion.cpu())


def palette(classes: int) -> np.ndarray:
    """Return a colour for each class (c, 3), bytes: hues that stay far apart however many classes there are."""
    shades = [(1.0, 0.95), (0.6, 0.95), (1.0, 0.6)]
    colours = [colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, *shades[index % 3]) for index in range(classes)]
    return np.round(255 * np.array(colours)).astype(np.uint8)


def overlay(image: np.ndarray, mask: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Tint each pixel of the image (h, w, 3), bytes, in the colour of its class; IGNORED ones stay as they are."""
    tinted = (1 - STRENGTH) * image + STRENGTH * colours[mask]
    return np.where((mask == IGNORED)[..., None], image, tinted).astype(np.uint8)


@torch.inference_mode()
def plot_predictions(
    model: nn.Module, window: SlidingWindow, scenes: Scenes, device: torch.device, picture: Path
) -> None:
    """Plot a few scenes, one per row: image, true and predicted classes; with a legend of the classes that occur."""
    from matplotlib.figure import Figure  # slow to load
    from matplotlib.patches import Patch

    model.eval()
    shown = [len(scenes) * row // min(ROWS, len(scenes)) for row in range(min(ROWS, len(scenes)))]
    colours = palette(len(scenes.labels.classes))
    figure = Figure(figsize=(12, 3 * len(shown) + 1), layout="constrained")
    axes = figure.subplots(len(shown), 3, squeeze=False)
    seen: set[int] = set()
    for row, index in zip(axes, shown, strict=True):
        resized, mask = scenes[index]
        image, truth = np.asarray(open_rgb(scenes.paths[index])), mask.numpy()
        predicted = window.predict(model, resized.to(device), truth.shape).cpu().numpy()
        views = {"image": image} | {
            title: overlay(image, classes, colours) for title, classes in (("truth", truth), ("prediction", predicted))
        }
        for axis, (title, view) in zip(row, views.items(), strict=True):
            axis.imshow(view)
            axis.set_axis_off()
            if index == shown[0]:
                axis.set_title(title)
        seen |= set(np.unique(np.concatenate([truth.ravel(), predicted.ravel()])).tolist()) - {IGNORED}
    named = sorted(seen)[:MOST_NAMED_CLASSES]
    patches = [Patch(color=colours[index] / 255, label=scenes.labels.classes[index]) for index in named]
    legend = figure.legend(handles=patches, loc="outside lower center", ncols=min(6, len(patches)))
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name is not a formula
    save_figure(figure, picture)


@torch.inference_mode()
def write_labels(
    model: nn.Module,
    window: SlidingWindow,
    images: ImageFiles,
    resize: Callable[[Tensor], Tensor],
    labels: MaskLabels,
    folder: Path,
) -> list[str]:
    """Write <folder>/labels/<name>.png for each image, and <folder>/overlays/<name>.png, the image tinted by label.

    Returns: for each image that cannot be used, and so gets no labels, the reason.
    """
    device, colours = next(model.parameters()).device, palette(len(labels.classes))
    by_label = np.concatenate([np.zeros((int(labels.reduce_zero_label), 3), np.uint8), colours]).tobytes()
    unreadable = []
    for row, (path, _) in enumerate(progress_bar(images.samples, desc="labelling", unit="img")):
        try:
            image = np.array(images[row][0])  # (h, w, 3)
        except InputError as error:
            unreadable.append(str(error))
            continue
        pixels = resize(tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)))
        classes = window.predict(model, pixels.to(device), image.shape[:2]).cpu().numpy()
        mask = Image.fromarray(labels.values(classes))
        if mask.mode == "L":  # 8 bits: add a palette, so that viewers show colours
            mask.putpalette(by_label)
        for kind, picture in (("labels", mask), ("overlays", Image.fromarray(overlay(image, classes, colours)))):
            with atomic_file(folder / kind / f"{Path(path).stem}.png") as temporary:
                picture.save(temporary, format="PNG")
    return unreadable
