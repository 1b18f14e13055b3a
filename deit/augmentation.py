"""The published recipe's transforms for training and evaluation images."""

import argparse
import re
from functools import partial

import torchvision.transforms as T
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import InterpolationMode

from common.errors import InputError
from common.networks import preprocessing

SMALL_IMAGE = 32  # up to this input size, images are neither resized nor cropped at random scale
EVAL_RESIZE = 256 / 224


def train_transform(args: argparse.Namespace) -> T.Compose:
    """Build timm's training augmentation, to bytes; small images are padded and cropped, not cropped at random scale.

    Images are normalised on the device (training.to_network), or here with --reprob, as timm erases afterwards.
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
            normalize=bool(args.reprob),
        )
        for part in args.aa.split("-")[1:]:
            if not re.search(r"\d", part) and not part.startswith("t"):  # timm would skip it
                raise ValueError(f"{part} has no number")
    except (AssertionError, ValueError, KeyError) as error:
        raise InputError(f"--aa {args.aa} is not an AutoAugment policy of timm: {error}") from None
    if size <= SMALL_IMAGE:
        crop = T.RandomCrop(size, args.crop_padding, padding_mode=args.padding_mode)
        transform.transforms[:1] = [partial(of_size, size), crop]
    return transform


def eval_transform(size: int) -> T.Compose:
    """Resize to 256/224 of the input size and crop the centre; keep small images as they are. The result is bytes."""
    if size <= SMALL_IMAGE:
        return T.Compose([partial(of_size, size), T.PILToTensor()])
    resized = int(EVAL_RESIZE * size)
    resize = T.Resize(resized, interpolation=InterpolationMode.BICUBIC)
    return T.Compose([resize, T.CenterCrop(size), T.PILToTensor()])


def of_size(size: int, image: Image.Image) -> Image.Image:
    """Return the image. Raises InputError if it has another size."""
    if image.size != (size, size):
        raise InputError(
            f"an image is {image.width}x{image.height} pixels, but at --input-size {SMALL_IMAGE} or below nothing "
            f"is resized: all must be {size}x{size}"
        )
    return image
