"""Small scenes of real digits in ADE20K's layout: several of scikit-learn's scans on one canvas, made on the fly."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = [f"digit {digit}" for digit in range(10)]
INK = 6  # of 16: from here on a pixel of a scan belongs to its digit


def write_scenes(root: Path, training: int = 12, validation: int = 4, size: tuple[int, int] = (48, 40)) -> Path:
    """Images of bright digits on a dark ground; the masks say 0 for the ground and 1..10 for the digits' strokes."""
    scans, digits = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    for split, count in (("training", training), ("validation", validation)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            canvas, mask = (np.zeros(size[::-1], np.uint8) for _ in range(2))
            for top in range(0, size[1] - 15, 20):
                for left in range(0, size[0] - 15, 20):
                    which = random.integers(len(scans))
                    scan = np.kron(scans[which].reshape(8, 8), np.ones((2, 2)))  # 16 x 16
                    canvas[top : top + 16, left : left + 16] = scan * 255 / 16
                    mask[top : top + 16, left : left + 16] = (scan >= INK) * (digits[which] + 1)
            Image.fromarray(canvas).convert("RGB").save(root / "images" / split / f"scene_{number:03d}.jpg", quality=95)
            Image.fromarray(mask).save(root / "annotations" / split / f"scene_{number:03d}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root
