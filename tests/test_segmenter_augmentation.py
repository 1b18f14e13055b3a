"""Augmentation of image and mask together."""

import argparse

import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision import tv_tensors

from common.scenes import IGNORED
from segmenter.augmentation import (
    PhotometricDistortion,
    RandomCropOfSeveralClasses,
    RandomScale,
    eval_transform,
    fitting_size,
    train_transform,
)


def options(**changed) -> argparse.Namespace:
    published = {
        "model": "vit_small_patch16_224",
        "scale": (0.5, 2.0),
        "max_class_share": 0.75,
        "flip": 0.5,
        "photometric": 0.5,
    }
    return argparse.Namespace(**{**published, "crop_size": 32, "short_side": 40, "long_side": 160, **changed})


def scene(height: int = 60, width: int = 80) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Each class has a colour of its own, so that image and mask can be held against each other."""
    mask = torch.zeros(height, width, dtype=torch.int16)
    mask[:, width // 2 :] = 1
    mask[height // 2 :] += 2
    return tv_tensors.Image((60 * mask + 30).to(torch.uint8).expand(3, -1, -1).clone()), tv_tensors.Mask(mask)


def test_image_and_mask_go_through_the_same_scale_crop_and_flip():
    for seed in range(10):
        torch.manual_seed(seed)
        transform = train_transform(options(photometric=0))
        image, mask = transform(*scene())
        grey = image * torch.tensor(IMAGENET_DEFAULT_STD)[:, None, None]
        grey = 255 * (grey + torch.tensor(IMAGENET_DEFAULT_MEAN)[:, None, None])[0]
        inside = mask != IGNORED
        agree = (grey[inside] - (60 * mask[inside] + 30)).abs() < 1
        assert agree.float().mean() > 0.85  # the others are at the edges, where the image is blurred
        assert image.shape == (3, 32, 32) and mask.shape == (32, 32)


def test_what_is_padded_is_zero_in_the_image_and_ignored_in_the_mask():
    image, mask = train_transform(options(short_side=20, scale=(1, 1)))(*scene(60, 60))
    assert (mask[20:] == IGNORED).all() and (mask[:, 20:] == IGNORED).all() and (mask[:20, :20] != IGNORED).all()
    assert (image[:, 20:] == 0).all() and (image[:, :, 20:] == 0).all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), [512, 683]), ((640, 480), [683, 512]), ((100, 1000), [205, 2048]), ((512, 512), [512, 512])],
)
def test_short_side_is_512_and_the_long_side_at_most_2048(size, expected):
    assert fitting_size(size, 512, 2048) == expected


def test_scale_is_uniform_between_its_limits():
    torch.manual_seed(0)
    transform = RandomScale(100, 400, (0.5, 2.0))
    heights = [transform(*scene(30, 40))[1].shape[0] for _ in range(300)]
    assert 50 <= min(heights) < 60 and 190 < max(heights) <= 200
    assert sum(heights) / len(heights) == pytest.approx(125, rel=0.05)


def test_a_crop_of_one_class_is_drawn_again_when_another_is_to_be_had():
    mask = torch.zeros(1, 100, dtype=torch.int16)
    mask[:, 50:] = 1
    mask = tv_tensors.Mask(mask.repeat(100, 1))
    torch.manual_seed(0)
    shares = [(RandomCropOfSeveralClasses(40, 0.75)(mask) == 0).float().mean().item() for _ in range(100)]
    assert sum(0.25 <= share <= 0.75 for share in shares) > 95
    shares = [(RandomCropOfSeveralClasses(40, 1.0)(mask) == 0).float().mean().item() for _ in range(100)]
    assert sum(0.25 <= share <= 0.75 for share in shares) < 60


def test_ignored_pixels_have_no_share_and_a_mask_of_one_class_or_none_still_gives_a_crop():
    mask = torch.full((50, 50), IGNORED, dtype=torch.int16)
    assert RandomCropOfSeveralClasses(20, 0.75)(tv_tensors.Mask(mask)).shape == (20, 20)
    mask[:, 25:] = 3
    assert RandomCropOfSeveralClasses(20, 0.75)(tv_tensors.Mask(mask)).shape == (20, 20)


def test_distortion_changes_each_colour_property_in_half_of_the_draws_and_no_mask():
    torch.manual_seed(0)
    distortion = PhotometricDistortion(0.5)
    drawn = [distortion.make_params([]) for _ in range(1000)]
    for name, low, high in (("brightness", -32 / 255, 32 / 255), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5),
                            ("hue", -0.1, 0.1)):  # fmt: skip
        values = [params[name] for params in drawn if name in params]
        assert 430 < len(values) < 570
        assert low <= min(values) < low + (high - low) / 20 and high - (high - low) / 20 < max(values) <= high
    image, mask = scene()
    image = tv_tensors.Image(image.float() / 255)
    distorted, same = PhotometricDistortion(1.0)(image, mask)
    assert (distorted != image).any() and distorted.min() >= 0 and distorted.max() <= 1
    assert torch.equal(same, mask)


def test_evaluation_resizes_and_normalises_the_image_and_leaves_the_mask_in_its_own_resolution():
    image, mask = scene()
    resized, same = eval_transform(options(short_side=30))(image, mask)
    assert resized.shape == (3, 30, 40) and torch.equal(same, mask)
    darkest = (30 / 255 - IMAGENET_DEFAULT_MEAN[0]) / IMAGENET_DEFAULT_STD[0]
    assert resized[0].min().item() == pytest.approx(darkest, abs=1e-2)
    own, _ = eval_transform(options(short_side=30, model="vit_small_patch16_224.augreg_in21k"))(image, mask)
    assert own[0].min().item() == pytest.approx((30 / 255 - 0.5) / 0.5, abs=1e-2)
