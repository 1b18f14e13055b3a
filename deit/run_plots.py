"""Pictures of a run: its learning curves, and which classes it takes for which."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from torch import Tensor

from common.run_plots import plot_curves, save_figure

MOST_NAMED_CLASSES = 30


def plot_finetuning_curves(log: list[dict[str, Any]], picture: Path) -> None:
    plot_curves(log, picture, "epoch", {"test_acc1": "model", "test_ema_acc1": "moving average"}, "top-1 accuracy in %")


def plot_confusion_matrix(confusion: Tensor, classes: list[str], picture: Path) -> None:
    """confusion (c, c): images of each true (row) and predicted (column) class, drawn as shares of the true class."""
    shares = (confusion / confusion.sum(dim=1, keepdim=True).clamp_min(1)).numpy()
    side = min(14, 3 + 0.35 * len(classes))
    figure, axis = plt.subplots(figsize=(side + 1, side), layout="constrained")
    figure.colorbar(axis.imshow(shares, vmin=0, vmax=1, cmap="Blues"), label="share of the true class")
    axis.set(xlabel="predicted", ylabel="true")
    if len(classes) <= MOST_NAMED_CLASSES:
        axis.set_xticks(range(len(classes)), classes, rotation=90)
        axis.set_yticks(range(len(classes)), classes)
    save_figure(figure, picture)
