"""The training and evaluation scenes, all checked before the work begins."""

import argparse
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from common.cpus import worker_count
from common.errors import InputError
from common.files import checksum, scene_folder
from common.images import open_rgb
from common.processes import Processes
from common.progress import progress_bar
from common.scenes import MaskLabels, mask_labels, mask_of, scene_images
from common.subset_file import note_on_pool, read_subset_ids
from segmenter.augmentation import eval_transform

MOST_NAMED_CLASSES = 10
Transform = Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[Tensor, Tensor]]


class Scenes(Dataset):
    """Images (3, h, w), bytes, with the class of every pixel (h, w), int16; the transform takes both together."""

    def __init__(self, paths: Sequence[Path], labels: MaskLabels, transform: Transform | None = None):
        self.paths, self.labels, self.transform = list(paths), labels, transform

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def listing(self) -> str:
        """A description of the images, compared when a run is resumed."""
        names = (os.fsencode(path.name) for path in self.paths)
        return f"{len(self)} images, checksum {checksum(names)}"

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.paths[index]
        image = tv_tensors.Image(torch.from_numpy(np.array(open_rgb(path))).permute(2, 0, 1))
        mask = tv_tensors.Mask(torch.from_numpy(self.labels.read(mask_of(path))))
        return self.transform(image, mask) if self.transform else (image, mask)


def build_datasets(args: argparse.Namespace, processes: Processes) -> tuple[Scenes, Scenes]:
    """Return the chosen images of the training split, or all; and the whole validation split, with only images resized.

    Raises InputError if anything is missing or does not fit, in any image or mask that will be used.
    """
    root = Path(args.data_path)
    images, val_images = (
        [Path(path) for path, _ in scene_images(scene_folder(root, train)).samples] for train in (True, False)
    )
    labels = mask_labels(args, images[0].parents[2])
    chosen = range(len(images))
    if args.subset_ids:
        subsets = {path: read_subset_ids(path, len(images)) for path in args.subset_ids}
        names = [image.name for image in images]
        for path, ids in subsets.items():
            if note := note_on_pool(path, ids, len(images), names):
                processes.report(note)
        chosen = dict.fromkeys(index for ids in subsets.values() for index in ids)
    train = Scenes([images[index] for index in chosen], labels)
    val = Scenes(val_images, labels, eval_transform(args))
    if not args.eval:
        check_stems(images)
        pixels = count_pixels(train, args.num_workers, processes)
        if missing := [name for name, count in zip(labels.classes, pixels, strict=True) if not count]:
            listed = ", ".join(missing[:MOST_NAMED_CLASSES]) + ", ..." * (len(missing) > MOST_NAMED_CLASSES)
            processes.report(f"{len(missing)} of {len(labels.classes)} classes have no pixel to train on: {listed}")
    check_stems(val_images)
    count_pixels(val, args.num_workers, processes)
    return train, val


def check_stems(images: Sequence[Path]) -> None:
    """Raise InputError if two images share a stem, or a mask belongs to no image."""
    by_stem: dict[str, Path] = {}
    for image in images:
        if image.stem in by_stem:
            raise InputError(f"images {by_stem[image.stem]} and {image} would have the same mask: rename one")
        by_stem[image.stem] = image
    masks = mask_of(images[0]).parent
    for mask in sorted(masks.glob("[!.]*.png")) if masks.is_dir() else ():
        if mask.stem not in by_stem:
            raise InputError(f"mask {mask} belongs to no image in {images[0].parent}: the names must match")


def count_pixels(scenes: Scenes, threads: int, processes: Processes) -> list[int]:
    """Count the labelled pixels of each class, and check every image and mask on the way.

    Each process reads its share; if one finds a fault, all raise it.
    Raises: InputError, naming the file, if an image or mask cannot be used; also if no pixel is labelled.
    """

    def count(path: Path) -> np.ndarray:
        image, mask = open_rgb(path), scenes.labels.read(mask_of(path))
        if image.size != mask.shape[::-1]:
            sizes = f"{mask.shape[1]}x{mask.shape[0]} pixels, but its image {path} {image.width}x{image.height}"
            raise InputError(f"mask {mask_of(path)} has {sizes}: both must have the same size")
        return scenes.labels.count(mask)

    def count_share() -> np.ndarray:
        mine = scenes.paths[processes.part(len(scenes))]
        with ThreadPoolExecutor(max(1, worker_count(threads))) as pool:
            counted = pool.map(count, mine)
            bar = progress_bar(counted, "checking masks", len(mine), disable=not processes.is_main, leave=False)
            return sum(bar, np.zeros(len(scenes.labels.classes), np.int64))

    pixels = torch.from_numpy(processes.together(count_share)).to(processes.device)  # (c,)
    processes.sum(pixels)
    if not pixels.any():
        masks = mask_of(scenes.paths[0]).parent
        raise InputError(f"no pixel in the {len(scenes)} masks used from {masks} is labelled: all are ignored")
    return pixels.tolist()
