import json
from pathlib import Path

import numpy as np
import pytest
from conftest import mixture

from common.errors import InputError
from experiments import emd_along_optimisation


@pytest.fixture
def feature_path(tmp_path: Path) -> Path:
    np.save(tmp_path / "mixture_train.npy", mixture(400, 16, clusters=20, spread=0.3))
    return tmp_path / "mixture_train.npy"


def run(feature_path: Path, *options: object) -> Path:
    given = ["--feature_path", feature_path, "--output_dir", feature_path.parent / "emd", "--device", "cpu", *options]
    return emd_along_optimisation.main([str(option) for option in given])


def test_distances_are_kept_for_every_budget_seed_and_tenth_iteration(feature_path):
    picture = run(feature_path, "--percent", 5, 10, "--seeds", 0, 1, 2, "--max_iter", 25)
    content = json.loads(picture.with_suffix(".json").read_text())
    assert content["iterations"] == [0, 10, 20, 25]
    assert {k: np.shape(d["images"]) for k, d in content["distances"].items()} == {"20": (3, 4), "40": (3, 4)}
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_the_curve_starts_at_the_distance_of_the_random_samples_it_starts_from(feature_path):
    picture = run(feature_path, "--percent", 5, "--seeds", 0, 1, "--max_iter", 10)
    distances = json.loads(picture.with_suffix(".json").read_text())["distances"]["20"]
    start = [images[0] for images in distances["images"]]
    assert start == pytest.approx(distances["random"], abs=1e-6)


def test_without_a_budget_it_is_2_percent(feature_path):
    picture = run(feature_path, "--seeds", 0, "--max_iter", 1)
    assert list(json.loads(picture.with_suffix(".json").read_text())["distances"]) == ["8"]


def test_a_pool_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        run(tmp_path / "gone.npy")
