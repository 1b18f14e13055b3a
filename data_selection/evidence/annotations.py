"""Read what is known about the images by now: those labelled before the choice, labels, predictions, and masks."""

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.cpus import usable_processors
from common.image_list import labelled_images
from common.pool_paths import read_pool_paths
from common.progress import progress_bar
from common.scenes import mask_labels, mask_of
from common.subset_file import is_image_list, read_labeled_ids
from data_selection.evidence.measures import PixelClasses

DEEP_ENOUGH = 3  # folders above an image in ADE20K's layout


class Annotations(NamedTuple):
    """labeled: samples that had labels when the subsets were chosen. labels, predictions: by sample, in words."""

    labeled: tuple[int, ...]
    labels: dict[int, str]
    predictions: dict[int, str]


def read_annotations(args: argparse.Namespace, n: int) -> Annotations:
    """Read the annotations. Raises InputError if a file cannot be read, or names images outside the pool."""
    given = args.labeled_ids or []
    labeled, _ = read_labeled_ids(given, args.feature_path, n)
    lists = [*filter(is_image_list, given), *(args.labels or [])]
    named = {"--labels": lists, "--predictions": [] if args.predictions is None else [args.predictions]}
    found = {}
    for option, files in named.items():
        images = labelled_images(files, option)
        rows = read_pool_paths(args.feature_path, n).indices_of(images, option) if images else []
        found[option] = dict(zip(rows, (image.label for image in images), strict=True))
    return Annotations(tuple(labeled), found["--labels"], found["--predictions"])


def read_pixel_classes(paths: Sequence[Path] | None, args: argparse.Namespace) -> PixelClasses | None:
    """Read the mask of every image. Unless all have one, return None, with a message if some have.

    Raises: InputError if a mask cannot be used (common.scenes.MaskLabels.read).
    """
    masks = [mask_of(path) for path in paths or () if len(path.parents) > DEEP_ENOUGH]
    known = sum(mask.is_file() for mask in masks)
    if not known or known < len(paths):
        if known:
            print(f"{len(paths) - known} of {len(paths)} images have no mask: the report says nothing about pixels")
        return None
    labels = mask_labels(args, masks[0].parents[2])
    with ThreadPoolExecutor(usable_processors()) as pool:
        counted = pool.map(lambda mask: labels.count(labels.read(mask)), masks)
        counts = np.stack([*progress_bar(counted, "reading masks", len(masks), leave=False)])
    return PixelClasses(labels.classes, counts)
