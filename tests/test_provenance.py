"""The provenance beside a subset: what it was chosen from and how, and the line where the pool is another one."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, mixture, write_image_paths, write_pool
from digit_scenes import write_scenes
from test_segmenter_datasets import data_of

from common import VERSION, subset_file
from common.subset_file import features_checksum, note_on_pool, project_version, provenance_file, read_subset_ids
from data_selection.evidence import report_files
from data_selection.sample_tools import ActiveFT_CIFAR, baseline, report
from deit.datasets import build_datasets
from deit.recipe_options import parse_args

N, D = 30, 6  # as many as the pool of conftest.py has to train on


@pytest.fixture
def feature_path(tmp_path: Path, pool: Path) -> Path:
    """Features of the insects, and the list of their images."""
    np.save(tmp_path / "insects_train.npy", mixture(N, D, clusters=3, spread=0.4))
    images = sorted(str(path) for path in (pool / "train").rglob("*.png"))
    write_image_paths(tmp_path / "insects_train.npy", pool / "train", images)
    return tmp_path / "insects_train.npy"


def select(feature_path: Path, *options: object, script=baseline) -> Path:
    method = ["--method", "herding"] if script is baseline else ["--max_iter", 5]
    common = ["--feature_path", feature_path, "--output_dir", feature_path.parent / "out", "--device", "cpu"]
    return script.main([str(option) for option in (*common, "--number", 6, *method, *options)])


def read_provenance(subset: Path) -> dict:
    return json.loads(provenance_file(subset).read_text())


def note(subset: Path, n: int = N, **known) -> str | None:
    return note_on_pool(subset, read_subset_ids(subset, n), n, **known)


def notes_of_trainer(subset: Path, root: Path) -> list[str]:
    options = ["--data-set", "IMNETSUBSET", "--data-path", root, "--input-size", 32, "--subset_ids", subset]
    return build_datasets(parse_args([str(option) for option in options])).notes


@pytest.mark.parametrize("script", [baseline, ActiveFT_CIFAR])
def test_a_subset_is_written_with_its_options_versions_and_a_fingerprint_of_its_pool(script, feature_path):
    subset = select(feature_path, "--seed", 3, script=script)
    kept = read_provenance(subset)
    assert kept["options"]["number"] == 6 and kept["options"]["feature_path"] == str(feature_path)
    assert kept["seed"] == 3
    assert kept["torch"][0].isdigit() and kept["version"] == project_version()
    assert kept["command"].startswith("python ")
    assert (kept["pool"]["images"], kept["pool"]["d"]) == (N, D)
    assert note(subset, features=np.load(feature_path)[:, :-1]) is None


def test_each_of_nested_subsets_has_its_own(feature_path):
    arguments = ["--method", "random", "--feature_path", feature_path, "--output_dir", feature_path.parent / "out"]
    largest = baseline.main([*map(str, arguments), "--nested", "10,20", "--device", "cpu"])
    subsets = sorted(largest.parent.glob("*.json"))
    assert len(subsets) == 2
    assert [note(subset) for subset in subsets] == [None, None]


def test_the_command_is_the_one_that_was_typed(feature_path, run_script):
    options = ["--method", "random", "--feature_path", feature_path, "--number", 3, "--filename", "a b.json"]
    done = run_script("data_selection/sample_tools/baseline.py", *options, "--output_dir", feature_path.parent)
    assert "wrote 3 of 30" in done.stdout
    command = read_provenance(feature_path.with_name("a b.json"))["command"]
    assert command.startswith(f"python sample_tools/baseline.py --method random --feature_path {feature_path}")
    assert "--filename 'a b.json'" in command


def test_a_subset_does_not_keep_the_losses_of_the_run_that_had_its_name(feature_path):
    subset = select(feature_path, "--filename", "s.json", script=ActiveFT_CIFAR)
    assert len(report_files.read_losses(subset)) == 5
    assert report_files.read_losses(select(feature_path, "--filename", "s.json")) == []


def test_names_that_differ_after_a_dot_have_files_of_their_own(feature_path):
    names = [("--filename", f"run.{seed}", "--seed", seed) for seed in (0, 1)]
    subsets = [select(feature_path, *options, script=ActiveFT_CIFAR) for options in names]
    assert [note(subset) for subset in subsets] == [None, None]
    assert report_files.read_losses(subsets[0]) != report_files.read_losses(subsets[1])


def test_nothing_is_said_of_subsets_that_come_from_elsewhere(tmp_path):
    (tmp_path / "s.json").write_text("[1, 2]")
    assert note(tmp_path / "s.json", features=np.ones((N, D))) is None


def test_training_on_the_pool_that_was_chosen_from_says_nothing_wherever_it_is(feature_path, pool, tmp_path):
    subset = select(feature_path)
    (tmp_path / "elsewhere").symlink_to(pool)
    assert notes_of_trainer(subset, pool) == notes_of_trainer(subset, tmp_path / "elsewhere") == []


def test_training_on_another_number_of_images_is_said(feature_path, tmp_path):
    larger = write_pool(tmp_path / "larger", train_per_class=11, val_per_class=1)
    (said,) = notes_of_trainer(select(feature_path), larger)
    assert said.endswith("was chosen from another pool, of 30 images: this one has 33")


def test_training_on_images_of_other_names_is_said(feature_path, tmp_path):
    renamed = write_pool(tmp_path / "renamed", train_per_class=10, val_per_class=1)
    (renamed / "train" / CLASSES[1] / "003.png").rename(renamed / "train" / CLASSES[1] / "0035.png")
    (said,) = notes_of_trainer(select(feature_path), renamed)
    assert "the names of its 30 images differ" in said


def test_a_pool_without_files_is_told_from_another_of_its_size_by_its_labels(tmp_path):
    """CIFAR10 and CIFAR100 have 50,000 images each."""
    table = mixture(N, D, clusters=3, spread=0.4)
    table[:, -1] = np.arange(N) % 3
    np.save(tmp_path / "CIFAR10_train.npy", table)
    subset = select(tmp_path / "CIFAR10_train.npy")
    assert note(subset, labels=[row % 3 for row in range(N)]) is None
    assert note(subset, labels=[row % 5 for row in range(N)]).endswith(
        "was chosen from another pool: the labels of its 30 images differ from those of this one"
    )


def test_unknown_labels_tell_nothing_of_a_pool(tmp_path):
    table = mixture(N, D, clusters=3, spread=0.4)
    table[:, -1] = -1
    np.save(tmp_path / "CIFAR10_train.npy", table)
    assert note(select(tmp_path / "CIFAR10_train.npy"), labels=[row % 5 for row in range(N)]) is None


def test_segmentation_says_it_too(tmp_path, capsys):
    scenes = write_scenes(tmp_path / "scenes", 5, 2)
    np.save(tmp_path / "scenes_train.npy", mixture(5, D, clusters=2, spread=0.4))
    images = sorted(str(path) for path in (scenes / "images" / "training").glob("*.jpg"))
    write_image_paths(tmp_path / "scenes_train.npy", scenes / "images" / "training", images)
    subset = select(tmp_path / "scenes_train.npy", "--number", 2)
    capsys.readouterr()
    data_of(scenes, subset_ids=[str(subset)])
    assert "another pool" not in capsys.readouterr().out
    for folder, suffix in (("images", "jpg"), ("annotations", "png")):
        image = scenes / folder / "training" / f"scene_004.{suffix}"
        image.rename(image.with_name(f"scene_044.{suffix}"))
    data_of(scenes, subset_ids=[str(subset)])
    assert "the names of its 5 images differ" in capsys.readouterr().out


def test_the_report_says_when_the_features_are_others(feature_path, capsys):
    subset = select(feature_path)

    def printed() -> str:
        capsys.readouterr()
        arguments = ["--feature_path", feature_path, "--subset_ids", subset, "--output_dir", feature_path.parent / "r"]
        report.main([*map(str, arguments), "--device", "cpu"])
        return capsys.readouterr().out

    assert "chosen from" not in printed()
    table = np.load(feature_path)
    table[7, 0] += 1
    np.save(feature_path, table)
    assert f"{subset} was chosen from other features than these" in printed()


@pytest.mark.parametrize("option", ["--labeled_ids", "--exclude_ids"])
def test_choosing_beside_a_subset_of_another_pool_is_said(option, feature_path, capsys):
    before = select(feature_path)
    select(feature_path, option, before)
    assert "other features" not in capsys.readouterr().out
    np.save(feature_path, mixture(N, D, clusters=2, spread=0.4))
    select(feature_path, option, before)
    assert f"{before} was chosen from other features than these" in capsys.readouterr().out


def test_labels_that_were_filled_in_and_another_precision_are_the_same_features(feature_path):
    subset = select(feature_path)
    table = np.load(feature_path).astype(np.float64)
    table[:, -1] = 9
    assert note(subset, features=table[:, :-1]) is None
    assert "other features" in note(subset, features=table)


def test_a_subset_that_was_edited_is_said(feature_path):
    subset = select(feature_path)
    subset.write_text(json.dumps([*json.loads(subset.read_text())[:-1]]))
    assert "was changed since it was chosen" in note(subset)


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "{}", '{"indices": 1, "pool": 2}', "\x00"])
def test_what_is_no_provenance_is_said_and_no_error(content, feature_path, pool):
    subset = select(feature_path)
    provenance_file(subset).write_text(content)
    assert "is not the provenance of a subset" in note(subset)
    (said,) = notes_of_trainer(subset, pool)
    assert "is not the provenance of a subset" in said


def test_a_broken_list_of_images_does_not_keep_from_choosing(feature_path):
    feature_path.with_name("insects_train_paths.json").write_text("{}")
    assert read_provenance(select(feature_path))["pool"]["names"] is None


def test_of_many_features_some_blocks_are_read(monkeypatch):
    monkeypatch.setattr(subset_file, "ROWS_PER_BLOCK", 4)
    monkeypatch.setattr(subset_file, "MOST_BLOCKS", 3)
    features = np.random.RandomState(0).randn(100, D).astype(np.float32)
    before = features_checksum(features)
    changed = []
    for row in range(100):
        other = features.copy()
        other[row] += 1
        changed += [row] * (features_checksum(other) != before)
    assert changed == [*range(4), *range(48, 52), *range(96, 100)]
    small = features[:11]
    assert len({features_checksum(small + np.eye(11, D, -row)) for row in range(11)}) == 11


def test_a_copy_without_git_has_the_version_of_the_project(tmp_path):
    assert project_version(tmp_path) == VERSION
    (tmp_path / "broken" / ".git").mkdir(parents=True)
    assert project_version(tmp_path / "broken") == VERSION


def test_the_trainer_says_where_the_subset_was_chosen_by_images_prepared_in_another_way(feature_path, pool):
    described = {"model": "vit_small_patch16_dinov3", "weights": "w.pth", "feature": "[CLS]", "d": D, "input_size": 32,
                 "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bicubic"}  # fmt: skip
    feature_path.with_suffix(".json").write_text(json.dumps(described))
    assert not notes_of_trainer(select(feature_path), pool)
    feature_path.with_suffix(".json").write_text(json.dumps({**described, "mean": [0.5, 0.5, 0.5]}))
    (said,) = notes_of_trainer(select(feature_path), pool)
    assert "vit_small_patch16_dinov3 with mean [0.5, 0.5, 0.5]; this run has mean [0.485" in said
