"""Scenes in ADE20K's layout: what their masks mean, and what of them is refused before the work begins."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_VIT_OPTIONS
from digit_scenes import CLASSES, write_scenes
from PIL import Image

from common.errors import InputError
from common.feature_file import read_features
from common.files import scenes_name
from common.pool_paths import read_pool_paths
from common.processes import Processes
from common.scenes import IGNORED, MaskLabels, class_names
from data_selection.extract_feature import main as extract
from segmenter.datasets import Scenes, build_datasets


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes", training=5, validation=2)


def data_of(root: Path, **changed) -> tuple[Scenes, Scenes]:
    options = {
        "data_path": str(root), "class_names": None, "num_classes": None, "ignore_label": 255,
        "reduce_zero_label": True, "subset_ids": [], "short_side": 40, "long_side": 160, "num_workers": 0,
        "eval": False, "model": "vit_small_patch16_224",
    }  # fmt: skip
    return build_datasets(argparse.Namespace(**{**options, **changed}), Processes())


def subset_file(tmp_path: Path, ids: list[int]) -> str:
    path = tmp_path / "subset.json"
    path.write_text(json.dumps(ids))
    return str(path)


def save_mask(path: Path, values: list[list[int]], mode: str = "uint8") -> Path:
    Image.fromarray(np.array(values, mode)).save(path)
    return path


def test_scenes_are_pairs_of_image_and_mask_with_zero_ignored_and_classes_from_0(scenes):
    train, val = data_of(scenes)
    assert train.labels.classes == tuple(CLASSES) and len(train) == 5 and len(val) == 2
    image, mask = train[3]
    values = np.asarray(Image.open(scenes / "annotations/training/scene_003.png")).astype(int)
    assert image.shape == (3, 40, 48) and (mask.numpy() == np.where(values == 0, IGNORED, values - 1)).all()


def test_a_subset_is_the_images_at_its_indices_in_the_order_of_the_names(scenes, tmp_path):
    train, val = data_of(scenes, subset_ids=[subset_file(tmp_path, [4, 1])])
    assert [path.name for path in train.paths] == ["scene_004.jpg", "scene_001.jpg"]
    assert len(val) == 2


@pytest.mark.parametrize(
    ("reduce_zero_label", "expected"), [(True, [[IGNORED, 0], [1, IGNORED]]), (False, [[0, 1], [2, IGNORED]])]
)
def test_zero_is_ignored_or_the_first_class_and_the_ignore_label_is_always_ignored(
    reduce_zero_label, expected, tmp_path
):
    labels = MaskLabels(("a", "b", "c"), 200, reduce_zero_label)
    mask = labels.read(save_mask(tmp_path / "m.png", [[0, 1], [2, 200]]))
    assert mask.tolist() == expected
    assert np.array_equal(labels.values(mask)[:1, 1:], [[1]])


def test_predictions_are_written_with_the_values_of_the_annotations(tmp_path):
    for labels, dtype in ((MaskLabels(("a", "b")), "uint8"), (MaskLabels(tuple(map(str, range(300)))), "uint16")):
        classes = np.array([[0, 1], [1, len(labels.classes) - 1]])
        values = labels.values(classes)
        assert values.dtype == dtype
        assert np.array_equal(labels.read(save_mask(tmp_path / "m.png", values, dtype)), classes)


def test_class_names_come_from_lines_or_from_ade20ks_table(tmp_path):
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tName\n1\t0.1\twall\n2\t0.1\tbuilding, edifice\n")
    assert class_names(tmp_path) == ("wall", "building, edifice")
    (tmp_path / "classes.txt").write_text("sky\nroad\n\n")
    assert class_names(tmp_path) == ("sky", "road")
    assert class_names(tmp_path, tmp_path / "objectInfo150.txt") == ("wall", "building, edifice")
    assert class_names(tmp_path / "none", None, 2) == ("class 1", "class 2")


@pytest.mark.parametrize(
    ("content", "number", "message"),
    [
        (None, None, "how many classes are in"),
        ("", None, "the file is empty"),
        ("sky\nroad\nsky", None, "'sky' appears twice"),
        ("sky\nroad", 3, "--num-classes 3, but .* names 2 classes"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(content, number, message, tmp_path):
    if content is not None:
        (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        class_names(tmp_path, None, number)


def broken(scenes: Path, kind: str, split: str) -> None:
    mask = scenes / "annotations" / split / "scene_001.png"
    if kind == "size":
        save_mask(mask, [[1, 2]])
    elif kind == "missing":
        mask.unlink()
    elif kind == "stem":
        mask.rename(mask.with_name("scene_1.png"))
    elif kind == "label":
        save_mask(mask, np.full((40, 48), 11))
    elif kind == "RGB":
        Image.open(mask).convert("RGB").save(mask)
    elif kind == "damaged mask":
        mask.write_bytes(mask.read_bytes()[:50])
    elif kind == "damaged image":
        image = scenes / "images" / split / "scene_001.jpg"
        image.write_bytes(image.read_bytes()[:500])
    elif kind == "two images":
        Image.new("RGB", (48, 40)).save(scenes / "images" / split / "scene_001.png")


@pytest.mark.parametrize("split", ["training", "validation"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("size", r"mask .*scene_001.png has 2x1 pixels, but its image .*scene_001.jpg 48x40"),
        ("missing", "mask .*scene_001.png is not there"),
        ("stem", "mask .*scene_1.png belongs to no image"),
        ("label", "mask .*scene_001.png holds label 11, but the 10 classes are 1 to 10, and 255 is ignored"),
        ("RGB", "mask .*scene_001.png is an image of mode RGB"),
        ("damaged mask", "cannot read the mask .*scene_001.png"),
        ("damaged image", "cannot read the image .*scene_001.jpg"),
        ("two images", "images .*scene_001.jpg and .*scene_001.png would have the same mask"),
    ],
)
def test_scenes_that_cannot_be_used_are_one_line_before_the_work(kind, message, split, scenes):
    broken(scenes, kind, split)
    with pytest.raises(InputError, match=message) as raised:
        data_of(scenes)
    assert "\n" not in str(raised.value)


def test_images_that_are_not_chosen_need_no_mask(scenes, tmp_path):
    broken(scenes, "missing", "training")
    assert len(data_of(scenes, subset_ids=[subset_file(tmp_path, [0, 2])])[0]) == 2
    with pytest.raises(InputError, match="scene_001.png is not there"):
        data_of(scenes, subset_ids=[subset_file(tmp_path, [0, 1])])


def test_classes_without_a_pixel_to_train_on_are_named(scenes, tmp_path, capsys):
    train, _ = data_of(scenes, subset_ids=[subset_file(tmp_path, [2])])
    seen = set(train[0][1].unique().tolist())
    missing = [name for index, name in enumerate(CLASSES) if index not in seen]
    expected = f"{len(missing)} of 10 classes have no pixel to train on: {', '.join(missing)}"
    assert missing and expected in capsys.readouterr().out


def test_an_index_outside_the_pool_is_refused(scenes, tmp_path):
    with pytest.raises(InputError, match="holds 5, but the pool has images 0 to 4"):
        data_of(scenes, subset_ids=[subset_file(tmp_path, [0, 5])])


def test_the_folder_that_ade20k_was_unpacked_in_will_do(tmp_path):
    write_scenes(tmp_path / "ADEChallengeData2016", training=2, validation=1)
    assert len(data_of(tmp_path)[0]) == 2


def test_another_layout_is_refused_with_the_one_that_is_needed(tmp_path):
    with pytest.raises(InputError, match="the layout is <folder>/images/{training,validation}"):
        data_of(tmp_path)


@pytest.mark.parametrize(("folder", "name"), [("ADEChallengeData2016", "ADE20K"), ("streets", "streets")])
def test_extraction_needs_no_masks_and_counts_the_images_as_training_does(folder, name, backbone, tmp_path):
    root = write_scenes(tmp_path / folder, training=3, validation=1)
    trained_on = [path.name for path in data_of(root)[0].paths]
    shutil.rmtree(root / "annotations")
    options = ["--dataset", "ADE20K", "--data_path", str(root), "--arch", "vit_tiny_patch16_224", *TINY_VIT_OPTIONS,
               "--pretrained_weights", str(backbone), "--device", "cpu", "--num_workers", "0"]  # fmt: skip
    path = extract([*options, "--output_dir", str(tmp_path)])
    features, labels = read_features(path)
    assert path.name == f"{name}_train.npy" and features.shape == (3, 24) and labels.tolist() == [-1, -1, -1]
    assert [image.name for image in read_pool_paths(path, 3).files()] == trained_on
    assert read_features(extract([*options, "--split", "val", "--output_dir", str(tmp_path)]))[0].shape == (1, 24)
    assert scenes_name(root) == name
    assert scenes_name(tmp_path) == ("ADE20K" if name == "ADE20K" else tmp_path.name)  # the folder around it will do
