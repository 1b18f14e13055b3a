"""The images to finetune on and to evaluate on, with the published recipe's transforms."""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.transforms as T
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import MaybeToTensor
from torch.utils.data import Dataset, Subset
from torchvision.datasets import INaturalist
from torchvision.transforms import InterpolationMode

from common.errors import InputError
from common.files import checksum, split_folder
from common.images import ClassFolders, ImageFiles, ListedImages, Transform, cifar, class_folders
from common.networks import input_size, preprocessing
from common.subset_file import note_on_network, note_on_pool, read_subset_ids
from deit.image_sources import inaturalist, labelled_lists, other_images

SMALL_IMAGE = 32  # up to this size images are neither resized nor cropped at random scale
EVAL_RESIZE = 256 / 224
MOST_NAMED_CLASSES = 8


@dataclass(frozen=True)
class FinetuningData:
    """What to train and to evaluate on.

    train: PIL images and labels; of a ...SUBSET, the chosen ones. train_as_evaluated: the same, transformed like `val`.
    val: the whole test or val split, images as bytes (3, h, w); None for a CSV alone. classes: the names of all.
    identity: which images these are, in words that are compared when a run is resumed. notes: what users should know.
    unlabelled: other images of the pool, prepared like `train`, whose labels are not looked at; and as evaluated.
    """

    train: Dataset
    train_as_evaluated: Dataset
    val: Dataset | None
    classes: list[str]
    identity: dict[str, str]
    notes: Sequence[str] = ()
    unlabelled: Dataset | None = None
    unlabelled_as_evaluated: Dataset | None = None

    @property
    def repeats(self) -> int:
        """How often an epoch has each labelled image, so that one in three images is labelled."""
        return max(1, round(len(self.unlabelled) / (2 * len(self.train)))) if self.unlabelled is not None else 1

    @property
    def images_per_epoch(self) -> int:
        return self.repeats * len(self.train) + (len(self.unlabelled) if self.unlabelled is not None else 0)

    def classes_without_images(self) -> str:
        """Says which classes have no image to train on, if any."""
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
    """The same images through a transform."""

    def __init__(self, images: Dataset, transform: Transform):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.images[index]
        return self.transform(image), label


class ImageOnly:
    """A transform of images, for pairs of an image and its label."""

    def __init__(self, transform: Transform):
        self.transform = transform

    def __call__(self, image: Image.Image, label: int) -> tuple[Any, int]:
        return self.transform(image), label


def build_datasets(args: argparse.Namespace) -> FinetuningData:
    """Raises InputError for anything that is missing or does not fit."""
    name = args.data_set.removesuffix("SUBSET")
    root = Path(args.data_path)
    transforms, notes, others = {True: None, False: eval_transform(input_size(args))}, [], None
    if name.startswith("CIFAR"):
        train, val = (cifar(name, root, is_train, transforms[is_train]) for is_train in (True, False))
        classes = train.classes
    elif name == "IMNET":
        # Either the layout itself, or the folder that feature extraction looks for it in.
        root = root if (root / "train").is_dir() else root / "ImageNet"
        train, val = (class_folders(split_folder(root, is_train), transforms[is_train]) for is_train in (True, False))
        classes = share_classes(train, val)
    elif name == "CSV":
        train, val, notes = labelled_lists(args, transforms[False])
        others = other_images(args, (train, val)) if args.unlabelled else None
        classes = train.classes
    else:
        year = {"INAT": "2018", "INAT19": "2019"}[name]
        train, classes = inaturalist(root, year, "train", args.inat_category, None)
        val, _ = inaturalist(root, year, "val", args.inat_category, transforms[False])
    identity = {"train_images": describe_images(train)}
    if val is not None:
        identity["val_images"] = describe_images(val)
    if args.data_set.endswith("SUBSET"):
        subsets = {path: read_subset_ids(path, len(train)) for path in args.subset_ids}
        names = [path for path, _ in train.samples] if isinstance(train, ClassFolders) else []
        notes += filter(None, (note_on_pool(path, ids, len(train), names) for path, ids in subsets.items()))
        prepared = preprocessing(args.model, args.input_size, args.model_kwargs)
        here = {"input_size": prepared.input_size, "mean": list(prepared.mean), "std": list(prepared.std)}
        notes += filter(None, (note_on_network(path, here) for path in subsets))
        listed = {index: None for ids in subsets.values() for index in ids}
        others = Subset(train, [index for index in range(len(train)) if index not in listed])
        train = Subset(train, list(listed))
        identity["subset"] = f"{len(listed)} images, checksum {checksum(str(index).encode() for index in listed)}"
    if args.unlabelled:
        drawn = np.random.default_rng(args.seed).permutation(len(others or ()))[: args.unlabelled]
        others = Subset(others, sorted(drawn.tolist())) if len(drawn) else None
        if others is None:
            notes.append("the pool has no images beside the labelled ones: --unlabelled has no effect")
        else:
            identity["unlabelled_images"] = describe_images(others)
    # What cannot be read or has the wrong size shows before the work begins.
    train_transform(args)(train[0][0])
    if val is not None:
        val[0]
    others = others if args.unlabelled else None
    train_as_evaluated, others_as_evaluated = (
        Transformed(images, transforms[False]) if images is not None else None for images in (train, others)
    )
    return FinetuningData(train, train_as_evaluated, val, list(classes), identity, notes, others, others_as_evaluated)


def share_classes(train: ClassFolders, val: ClassFolders) -> list[str]:
    """Number the labels of both splits by the classes of both: a class that only one of them has is a class.

    Returns: their names. Raises: InputError when the splits have no class in common.
    """
    if not set(train.classes) & set(val.classes):
        raise InputError(f"{train.root} and {val.root} have no class folder in common: {train.classes[0]}, say")
    classes = sorted({*train.classes, *val.classes})
    number = {name: label for label, name in enumerate(classes)}
    for split in (train, val):
        split.samples = [(path, number[split.classes[label]]) for path, label in split.samples]
        split.classes = classes
    return classes


def labels_of(images: Dataset) -> list[int]:
    """The label of each image, without opening it."""
    if isinstance(images, Subset):
        labels = labels_of(images.dataset)
        return [labels[index] for index in images.indices]
    if isinstance(images, INaturalist):
        named = [
            category if images.target_type == ["full"] else images.categories_map[category][images.target_type[0]]
            for category, _ in images.index
        ]
        return [images.target_transform(label) if images.target_transform else label for label in named]
    return images.targets if not isinstance(images, ImageFiles) else [label for _, label in images.samples]


def describe_images(images: Dataset) -> str:
    """Which images these are: their number, and a checksum of their paths in their folder where they are files."""
    if isinstance(images, Subset) and isinstance(images.dataset, INaturalist):  # one split of it
        names = (f"{row}/{images.dataset.index[row][1]}" for row in images.indices)
    elif isinstance(images, Subset):
        files = isinstance(images.dataset, ListedImages)
        names = (
            os.path.relpath(images.dataset.samples[row][0], images.dataset.root) if files else str(row)
            for row in images.indices
        )
    elif isinstance(images, ListedImages):  # whose labels may be corrected
        names = (f"{path[len(str(images.root)) :]} {images.classes[label]}" for path, label in images.samples)
    elif isinstance(images, ClassFolders):
        names = (path[len(str(images.root)) :] for path, _ in images.samples)
    else:
        return f"{len(images)} images"
    return f"{len(images)} images, checksum {checksum(map(os.fsencode, names))}"


def train_transform(args: argparse.Namespace) -> T.Compose:
    """timm's training augmentation, to bytes; small images are padded and cropped instead of cropped at random scale.

    Images are normalised on the device (training.to_network), unless parts are erased, which timm does afterwards.
    """
    prepared = preprocessing(args.model, args.input_size, args.model_kwargs)
    size = prepared.input_size
    try:
        transform = create_transform(
            size,
            is_training=True,
            hflip=args.hflip,
            scale=(args.crop_scale, 1.0),
            color_jitter=args.color_jitter,
            auto_augment=None if args.aa == "none" else args.aa,
            interpolation=args.train_interpolation,
            re_prob=args.reprob,
            re_mode=args.remode,
            re_count=args.recount,
            mean=prepared.mean,
            std=prepared.std,
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise InputError(f"--aa {args.aa} is no policy of timm: {error}") from None
    steps = transform.transforms
    if not args.reprob:
        to_float, normalize = steps[-2:]
        assert isinstance(to_float, MaybeToTensor) and isinstance(normalize, T.Normalize)
        steps[-2:] = [T.PILToTensor()]
    if size <= SMALL_IMAGE:
        steps[:1] = [ExactSize(size), T.RandomCrop(size, args.crop_padding, padding_mode=args.padding_mode)]
    return transform


def eval_transform(size: int) -> T.Compose:
    """Resize to 256/224 of the input size and crop the centre; take small images as they are. The result is bytes."""
    if size <= SMALL_IMAGE:
        return T.Compose([ExactSize(size), T.PILToTensor()])
    resized = int(EVAL_RESIZE * size)
    resize = T.Resize(resized, interpolation=InterpolationMode.BICUBIC)
    return T.Compose([resize, T.CenterCrop(size), T.PILToTensor()])


class ExactSize:
    """Passes images of one size, and raises InputError for any other."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.size != (self.size, self.size):
            raise InputError(
                f"an image is {image.width}x{image.height} pixels, but at --input-size {SMALL_IMAGE} or below nothing "
                f"is resized: all must be {self.size}x{self.size}"
            )
        return image
