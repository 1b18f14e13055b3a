"""Pictures of the results: accuracy against budget, and subsets on a map of their pool."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image

from common.feature_file import read_features
from common.pool_paths import read_pool_paths
from common.run_folder import save_figure
from common.subset_file import read_subset_ids
from experiments.protocols import METHODS, READOUTS, Protocol
from experiments.significance import Column, mean_and_std

NUDGE = 0.012  # shift between the error bars of successive methods, as a share of the budget
MARKERS = "os^vD<>PXdp"
IMAGES_PER_ROW = 14


def plot_accuracies(protocol: Protocol, tables: dict[str, dict[float, Column]], picture: Path) -> Path:
    """Plot one panel per readout, one line per method: mean and standard deviation over the seeds at each budget."""
    rows = 1 if len(tables) < 4 else 2
    per_row = -(-len(tables) // rows)
    figure = Figure(figsize=(5 * per_row + 1.2, 4.5 * rows), layout="constrained")
    axes = figure.subplots(rows, per_row, squeeze=False, sharey=True)
    lines = {}
    for axis, (readout, columns) in zip(axes.flat, tables.items(), strict=False):
        for position, (method, label) in enumerate(METHODS.items()):
            points = [(budget, *mean_and_std(column[method])) for budget, column in columns.items() if method in column]
            if not points:
                continue
            budgets, means, stds = zip(*points, strict=True)
            nudged = [budget * (1 + NUDGE * (position - len(METHODS) / 2)) for budget in budgets]
            style = {"color": f"C{position}", "linewidth": 1.2, "zorder": 2}
            if method == "activeft":
                style = {"color": "black", "linewidth": 2.4, "zorder": 3}
            style |= {"marker": MARKERS[position % len(MARKERS)], "markersize": 5, "capsize": 2, "elinewidth": 0.8}
            lines[label] = axis.errorbar(nudged, means, [std or 0 for std in stds], **style)
        counted = "labelled images" if protocol.numbers else "labelled images in % of the pool"
        axis.set(xscale="log", xlabel=counted, title=READOUTS[readout])
        axis.set_xticks(list(columns), [f"{budget:,}" if protocol.numbers else f"{budget:g}" for budget in columns])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(tables) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel(f"{protocol.score} on {protocol.pool} in %")
    figure.legend([*lines.values()], [*lines], loc="outside right center")
    save_figure(figure, picture)
    return picture


def plot_subsets(feature_path: Path, subsets: Mapping[str, Path], picture: Path) -> Path:
    """Draw one column per subset ({name: JSON of indices}): a map of the pool above, the images by class below.

    The map is a t-SNE of the features; its colours are the labels, which no selection has seen.
    """
    from sklearn.manifold import TSNE

    features, labels = read_features(feature_path)  # (n, d), (n,)
    paths = read_pool_paths(feature_path, len(features)).files()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    where = TSNE(metric="cosine", init="pca", random_state=0).fit_transform(unit)  # (n, d) -> (n, 2)

    figure = Figure(figsize=(6.4 * len(subsets), 6.4), layout="constrained")
    axes = figure.subplots(2, len(subsets), squeeze=False, height_ratios=(4, 1))
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
    save_figure(figure, picture)
    return picture


def contact_sheet(paths: list[Path]) -> np.ndarray:
    """Tile the images, scaled to the size of the first, with one white pixel between them."""
    from torchvision.transforms.functional import to_tensor  # seconds to load
    from torchvision.utils import make_grid

    images = [Image.open(path).convert("RGB") for path in paths]
    pixels = [to_tensor(image.resize(images[0].size)) for image in images]  # each (3, height, width), in 0..1
    return make_grid(pixels, IMAGES_PER_ROW, padding=1, pad_value=1).permute(1, 2, 0).numpy()
