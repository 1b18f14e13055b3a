"""Pictures of a run: its learning curves, and which classes it takes for which."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from torch import Tensor

from common.files import atomic_file

MOST_NAMED_CLASSES = 30


def plot_curves(log: list[dict[str, Any]], picture: Path) -> None:
    """Training loss and learning rate, and accuracy of the model and its moving average, against the epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    epochs = [entry["epoch"] for entry in log]
    left.plot(epochs, [entry["train_loss"] for entry in log], color="tab:blue")
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    rate = left.twinx()
    rate.plot(epochs, [entry["train_lr"] for entry in log], color="tab:gray", linestyle=":")
    rate.set(ylabel="learning rate (dotted)", ylim=(0, None))
    for key, name in (("test_acc1", "model"), ("test_ema_acc1", "moving average")):
        points = [(entry["epoch"], entry[key]) for entry in log if key in entry]
        if points:
            right.plot(*zip(*points, strict=True), marker=".", label=f"{name}, last {points[-1][1]:.2f}%")
    right.set(xlabel="epoch", ylabel="top-1 accuracy in %")
    right.grid(alpha=0.3)
    right.legend()
    _save(figure, picture)


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
    _save(figure, picture)


def _save(figure: plt.Figure, picture: Path) -> None:
    with atomic_file(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
