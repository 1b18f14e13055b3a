"""Images that lie otherwise than CIFAR's and ImageNet's: a user's own, labelled or to be labelled, and iNaturalist."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset
from torchvision.datasets import INaturalist

from common.errors import InputError
from common.files import read_json
from common.image_list import check_present, labelled_images, notes_on, some
from common.images import ListedImages, Transform, image_list, image_tree, open_rgb
from common.networks import input_size

DECODED_AT_LEAST = 4  # times the input size, of a photo of which a part is cropped


def labelled_lists(
    args: argparse.Namespace, transform: Transform
) -> tuple[ListedImages, ListedImages | None, list[str]]:
    """The images of --labels, those of --val-labels if any, and notes on the labels.

    (departure) Own photos are turned upright, and large ones decoded at a smaller size, as in the extraction.
    Raises: InputError, before any is opened, where an image is not there, or all are of one class.
    """
    root = Path(args.data_path)
    loader = partial(open_rgb, upright=True, at_least=DECODED_AT_LEAST * input_size(args))
    train = labelled_images(args.labels, "--labels")
    val = labelled_images([args.val_labels], "--val-labels") if args.val_labels else []
    classes = sorted({image.label for image in (*train, *val)})
    if len({image.label for image in train}) < 2:
        raise InputError(f"--labels: all {len(train)} labels are {train[0].label!r}: a classifier needs two classes")
    for option, images in (("--labels", train), ("--val-labels", val)):
        check_present((root / image.path for image in images), option)
    both = {image.path for image in train} & {image.path for image in val}
    if both:
        raise InputError(f"--val-labels: {some(sorted(both))} of {len(val)} images are in --labels too")
    notes = notes_on([*train, *(image._replace(added=False) for image in val)], "--labels")
    trained = ListedImages(root, train, None, loader, classes)
    return trained, ListedImages(root, val, transform, loader, classes) if val else None, notes


def other_images(args: argparse.Namespace, labelled: Sequence[ListedImages | None]) -> ListedImages:
    """Every image below --data-path that is in none of the lists."""
    loader = partial(open_rgb, upright=True, at_least=DECODED_AT_LEAST * input_size(args))
    images = image_tree(Path(args.data_path), None, loader)
    known = {path for listed in labelled if listed is not None for path, _ in listed.samples}
    images.samples = [sample for sample in images.samples if sample[0] not in known]
    return images


def unlabelled_images(args: argparse.Namespace, size: int, transform: Transform) -> tuple[Dataset, list[str], Path]:
    """What predict.py labels: the images, what each is called, and the folder that these names are relative to."""
    loader = partial(open_rgb, upright=True, at_least=DECODED_AT_LEAST * size)
    source = Path(args.data_path)
    if args.dataset == "HF" or source.suffix == ".parquet":
        from common.hf_images import HFImages  # an optional package

        images = HFImages(args.data_path, args.split, args.image_column, transform, loader)
        return images, images.names, source
    images = (image_list if source.is_file() else image_tree)(source, transform, loader)
    return images, [path[len(str(images.root)) + 1 :] for path, _ in images.samples], images.root


class NaturalImages(INaturalist):
    """Reads images as everywhere here; torchvision has an option for that only from 0.22 on."""

    def __getitem__(self, row: int) -> tuple[Any, int]:
        category, file = self.index[row]
        image = open_rgb(Path(self.root, self.all_categories[category], file))
        level = self.target_type[0]
        label = category if level == "full" else self.categories_map[category][level]
        return (
            self.transform(image) if self.transform else image,
            self.target_transform(label) if self.target_transform else label,
        )


def inaturalist(
    root: Path, year: str, split: str, category: str, transform: Transform | None
) -> tuple[Dataset, list[str]]:
    """iNaturalist 2018 or 2019 in torchvision's layout, `<root>/<year>/<super category>/<category id>/*`.

    (departure) The published code reads the annotations for everything; here they tell the split (`<split><year>.json`)
    and, for levels of the taxonomy between species and super category, the names (`categories.json`).
    Returns: the split and the names of its classes. Raises: InputError when one of the files is missing.
    """
    target = "super" if category == "supercategory" else "full"
    try:
        dataset = NaturalImages(str(root), version=year, target_type=target, transform=transform)
    except (OSError, RuntimeError) as error:
        raise InputError(f"iNaturalist {year} is not in {root / year} in torchvision's layout: {error}") from None
    dataset.index.sort()  # torchvision lists files in the order of the file system
    names = list(dataset.categories_index["super"]) if target == "super" else dataset.all_categories
    if category not in ("name", "supercategory"):
        taxonomy = read_json(root / "categories.json", "iNaturalist categories")
        listed = {entry["id"]: entry[category] for entry in taxonomy}
        names = sorted(set(listed.values()))
        class_of = [names.index(listed[category_id]) for category_id in range(len(dataset.all_categories))]
        dataset.target_transform = class_of.__getitem__
    annotated = read_json(root / f"{split}{year}.json", f"iNaturalist {split} annotations")["images"]
    in_split = {Path(image["file_name"]).parts[-3:] for image in annotated}
    rows = [
        row
        for row, (category_id, file) in enumerate(dataset.index)
        if (*Path(dataset.all_categories[category_id]).parts, file) in in_split
    ]
    if not rows:
        raise InputError(f"none of the images in {root / year} is in {root}/{split}{year}.json")
    return Subset(dataset, rows), names
