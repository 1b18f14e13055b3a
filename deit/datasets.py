"""The training and evaluation images, all checked before the work begins."""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from common.errors import InputError
from common.files import checksum, split_folder
from common.images import ImageFiles, ListedImages, Transform, cifar, class_folders, open_rgb
from common.networks import input_size, preprocessing
from common.subset_file import note_on_network, note_on_pool, read_subset_ids
from deit.augmentation import eval_transform, train_transform
from deit.image_sources import inaturalist, labelled_lists, other_images, photo_loader

MOST_NAMED_CLASSES = 8


@dataclass(frozen=True)
class FinetuningData:
    """The images to train and to evaluate on.

    train: PIL images and labels; for a ...SUBSET, the chosen ones. unlabelled: other images of the pool in the same
    form, whose labels are never used; empty without --unlabelled. val: the whole test or val split, images as bytes
    (3, h, w); None for a CSV without --val-labels. eval_transform: the transform of val. classes: all class names.
    identity: a description of the images, compared when a run is resumed. notes: messages for the user.
    """

    train: Dataset
    val: Dataset | None
    eval_transform: Transform
    classes: list[str]
    identity: dict[str, str]
    notes: Sequence[str] = ()
    unlabelled: Dataset | Sequence = ()

    @property
    def repeats(self) -> int:
        """Repeats of each labelled image per epoch, so that one in three images is labelled."""
        return max(1, round(len(self.unlabelled) / (2 * len(self.train))))

    @property
    def images_per_epoch(self) -> int:
        return self.repeats * len(self.train) + len(self.unlabelled)

    def as_evaluated(self, images: Dataset) -> Dataset:
        """Return images of `train` or `unlabelled` without augmentation, transformed like `val`."""
        return Transformed(images, self.eval_transform)

    def with_soft_targets(self, images: Dataset, soft_labels: Tensor, smoothing: float) -> Dataset:
        """Return an epoch's images with probabilities as targets: `train`, `repeats` times, then `unlabelled`.

        images: those of `train`, then those of `unlabelled`, each once. soft_labels: (m, c), for the latter.
        """
        n, m, classes = len(self.train), *soft_labels.shape
        labelled = torch.full((n, classes), smoothing / classes)
        labelled[range(n), labels_of(self.train)] += 1 - smoothing
        epoch = [*range(n)] * self.repeats + [*range(n, n + m)]
        return Subset(WithTargets(images, torch.cat([labelled, soft_labels])), epoch)

    def classes_without_images(self) -> str:
        """Return a note on the classes that have no image to train on, or an empty string."""
        trained, evaluated = set(labels_of(self.train)), Counter(labels_of(self.val) if self.val is not None else ())
        names = [name for label, name in enumerate(self.classes) if label not in trained]
        errors = sum(count for label, count in evaluated.items() if label not in trained)
        if not names:
            return ""
        listed = ", ".join(names[:MOST_NAMED_CLASSES]) + ", ..." * (len(names) > MOST_NAMED_CLASSES)
        return (
            f"{len(names)} of {len(self.classes)} classes have no image to train on ({listed}): "
            f"their {errors} evaluation images count as errors"
        )


class Transformed(Dataset):
    """The same images, passed through a transform."""

    def __init__(self, images: Dataset, transform: Transform):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.images[index]
        return self.transform(image), label


class WithTargets(Dataset):
    """The same images with other targets."""

    def __init__(self, images: Dataset, targets: Tensor):
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return self.images[index][0], self.targets[index]


def build_datasets(args: argparse.Namespace) -> FinetuningData:
    """Build and check the data sets. Raises InputError if anything is missing or does not fit."""
    name = args.data_set.removesuffix("SUBSET")
    root = Path(args.data_path)
    size = input_size(args)
    transform, notes, others = eval_transform(size), [], ()
    if name.startswith("CIFAR"):
        train, val = cifar(name, root, train=True), cifar(name, root, train=False, transform=transform)
    elif name in ("IMNET", "FOLDER"):
        if name == "IMNET" and not (root / "train").is_dir():
            root = root / "ImageNet"  # where feature extraction looks for it
        loader = open_rgb if name == "IMNET" else photo_loader(size)
        train = class_folders(split_folder(root, train=True), None, loader)
        val = class_folders(split_folder(root, train=False), transform, loader)
        share_classes(train, val)
    elif name == "CSV":
        train, val, notes = labelled_lists(args, transform)
        others = other_images(args, (train, val)) if args.unlabelled else ()
    else:
        year = {"INAT": "2018", "INAT19": "2019"}[name]
        train = inaturalist(root, year, "train", args.inat_category)
        val = inaturalist(root, year, "val", args.inat_category, transform)
    classes = list(train.classes)
    identity = {"train_images": describe_images(train)}
    if val is not None:
        identity["val_images"] = describe_images(val)
    if args.data_set.endswith("SUBSET"):
        subsets = {path: read_subset_ids(path, len(train)) for path in args.subset_ids}
        files = isinstance(train, ImageFiles)
        pool = {"names": [path for path, _ in train.samples]} if files else {"labels": train.targets}
        notes += filter(None, (note_on_pool(path, ids, len(train), **pool) for path, ids in subsets.items()))
        prepared = preprocessing(args.model, args.input_size, args.model_kwargs)
        here = {"input_size": prepared.input_size, "mean": list(prepared.mean), "std": list(prepared.std)}
        notes += filter(None, (note_on_network(path, here) for path in subsets))
        listed = {index: None for ids in subsets.values() for index in ids}
        others = Subset(train, [index for index in range(len(train)) if index not in listed]) if args.unlabelled else ()
        train = Subset(train, list(listed))
        identity["subset"] = f"{len(listed)} images, checksum {checksum(str(index).encode() for index in listed)}"
    if args.unlabelled and not len(others):
        notes.append("the pool has no unlabelled images: --unlabelled has no effect")
    elif args.unlabelled:
        drawn = np.random.default_rng(args.seed).permutation(len(others))[: args.unlabelled]
        others = Subset(others, sorted(drawn.tolist()))
        identity["unlabelled_images"] = describe_images(others)
    # Images that cannot be read or have the wrong size raise here, before the work begins.
    train_transform(args)(train[0][0])
    if val is not None:
        val[0]
    return FinetuningData(train, val, transform, classes, identity, notes, others)


def share_classes(train: ImageFiles, val: ImageFiles) -> None:
    """Number the labels of both splits by the union of their classes; a class may be in only one split.

    Raises: InputError if the splits have no class in common.
    """
    if not set(train.classes) & set(val.classes):
        raise InputError(f"{train.root} and {val.root} have no class folder in common: {train.classes[0]}, say")
    classes = sorted({*train.classes, *val.classes})
    number = {name: label for label, name in enumerate(classes)}
    for split in (train, val):
        split.samples = [(path, number[split.classes[label]]) for path, label in split.samples]
        split.classes = classes


def labels_of(images: Dataset) -> list[int]:
    """Return the label of each image, without opening the image."""
    if isinstance(images, Subset):
        labels = labels_of(images.dataset)
        return [labels[index] for index in images.indices]
    return [label for _, label in images.samples] if isinstance(images, ImageFiles) else images.targets


def describe_images(images: Dataset) -> str:
    """Identify the images by number and, for files or a Subset, a checksum (of relative paths, else of indices)."""
    if isinstance(images, Subset):
        files = isinstance(images.dataset, ListedImages)
        names = (
            os.path.relpath(images.dataset.samples[row][0], images.dataset.root) if files else str(row)
            for row in images.indices
        )
    elif isinstance(images, ListedImages):  # the user may correct labels, so they count
        names = (f"{path.removeprefix(str(images.root))} {images.classes[label]}" for path, label in images.samples)
    elif isinstance(images, ImageFiles):
        names = (path[len(str(images.root)) :] for path, _ in images.samples)
    else:
        return f"{len(images)} images"
    return f"{len(images)} images, checksum {checksum(map(os.fsencode, names))}"
