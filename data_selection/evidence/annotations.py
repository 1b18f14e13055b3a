"""What is known of the images by now: which were labelled before the choice, labels, and a model's predictions."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from common.image_list import labelled_images
from common.pool_paths import read_pool_paths
from common.subset_file import is_image_list, read_labeled_ids
from data_selection.evidence.duplicates import groups_of
from data_selection.evidence.gallery import NEAREST_SHOWN, encoded, strip, thumbnail

GROUPS_SHOWN = 60


class Annotations(NamedTuple):
    """labeled: samples that had labels when the subsets were chosen. labels, predictions: of samples, in words."""

    labeled: tuple[int, ...]
    labels: dict[int, str]
    predictions: dict[int, str]


def read_annotations(args: argparse.Namespace, n: int) -> Annotations:
    """Raises InputError for what cannot be read, or is of images outside the pool."""
    given = args.labeled_ids or []
    labeled, _ = read_labeled_ids(given, args.feature_path, n) if given else ([], [])
    lists = [*filter(is_image_list, given), *(args.labels or [])]
    named = {"--labels": lists, "--predictions": [args.predictions] if args.predictions else []}
    found = {}
    for option, files in named.items():
        images = labelled_images(files, option)
        rows = read_pool_paths(args.feature_path, n).rows_of(images, option) if images else []
        found[option] = dict(zip(rows, (image.label for image in images), strict=True))
    return Annotations(tuple(labeled), found["--labels"], found["--predictions"])


def pool_duplicates(pool: Tensor, similarity: float, paths: list[Path] | None) -> dict[str, Any] | None:
    """The largest groups of near-duplicates of the whole pool, with a strip of pictures of each; None if too large."""
    groups = groups_of(pool, similarity)
    if groups is None:
        return None
    shown = [
        {
            "size": len(group),
            "ids": group[:NEAREST_SHOWN],
            "strip": encoded(strip([thumbnail(paths[index]) for index in group[:NEAREST_SHOWN]])) if paths else None,
        }
        for group in groups[:GROUPS_SHOWN]
    ]
    return {"groups": len(groups), "images": sum(map(len, groups)), "shown": shown}
