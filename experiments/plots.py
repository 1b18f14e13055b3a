"""Pictures of the results: accuracy against budget, and subsets on a map of their pool."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image

from common.feature_file import read_features
from common.files import atomic_file
from common.pool_paths import read_image_paths
from common.subset_file import read_subset_ids
from experiments.protocols import METHODS, READOUTS
from experiments.table import Column, mean_and_std

NUDGE = 0.012  # between the error bars of two methods at one budget, as a share of it
IMAGES_PER_ROW = 14


def plot_accuracies(
    dataset: str, tables: dict[str, dict[float, Column]], picture: Path, score: str = "top-1 accuracy"
) -> Path:
    """One panel per readout, one line per method: mean and standard deviation over the seeds at each budget."""
    figure, axes = plt.subplots(
        1, len(tables), figsize=(5 * len(tables), 4.5), layout="constrained", squeeze=False, sharey=True
    )
    for axis, (readout, columns) in zip(axes[0], tables.items(), strict=True):
        for position, (method, label) in enumerate(METHODS.items()):
            points = [
                (percent, *mean_and_std(column[method])) for percent, column in columns.items() if method in column
            ]
            if not points:
                continue
            percents, means, stds = zip(*points, strict=True)
            nudged = [percent * (1 + NUDGE * (position - len(METHODS) / 2)) for percent in percents]
            style = {"color": f"C{position}", "linewidth": 1.2, "zorder": 2}
            if method == "activeft":
                style = {"color": "black", "linewidth": 2.4, "zorder": 3}
            bars = [std or 0 for std in stds]
            axis.errorbar(
                nudged, means, bars, label=label, elinewidth=0.8, marker="o", markersize=4, capsize=2, **style
            )
        axis.set(xscale="log", xlabel="labelled images in % of the pool", title=READOUTS[readout])
        axis.set_xticks(list(columns), [f"{percent:g}" for percent in columns])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel(f"{score} on {dataset} in %")
    axes[0, 0].legend(fontsize="small")
    return save_figure(figure, picture)


def plot_subsets(feature_path: Path, subsets: Mapping[str, Path], picture: Path) -> Path:
    """One column per subset (its name and its JSON of indices): a map of the pool above, the images, by class, below.

    The map is a t-SNE of the features; its colours are the labels, which no selection has seen.
    """
    from sklearn.manifold import TSNE

    features, labels = read_features(feature_path)  # (n, d), (n,)
    paths = read_image_paths(feature_path, len(features))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    where = TSNE(metric="cosine", init="pca", random_state=0).fit_transform(unit)  # (n, d) -> (n, 2)

    figure, axes = plt.subplots(
        2, len(subsets), figsize=(6.4 * len(subsets), 6.4), height_ratios=(4, 1), layout="constrained", squeeze=False
    )
    for (name, subset), (top, bottom) in zip(subsets.items(), axes.T, strict=True):
        chosen = np.array(read_subset_ids(subset, len(features)))
        top.scatter(*where.T, c=labels, cmap="tab10", s=6, alpha=0.35, linewidths=0)
        top.scatter(*where[chosen].T, c="black", marker="*", s=90, edgecolors="white", linewidths=0.7)
        per_class = np.bincount(labels[chosen], minlength=labels.max() + 1)
        share = f"{len(chosen)} of {len(features)} images"
        top.set_title(f"{name}: {share}, {per_class.min()} to {per_class.max()} per class")
        by_class = chosen[np.argsort(labels[chosen], kind="stable")]
        bottom.imshow(contact_sheet([paths[index] for index in by_class]))
        for axis in (top, bottom):
            axis.set_axis_off()
    return save_figure(figure, picture)


def contact_sheet(paths: list[Path]) -> np.ndarray:
    """The images side by side, scaled to the size of the first, with a pixel of white between them."""
    first = Image.open(paths[0]).convert("RGB")
    width, height = first.width + 1, first.height + 1
    rows = -(-len(paths) // IMAGES_PER_ROW)
    sheet = Image.new("RGB", (IMAGES_PER_ROW * width - 1, rows * height - 1), "white")
    for position, path in enumerate(paths):
        row, column = divmod(position, IMAGES_PER_ROW)
        sheet.paste(Image.open(path).convert("RGB").resize(first.size), (column * width, row * height))
    return np.asarray(sheet)


def save_figure(figure: Figure, picture: Path) -> Path:
    with atomic_file(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
    return picture
