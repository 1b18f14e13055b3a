"""Training on unlabelled images of the pool too (--unlabelled), with soft labels from the labelled ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import launch_two
from test_linear_head import DIGITS_MODEL, DIGITS_VIT, digit_options, digits, random_subset  # noqa: F401 - a fixture
from torch.utils.data import Subset

from common.checkpoints import read_checkpoint
from common.errors import InputError
from common.images import ImageFiles
from common.readouts import fit_readout, propagate_labels, soft_labels
from deit.datasets import FinetuningData, build_datasets
from deit.frozen_features import FrozenFeatures, head_and_soft_labels
from deit.main import main
from deit.models import build_model, load_weights
from deit.recipe_options import parse_args

FEW = ("--recipe", "few-labels", "--hflip", "0", "--unlabelled", "100", "--total-batch-size", "64")


def clusters(per_class: int, classes: int = 3, d: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Well separated directions (n, d), in random order, and the class of each."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat(np.arange(classes), per_class))
    return np.eye(d)[labels] + 0.1 * random.standard_normal((len(labels), d)), labels


def test_labels_spread_to_the_cluster_that_they_lie_in():
    features, labels = clusters(per_class=40)
    _, known = np.unique(labels, return_index=True)  # one of each class
    order = np.concatenate([known, np.setdiff1d(np.arange(len(labels)), known)])
    propagated = propagate_labels(features[order], labels[known], 3)
    np.testing.assert_allclose(propagated.sum(axis=1), 1)
    assert (propagated.argmax(axis=1) == labels[order]).all()


def test_spreading_is_the_plain_iteration_over_the_dense_graph():
    random = np.random.default_rng(0)
    features, labels = random.standard_normal((30, 5)), np.array([0, 0, 1, 2])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(30)
    weights = np.zeros((30, 30))
    for row in range(30):
        nearest = np.argsort(-cosine[row])[:20]
        weights[row, nearest] = np.exp((cosine[row, nearest] - 1) / 0.2)
    weights += weights.T
    root = np.diag(weights.sum(axis=1) ** -0.5)
    known = np.zeros((30, 3))
    known[[0, 1, 2, 3], labels] = 0.5, 0.5, 1, 1
    solved = np.linalg.solve(np.eye(30) - 0.9 * root @ weights @ root, 0.1 * known)  # what the iteration tends to
    expected = solved / solved.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(propagate_labels(features, labels, 3), expected, atol=0.02)


def test_a_sample_that_no_label_reaches_has_the_same_probability_for_all_classes():
    island = np.concatenate([np.eye(4)[[0] * 30], np.eye(4)[[1] * 30]])
    assert (propagate_labels(island, np.array([1]), 2)[30:] == 0.5).all()


def test_a_class_without_labels_gets_next_to_no_probability():
    features, labels = clusters(per_class=10)
    known = labels < 2
    readout = fit_readout("linear", features[known], labels[known], classes=5)
    product = soft_labels(readout, features[known], labels[known], features[~known], classes=5)
    np.testing.assert_allclose(product.sum(axis=1), 1)
    assert product[:, 2:].max() < 1e-3


def test_one_image_in_three_of_an_epoch_is_labelled_and_each_has_its_own_target():
    images = [(f"image {row}", row % 2) for row in range(5)] + [(f"other {row}", -1) for row in range(40)]
    pool = ImageFiles(Path(), images, ["a", "b"], None, str)
    train, unlabelled = Subset(pool, range(5)), Subset(pool, range(5, 45))
    targets = torch.rand(40, 2)
    data = FinetuningData(train, None, None, pool.classes, {}, unlabelled=unlabelled)
    epoch = data.with_soft_targets(pool, targets, smoothing=0.1)
    assert len(epoch) == 60
    assert [epoch[row][0] for row in range(20)] == [f"image {row % 5}" for row in range(20)]
    assert epoch[0][1].tolist() == pytest.approx([0.95, 0.05]) and epoch[6][1].tolist() == pytest.approx([0.05, 0.95])
    others = [epoch[20 + row] for row in range(40)]
    assert [name for name, _ in others] == [f"other {row}" for row in range(40)]
    assert torch.equal(torch.stack([target for _, target in others]), targets)


def test_no_label_of_an_unlabelled_image_is_looked_at(digits, tmp_path):  # noqa: F811
    args = parse_args(digit_options(digits, random_subset(digits, 28), tmp_path, *FEW))
    data, model = build_datasets(args), build_model(args, 10)
    load_weights(args, model, data.classes)
    others, pool = data.unlabelled.dataset.indices, data.unlabelled.dataset.dataset
    assert len(others) == 1437 - 28 and not set(others) & set(data.train.indices)
    features_of = FrozenFeatures(model, torch.device("cpu"), 256)
    _, right = head_and_soft_labels(features_of, data, "labels")
    for index in others:
        path, label = pool.samples[index]
        pool.samples[index] = path, (label + 1) % 10
    assert torch.equal(head_and_soft_labels(features_of, data, "labels")[1], right)


def test_a_resumed_run_trains_on_the_same_soft_labels_to_the_same_weights(digits, tmp_path):  # noqa: F811
    common = digit_options(digits, random_subset(digits, 28), tmp_path, *FEW, "--sched", "step")
    main([*common, "--epochs", "3", "--output_dir", str(tmp_path / "whole")])
    resumed = [*common, "--output_dir", str(tmp_path / "parts"), "--auto-resume"]
    main([*resumed, "--epochs", "2"])
    with pytest.raises(InputError, match="unlabelled was 100, is 50"):
        main([*resumed, "--epochs", "3", "--unlabelled", "50"])
    checkpoint = read_checkpoint(tmp_path / "parts" / "checkpoint.pth")
    del checkpoint["soft_labels"], checkpoint["run"]["unlabelled"], checkpoint["run"]["unlabelled_images"]
    torch.save(checkpoint, tmp_path / "older.pth")
    with pytest.raises(InputError, match="only one of the two has unlabelled images"):
        main([*common, "--epochs", "3", "--resume", str(tmp_path / "older.pth")])
    main([*resumed, "--epochs", "3"])
    parts, whole = (read_checkpoint(tmp_path / name / "checkpoint.pth") for name in ("parts", "whole"))
    assert torch.equal(parts["soft_labels"], whole["soft_labels"])
    assert all(torch.equal(parts["model"][name], weight) for name, weight in whole["model"].items())


def test_two_processes_train_on_the_soft_labels_of_one(run_script, digits, tmp_path):  # noqa: F811
    common = digit_options(digits, random_subset(digits, 28), tmp_path, *FEW, "--updates", "2")
    main([*common, "--output_dir", str(tmp_path / "one")])
    run_script("deit/main.py", *common, "--output_dir", tmp_path / "two", launcher=launch_two(29519))
    one, two = (read_checkpoint(tmp_path / name / "checkpoint.pth") for name in ("one", "two"))
    torch.testing.assert_close(two["soft_labels"], one["soft_labels"])
    torch.testing.assert_close(two["model"], one["model"], atol=1e-4, rtol=1e-3)


def test_images_below_the_folder_that_no_list_labels_are_the_unlabelled_ones(digits, tmp_path):  # noqa: F811
    paths = sorted((digits / "train").rglob("*.png"))[::40]
    rows = [f"./{path.relative_to(digits)},{path.parent.name}" for path in paths]  # as `find .` writes them
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "val.csv").write_text(f"path,label\n{next((digits / 'val/0').iterdir())},0")
    args = parse_args([
        *DIGITS_MODEL, "--data-set", "CSV", "--data-path", str(digits), "--labels", str(tmp_path / "labels.csv"),
        "--val-labels", str(tmp_path / "val.csv"), "--resume", str(DIGITS_VIT), "--recipe", "few-labels",
    ])  # fmt: skip
    data = build_datasets(args)
    assert len(data.train) == len(paths) and len(data.unlabelled) == 1797 - len(paths) - 1


def test_a_pool_that_is_labelled_as_a_whole_is_trained_without_unlabelled_images(digits, tmp_path):  # noqa: F811
    data = build_datasets(parse_args(digit_options(digits, list(range(1437)), tmp_path, *FEW)))
    assert len(data.unlabelled) == 0 and data.images_per_epoch == 1437
    assert any("--unlabelled has no effect" in note for note in data.notes)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--data-set", "IMNET"], "--unlabelled 7 needs a pool"),
        (["--data-set", "IMNETSUBSET", "--subset_ids", "s.json", "--mixup", "0.2"], "mix hard ones"),
        (["--data-set", "IMNETSUBSET", "--subset_ids", "s.json", "--resume", ""], "--unlabelled 7 needs --resume"),
        (["--data-set", "IMNETSUBSET", "--subset_ids", "s.json", "--eval"], "--unlabelled 7 is for training"),
    ],
)
def test_unlabelled_images_are_refused_where_they_mean_nothing(extra, message):
    with pytest.raises(InputError, match=message):
        parse_args(["--unlabelled", "7", "--resume", "w.pth", *extra])


def test_labels_of_a_single_class_cannot_be_spread(digits, tmp_path):  # noqa: F811
    ones = json.dumps(list(range(5)))
    options = digit_options(digits, [0], tmp_path, *FEW, "--head-init", "fresh")
    (tmp_path / "subset.json").write_text(ones)
    with pytest.raises(InputError, match="--unlabelled needs labels of at least two classes, but all 5 are of one"):
        main(options)
