"""A picture of subsets of a pool: where they lie in a map of the pool, and the chosen images themselves.

    python draw_choice.py output/features/digits_train.npy choice.png random=output/random_seed0.json \
        ActiveFT=output/ActiveFT_seed0.json

The map is a t-SNE of the features; its colours are the labels, which no choice has seen.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.manifold import TSNE

sys.path.insert(0, str(next(up for up in Path(__file__).resolve().parents if (up / "pyproject.toml").exists())))

from common.feature_file import read_features, read_image_paths

IMAGES_A_ROW = 14


def draw_choice(feature_path: Path, subsets: dict[str, Path], picture: Path) -> Path:
    """Draw one column per subset (its name and its JSON of indices): the map above, the images, by class, below.

    Returns: the path of the picture.
    """
    features, labels = read_features(feature_path)
    paths = read_image_paths(feature_path, len(features))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    where = TSNE(metric="cosine", init="pca", random_state=0).fit_transform(unit)  # (n, d) -> (n, 2)

    figure, axes = plt.subplots(
        2, len(subsets), figsize=(6.4 * len(subsets), 6.4), height_ratios=(4, 1), layout="constrained", squeeze=False
    )
    for (name, subset), (top, bottom) in zip(subsets.items(), axes.T, strict=True):
        chosen = np.array(json.loads(subset.read_text()))
        top.scatter(*where.T, c=labels, cmap="tab10", s=6, alpha=0.35, linewidths=0)
        top.scatter(*where[chosen].T, c="black", marker="*", s=90, edgecolors="white", linewidths=0.7)
        per_class = np.bincount(labels[chosen], minlength=labels.max() + 1)
        top.set_title(
            f"{name}: {len(chosen)} of {len(features)} images, {per_class.min()} to {per_class.max()} a class"
        )
        by_class = chosen[np.argsort(labels[chosen], kind="stable")]
        bottom.imshow(contact_sheet([paths[index] for index in by_class]))
        for axis in (top, bottom):
            axis.set_axis_off()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    return picture


def contact_sheet(paths: list[Path]) -> np.ndarray:
    """The images side by side, scaled to the size of the first, with a pixel of white between them."""
    first = Image.open(paths[0]).convert("RGB")
    width, height = first.width + 1, first.height + 1
    rows = -(-len(paths) // IMAGES_A_ROW)
    sheet = Image.new("RGB", (IMAGES_A_ROW * width - 1, rows * height - 1), "white")
    for position, path in enumerate(paths):
        row, column = divmod(position, IMAGES_A_ROW)
        sheet.paste(Image.open(path).convert("RGB").resize(first.size), (column * width, row * height))
    return np.asarray(sheet)


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[3:])
    print(
        f"wrote {draw_choice(Path(sys.argv[1]), {name: Path(path) for name, path in given.items()}, Path(sys.argv[2]))}"
    )
