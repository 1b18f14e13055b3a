"""Augmentation of image and mask together: Segmenter's, which is MMSegmentation's for ADE20K."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from common.networks import preprocessing
from common.scenes import IGNORED

CROP_DRAWS = 10


def train_transform(args: argparse.Namespace) -> v2.Compose:
    """Random scale, crop, flip and colours; then normalise, and pad to the crop size with zeros and IGNORED."""
    return v2.Compose([
        RandomScale(args.short_side, args.long_side, args.scale),
        RandomCropOfSeveralClasses(args.crop_size, args.max_class_share),
        v2.RandomHorizontalFlip(args.flip),
        to_float(),
        PhotometricDistortion(args.photometric),
        normalize(args.model),
        PadTo(args.crop_size),
    ])  # fmt: skip


def eval_transform(args: argparse.Namespace) -> v2.Compose:
    """Resize the image and normalise it; the mask stays in its own resolution."""
    return v2.Compose([ResizeImage(args.short_side, args.long_side), to_float(), normalize(args.model)])


def to_float() -> v2.ToDtype:
    return v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)


def normalize(model: str) -> v2.Normalize:
    """Normalise with the mean and std of the network's pretraining, or ImageNet's."""
    prepared = preprocessing(model)
    return v2.Normalize(prepared.mean, prepared.std)


def uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


class RandomScale(v2.Transform):
    """Resize to `short_side` or `long_side`, times a random factor, whichever makes the image smaller."""

    def __init__(self, short_side: int, long_side: int, scale: Sequence[float]):
        super().__init__()
        self.short_side, self.long_side, self.scale = short_side, long_side, scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor = uniform(*self.scale)
        size = fitting_size(F.get_size(flat_inputs[0]), self.short_side * factor, self.long_side * factor)
        return {"size": size}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.resize(inpt, params["size"])  # bilinear for images, nearest for masks


class ResizeImage(RandomScale):
    """Resize the image, but not the mask, to `short_side` or `long_side`, whichever makes it smaller."""

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, short_side: int, long_side: int):
        super().__init__(short_side, long_side, scale=(1, 1))


def fitting_size(size: Sequence[int], short_side: float, long_side: float) -> list[int]:
    """Return height and width with the given short side, or long side if that is smaller; the shape is kept."""
    factor = min(short_side / min(size), long_side / max(size))
    return [max(1, round(side * factor)) for side in size]


class RandomCropOfSeveralClasses(v2.Transform):
    """Crop at random; redraw, up to ten times, while one class exceeds `max_class_share` of the pixels not ignored."""

    def __init__(self, crop_size: int, max_class_share: float):
        super().__init__()
        self.crop_size, self.max_class_share = crop_size, max_class_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        mask = next(inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.Mask))
        for _ in range(1 + CROP_DRAWS):
            height, width = (min(self.crop_size, side) for side in mask.shape[-2:])
            top = torch.randint(mask.shape[-2] - height + 1, ()).item()
            left = torch.randint(mask.shape[-1] - width + 1, ()).item()
            crop = mask[..., top : top + height, left : left + width]
            counts = crop[crop != IGNORED].long().bincount()
            if len(counts) and counts.max() <= self.max_class_share * counts.sum():
                break
        return {"top": top, "left": left, "height": height, "width": width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, **params)


class PhotometricDistortion(v2.Transform):
    """Distort a float image: brightness ±32 of 255, contrast and saturation 0.5 to 1.5, hue ±18 of OpenCV's 180.

    Each has probability p. Contrast multiplies the values, as published, before or after saturation and hue.
    """

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        ranges = {
            "brightness": (-32 / 255, 32 / 255),
            "contrast": (0.5, 1.5),
            "saturation": (0.5, 1.5),
            "hue": (-0.1, 0.1),
        }
        drawn = {name: uniform(*limits) for name, limits in ranges.items() if torch.rand(()) < self.p}
        return {**drawn, "contrast_first": bool(torch.rand(()) < 0.5)}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        if "brightness" in params:
            inpt = (inpt + params["brightness"]).clamp(0, 1)
        colours = [(F.adjust_saturation, "saturation"), (F.adjust_hue, "hue")]
        contrast = [(F.adjust_brightness, "contrast")]  # to torchvision, multiplying all values is brightness
        for adjust, name in contrast + colours if params["contrast_first"] else colours + contrast:
            if name in params:
                inpt = adjust(inpt, params[name])
        return inpt


class PadTo(v2.Transform):
    """Pad on the right and at the bottom to a square: images with zeros, masks with IGNORED."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = inpt.shape[-2:]
        fill = IGNORED if isinstance(inpt, tv_tensors.Mask) else 0
        return F.pad(inpt, [0, 0, self.size - width, self.size - height], fill=fill)
