"""Images in layouts other than CIFAR's and ImageNet's: the user's own, labelled or not, and iNaturalist."""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch.utils.data import Dataset
from torchvision.datasets import INaturalist

from common.errors import InputError
from common.files import read_json
from common.image_list import check_present, labelled_images, notes_on, place_of, some
from common.images import ImageFiles, ListedImages, Loader, Transform, image_list, image_tree, open_rgb
from common.networks import input_size

DECODED_AT_LEAST = 4  # times the input size, since training crops only a part of a photo


def photo_loader(size: int) -> Loader:
    """(departure) Open photos upright, and decode large ones at a smaller size, as feature extraction does."""
    return partial(open_rgb, upright=True, at_least=DECODED_AT_LEAST * size)


def labelled_lists(
    args: argparse.Namespace, transform: Transform
) -> tuple[ListedImages, ListedImages | None, list[str]]:
    """Return the images of --labels, those of --val-labels if given, and notes on the labels.

    Raises: InputError, before any image is opened, if one is missing or in both lists, or all labels are of one class.
    """
    root = Path(args.data_path)
    loader = photo_loader(input_size(args))
    train = labelled_images(args.labels, "--labels", root)
    val = labelled_images([args.val_labels], "--val-labels", root) if args.val_labels else []
    classes = sorted({image.label for image in (*train, *val)})
    if len({image.label for image in train}) < 2:
        raise InputError(f"--labels: all {len(train)} labels are {train[0].label!r}: a classifier needs two classes")
    for option, images in (("--labels", train), ("--val-labels", val)):
        check_present((root / image.path for image in images), option)
    both = {place_of(root / image.path) for image in train}
    both = [image.path for image in val if place_of(root / image.path) in both]
    if both:
        raise InputError(f"--val-labels: {some(both)} of {len(val)} images are in --labels too")
    notes = notes_on([*train, *(image._replace(added=False) for image in val)], "--labels")
    trained = ListedImages(root, train, None, loader, classes)
    return trained, ListedImages(root, val, transform, loader, classes) if val else None, notes


def other_images(args: argparse.Namespace, labelled: Sequence[ListedImages | None]) -> ListedImages:
    """Return every image below --data-path that is in none of the lists."""
    images = image_tree(Path(args.data_path), None, photo_loader(input_size(args)))
    known = {place_of(path) for listed in labelled if listed is not None for path, _ in listed.samples}
    images.samples = [sample for sample in images.samples if place_of(sample[0]) not in known]
    return images


def unlabelled_images(args: argparse.Namespace, size: int, transform: Transform) -> tuple[Dataset, list[str], Path]:
    """Return the images that predict.py labels, their names, and the folder that the names are relative to."""
    loader, source = photo_loader(size), Path(args.data_path)
    if args.dataset == "HF" or source.suffix == ".parquet":
        from common.hf_images import HFImages  # an optional package

        images = HFImages(args.data_path, args.split, args.image_column, transform, loader)
        return images, images.names, source
    images = (image_list if source.is_file() else image_tree)(source, transform, loader)
    return images, [os.path.relpath(path, images.root) for path, _ in images.samples], images.root


def inaturalist(root: Path, year: str, split: str, category: str, transform: Transform | None = None) -> ImageFiles:
    """One split of iNaturalist 2018 or 2019 in torchvision's layout, `<root>/<year>/<super category>/<category id>/*`.

    (departure) The published code reads everything from the annotations. Here they give only the split
    (`<split><year>.json`) and, at taxonomy levels other than species and super category, names (`categories.json`).
    Raises: InputError if one of the files is missing.
    """
    try:
        listed = INaturalist(str(root), version=year, target_type="super" if category == "supercategory" else "full")
    except (OSError, RuntimeError) as error:
        raise InputError(f"iNaturalist {year} is not in {root / year} in torchvision's layout: {error}") from None
    try:
        names, class_of, in_split = classes_and_split(listed, root, year, split, category)
    except (KeyError, TypeError, IndexError) as error:
        said = f"{type(error).__name__} {error}"
        raise InputError(
            f"the JSON files in {root} are not iNaturalist's of {year}, or of another form: {said}"
        ) from None
    folders = listed.all_categories
    samples = [
        (str(Path(listed.root, folders[category_id], file)), class_of[category_id])
        for category_id, file in sorted(listed.index)  # torchvision lists files in the order of the file system
        if (*Path(folders[category_id]).parts, file) in in_split
    ]
    if not samples:
        raise InputError(f"none of the images in {root / year} is in {root}/{split}{year}.json")
    return ImageFiles(Path(listed.root), samples, names, transform, open_rgb)


def classes_and_split(
    listed: INaturalist, root: Path, year: str, split: str, category: str
) -> tuple[list[str], Sequence[int], set[tuple[str, ...]]]:
    """Return the names of the classes, the class of each category, and the paths in the split, as their last parts."""
    folders = listed.all_categories
    if category == "supercategory":
        names = list(listed.categories_index["super"])
        class_of = [listed.categories_map[category_id]["super"] for category_id in range(len(folders))]
    elif category == "name":
        names, class_of = folders, range(len(folders))
    else:
        taxonomy = read_json(root / "categories.json", "iNaturalist categories")
        value_of = {entry["id"]: entry[category] for entry in taxonomy}
        names = sorted(set(value_of.values()))
        class_of = [names.index(value_of[category_id]) for category_id in range(len(folders))]
    annotated = read_json(root / f"{split}{year}.json", f"iNaturalist {split} annotations")["images"]
    return names, class_of, {Path(image["file_name"]).parts[-3:] for image in annotated}
