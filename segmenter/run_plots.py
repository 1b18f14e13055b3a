"""Pictures of a run: its curves, and predictions beside the truth."""

import colorsys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Patch
from PIL import Image
from torch import nn

from common.files import atomic_file
from common.images import open_rgb
from common.run_plots import plot_curves, save_figure
from common.scenes import IGNORED
from segmenter.evaluation import SlidingWindow
from segmenter.segmentation_data import Scenes

GOLDEN_RATIO = 0.618034
STRENGTH = 0.6  # of the colours over the image
MOST_NAMED_CLASSES = 30
ROWS = 4  # of scenes in a picture


def palette(classes: int) -> np.ndarray:
    """A colour for each class (c, 3), bytes: hues that stay far apart however many there are."""
    shades = [(1.0, 0.95), (0.6, 0.95), (1.0, 0.6)]
    colours = [colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, *shades[index % 3]) for index in range(classes)]
    return np.round(255 * np.array(colours)).astype(np.uint8)


def overlay(image: np.ndarray, mask: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The image (h, w, 3), bytes, with each pixel tinted in the colour of its class; IGNORED ones stay."""
    tinted = (1 - STRENGTH) * image + STRENGTH * colours[mask]
    return np.where((mask == IGNORED)[..., None], image, tinted).astype(np.uint8)


@torch.inference_mode()
def plot_predictions(
    model: nn.Module, window: SlidingWindow, scenes: Scenes, device: torch.device, picture: Path
) -> None:
    """A few scenes, a row each: the image, its true and its predicted classes, and a legend of those that are seen."""
    model.eval()
    shown = [len(scenes) * row // min(ROWS, len(scenes)) for row in range(min(ROWS, len(scenes)))]
    colours = palette(len(scenes.labels.classes))
    figure, axes = plt.subplots(len(shown), 3, figsize=(12, 3 * len(shown) + 1), layout="constrained", squeeze=False)
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
    figure.legend(handles=patches, loc="outside lower center", ncols=min(6, len(patches)))
    save_figure(figure, picture)


def plot_segmentation_curves(log: list[dict[str, Any]], picture: Path) -> None:
    plot_curves(log, picture, "iteration", {"test_miou": "model"}, "mean IoU in %")


def save_mask(values: np.ndarray, colours: np.ndarray, first: int, path: Path) -> None:
    """A label image: one channel, the labels themselves; of 8 bits with a palette, so that viewers show the colours.

    first: the label of the first class.
    """
    image = Image.fromarray(values)
    if values.dtype == np.uint8:
        image.putpalette(np.concatenate([np.zeros((first, 3), np.uint8), colours]).tobytes())
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")
