"""What a pool's masks show of it, where it has them: how many pixels of each class are in every image."""

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.command_line import worker_count
from common.progress import progress_bar
from common.scenes import mask_labels, mask_of
from data_selection.evidence.measures import Values, total_variation

DEEP_ENOUGH = 3  # folders above an image in ADE20K's layout


class PixelClasses(NamedTuple):
    """names (c,) of the classes, and the labelled pixels of each in every image of the pool (n, c)."""

    names: tuple[str, ...]
    counts: np.ndarray

    def shares(self, ids: Sequence[int] | None = None) -> np.ndarray:
        """Of the labelled pixels of some images, or of the whole pool: each class's share (c,). 0 without any."""
        pixels = self.counts.sum(axis=0) if ids is None else self.counts[list(ids)].sum(axis=0)
        return pixels / max(1, pixels.sum())

    def balance(self, ids: Sequence[int]) -> Values:
        """How many classes of the pool have no pixel in a subset, and the total variation distance to the pool's."""
        chosen, pool = self.shares(ids), self.shares()
        missing = int(((chosen == 0) & (pool > 0)).sum())
        return {"pixel_classes_missing": missing, "pixel_distance": total_variation(chosen, pool)}


def read_pixel_classes(paths: Sequence[Path] | None, args: argparse.Namespace) -> PixelClasses | None:
    """Read the mask of every image; None, said where some are there, unless all have one.

    Raises: InputError for a mask that cannot be used (common.scenes.MaskLabels.read).
    """
    masks = [mask_of(path) for path in paths or () if len(path.parents) > DEEP_ENOUGH]
    known = sum(mask.is_file() for mask in masks)
    if not known or known < len(paths):
        if known:
            print(f"{len(paths) - known} of {len(paths)} images have no mask: the report says nothing about pixels")
        return None
    labels = mask_labels(args, masks[0].parents[2])

    with ThreadPoolExecutor(worker_count(os.cpu_count() or 1)) as pool:
        counted = list(
            progress_bar(
                pool.map(lambda mask: labels.count(labels.read(mask)), masks), "reading masks", len(masks), leave=False
            )
        )
    return PixelClasses(labels.classes, np.stack(counted))
