"""The embedded pool and the ViT that was pretrained on it without labels."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
from conftest import ROOT
from PIL import Image
from sklearn.datasets import load_digits

from common.checkpoints import read_checkpoint
from common.pretrained import load_pretrained
from experiments.digits_pool import write_digits_pool
from experiments.pretrain_vit import VIT, knn_accuracy, load_images


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "digits"
    write_digits_pool(folder)
    return folder


def test_every_digit_is_in_one_split_and_classes_keep_their_shares(digits):
    paths = sorted(digits.glob("*/*/*.png"))
    data = load_digits()
    assert sorted(int(path.stem) for path in paths) == list(range(len(data.target)))
    assert all(int(path.parent.name) == data.target[int(path.stem)] for path in paths)
    train = Counter(path.parent.name for path in paths if path.parent.parent.name == "train")
    val = Counter(path.parent.name for path in paths if path.parent.parent.name == "val")
    assert (sum(train.values()), sum(val.values())) == (1437, 360)
    assert all(0.79 < train[name] / (train[name] + val[name]) < 0.81 for name in train)


def test_an_image_of_the_pool_is_the_scan_enlarged(digits):
    image = Image.open(next(digits.glob("*/*/0007.png")))
    assert image.size == (32, 32)
    shrunk = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=float) * 16 / 255
    distance = np.abs(load_digits().images - shrunk).sum(axis=(1, 2))
    assert distance.argmin() == 7


def test_a_finished_pool_is_left_as_it_is(digits):
    image = next(digits.glob("train/*/*.png"))
    before = image.stat().st_mtime_ns
    write_digits_pool(digits)
    assert image.stat().st_mtime_ns == before


def test_the_committed_vit_puts_97_percent_of_the_val_images_with_their_neighbours(digits):
    vit = timm.create_model("vit_tiny_patch16_224", **VIT)
    weights = ROOT / "experiments" / "digits_vit.pth"
    assert weights.stat().st_size <= 3_000_000
    assert load_pretrained(vit, read_checkpoint(weights), "digits_vit.pth") == []
    assert knn_accuracy(vit, load_images(digits / "train"), load_images(digits / "val")) >= 0.97
