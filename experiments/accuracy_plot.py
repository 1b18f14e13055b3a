"""The table as a picture: accuracy against budget."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

from common.files import atomic_file
from experiments.accuracy_table import READOUT_TITLES, Column
from experiments.protocols import METHODS
from experiments.significance import mean_and_std

NUDGE = 0.012  # between the error bars of two methods at one budget, as a share of it


def draw_accuracies(dataset: str, tables: dict[str, dict[float, Column]], picture: Path) -> Path:
    """One panel a readout, one line a method: mean and standard deviation over the seeds at each budget."""
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
            ours = method == "activeft"
            axis.errorbar(
                nudged,
                means,
                [std or 0 for std in stds],
                label=label,
                color="black" if ours else f"C{position}",
                linewidth=2.4 if ours else 1.2,
                elinewidth=0.8,
                marker="o",
                markersize=4,
                capsize=2,
                zorder=3 if ours else 2,
            )
        axis.set(xscale="log", xlabel="labelled images in % of the pool", title=READOUT_TITLES[readout])
        axis.set_xticks(list(columns), [f"{percent:g}" for percent in columns])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel(f"top-1 accuracy on {dataset} in %")
    axes[0, 0].legend(fontsize="small")
    with atomic_file(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
    return picture
