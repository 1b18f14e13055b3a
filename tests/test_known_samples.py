"""Labelled samples, excluded samples and nested budgets, in ActiveFT and all baselines."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import mixture, write_image_paths

from common.errors import InputError
from data_selection.activeft import reference, select
from data_selection.activeft.pool import Candidates
from data_selection.activeft.prototypes import random_samples
from data_selection.sample_tools import ActiveFT_CIFAR, baseline

METHODS = ("activeft", *baseline.METHODS)


@pytest.fixture
def feature_path(tmp_path: Path) -> Path:
    np.save(tmp_path / "pool_train.npy", mixture(200, 8, clusters=6, spread=0.5))
    return tmp_path / "pool_train.npy"


def run(method: str, feature_path: Path, *options: object) -> Path:
    common = ["--feature_path", feature_path, "--output_dir", feature_path.parent / "out", "--device", "cpu"]
    if method == "activeft":
        return ActiveFT_CIFAR.main([str(option) for option in (*common, "--max_iter", 20, *options)])
    return baseline.main([str(option) for option in ("--method", method, *common, *options)])


def write_ids(feature_path: Path, name: str, ids: object) -> Path:
    path = feature_path.with_name(name)
    path.write_text(json.dumps(ids))
    return path


@pytest.mark.parametrize("method", METHODS)
def test_labelled_and_excluded_samples_are_never_chosen(method, feature_path):
    free = json.loads(run(method, feature_path, "--percent", 5).read_text())
    labeled = write_ids(feature_path, "labeled.json", free[:5])
    excluded = write_ids(feature_path, "excluded.json", free[3:])
    path = run(method, feature_path, "--percent", 5, "--labeled_ids", labeled, "--exclude_ids", excluded)
    chosen = json.loads(path.read_text())
    assert len(chosen) == 10 and not set(chosen) & set(free)


@pytest.mark.parametrize("method", METHODS)
def test_nested_budgets_contain_each_other(method, feature_path):
    path = run(method, feature_path, "--nested", "2,5,10")
    subsets = sorted((json.loads(p.read_text()) for p in path.parent.glob("*.json")), key=len)
    assert [len(set(subset)) for subset in subsets] == [4, 10, 20]
    assert set(subsets[0]) < set(subsets[1]) < set(subsets[2])
    assert json.loads(path.read_text()) == subsets[2] == sorted(subsets[2])
    alone = run(method, feature_path, "--percent", 2)
    assert json.loads(alone.read_text()) == subsets[0]
    assert run(method, feature_path, "--percent", 10).name != path.name


def test_labelled_samples_are_fixed_prototypes_of_the_objective():
    features = F.normalize(torch.randn(300, 10, generator=torch.Generator().manual_seed(0)), dim=1)
    labeled = [5, 80, 200, 201]
    theta = features[random_samples(Candidates(300, tuple(labeled)), 12, 0)].clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.001)
    losses = []
    for _ in range(30):
        loss = reference.loss(features, torch.cat([theta, features[labeled]]), tau=0.07, balance=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ours = select(features, 12, max_iter=30, labeled=labeled, device="cpu")
    assert ours.losses == pytest.approx(losses, rel=1e-5)
    assert torch.allclose(ours.prototypes, F.normalize(theta.detach(), dim=1), atol=1e-5)


def test_activeft_stays_away_from_a_labelled_cluster():
    axis = torch.repeat_interleave(torch.arange(4), 25)
    noise = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    features = torch.eye(4)[axis] + 0.1 * noise
    labeled = list(range(25))  # all of the first cluster
    chosen = select(features, 3, init="fps", labeled=labeled, max_iter=50, device="cpu").indices
    assert axis[chosen].tolist() == [1, 2, 3]


def test_a_random_draw_beside_labelled_samples_is_not_a_shift_of_the_first():
    first = random_samples(Candidates(10_000), 100, seed=0)
    second = random_samples(Candidates(10_000, labeled=tuple(first[:5])), 100, seed=0)
    assert sum(abs(a - b) <= 5 for a, b in zip(first, second, strict=True)) < 5  # by chance none


def test_file_names_tell_apart_what_was_known(feature_path):
    some = write_ids(feature_path, "some.json", [1, 2])
    others = write_ids(feature_path, "others.json", [1, 3])
    options = [[], ["--labeled_ids", some], ["--labeled_ids", others], ["--exclude_ids", some]]
    names = {run("activeft", feature_path, "--percent", 5, *known).name for known in options}
    assert len(names) == len(options)


def test_many_nested_budgets_fit_into_file_names(feature_path):
    path = run("random", feature_path, "--nested", ",".join(map(str, range(1, 41))))
    assert len(list(path.parent.glob("*.json"))) == 40


@pytest.mark.parametrize("method", ["activeft", "random"])
def test_a_file_name_may_hold_a_folder(method, feature_path):
    path = run(method, feature_path, "--percent", 5, "--filename", "tries/first.json")
    assert path == feature_path.parent / "out" / "tries" / "first.json" and path.is_file()


def test_paths_of_chosen_images_keep_the_bytes_of_their_names(feature_path):
    names = [f"caf\udce9 {index}.png" for index in range(200)]  # not UTF-8: an \xe9 of Latin 1
    write_image_paths(feature_path, feature_path.parent, [str(feature_path.parent / name) for name in names])
    path = run("random", feature_path, "--percent", 1, "--export_paths")
    listed = path.with_name(f"{path.stem}_paths.txt").read_bytes().splitlines()
    assert listed == [os.fsencode(feature_path.parent / names[index]) for index in json.loads(path.read_text())]


def test_the_loss_of_every_iteration_is_kept_beside_the_subset(feature_path):
    path = run("activeft", feature_path, "--percent", 5)
    losses = np.loadtxt(path.with_name(f"{path.stem}_losses.txt"))
    assert losses.shape == (20,) and losses[-1] < losses[0]


def test_observers_see_the_prototypes_before_the_first_step_and_after_each(feature_path):
    seen = []
    features = np.load(feature_path)[:, :-1]
    result = select(features, 5, max_iter=3, device="cpu", observe=lambda step, rows: seen.append((step, rows.clone())))
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    start = F.normalize(torch.from_numpy(features[random_samples(Candidates(200), 5, 0)]), dim=1)
    assert torch.allclose(seen[0][1], start, atol=1e-6)
    assert torch.equal(seen[-1][1], result.prototypes) and not torch.allclose(seen[1][1], seen[0][1], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "--seed: -1 must be at least 0"),
        (["--seed", "4294967296"], "--seed: 4294967296 must be at most 4294967295"),
        (["--nested", "5,2"], "ascending"),
        (["--nested", "5,5"], "ascending"),
        (["--nested", "2,x"], "--nested"),
        (["--nested", "5,5.1"], "two budgets are both 10 of 200"),
        (["--nested", "0.1,5"], "a budget of 0.1% of 200 samples is less than one sample: at least 0.5% is needed"),
        (["--nested", "2,5", "--percent", "2"], "not allowed with"),
        (["--nested", "2,5", "--filename", "one.json"], "leave one of them out"),
        (["--labeled_ids", "gone.json"], "gone.json"),
        (["--exclude_ids", ""], "cannot read the --exclude_ids file"),
    ],
)
@pytest.mark.parametrize("method", ["activeft", "random"])
def test_bad_options_give_one_clear_error_and_write_nothing(method, options, message, feature_path):
    with pytest.raises(InputError, match=message):
        run(method, feature_path, *options)
    assert not (feature_path.parent / "out").exists()


def test_no_file_that_is_read_is_overwritten(feature_path):
    ids = write_ids(feature_path, "ids.json", [3, 4])
    features, here = feature_path.read_bytes(), ["--output_dir", feature_path.parent]
    for name, options in (
        (feature_path.name, []),
        ("ids.json", ["--labeled_ids", ids]),
        ("ids.json", ["--exclude_ids", ids]),
    ):
        with pytest.raises(InputError, match=f"{name} is read by this command, which would overwrite it"):
            run("random", feature_path, "--filename", name, *options, *here)
    assert feature_path.read_bytes() == features and json.loads(Path(ids).read_text()) == [3, 4]


def test_names_that_no_file_can_have_are_refused_before_the_work(feature_path):
    (feature_path.parent / "folder.json").mkdir()
    for name, message in (("folder.json", "it is a folder"), ("x" * 240 + ".json", "is too long: give")):
        with pytest.raises(InputError, match=message):
            run("activeft", feature_path, "--filename", name, "--output_dir", feature_path.parent)
    assert not list(feature_path.parent.glob("*_losses.txt"))


@pytest.mark.parametrize(
    ("ids", "message"), [([200], "0 to 199"), ([1, 1], "2 times"), (["1"], "whole numbers"), (7, "not a JSON list")]
)
@pytest.mark.parametrize("option", ["--labeled_ids", "--exclude_ids"])
def test_bad_lists_give_one_clear_error(option, ids, message, feature_path):
    with pytest.raises(InputError, match=f"{option} .*{message}"):
        run("activeft", feature_path, option, write_ids(feature_path, "ids.json", ids))


def test_a_pool_of_which_nothing_is_left_is_an_error(feature_path):
    labeled = write_ids(feature_path, "labeled.json", list(range(200)))
    with pytest.raises(InputError, match="nothing is left to choose: all 200 samples are labelled or excluded"):
        run("random", feature_path, "--labeled_ids", labeled)


def test_excluded_samples_are_not_taken_even_where_they_equal_a_prototype():
    half = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    chosen = select(torch.cat([half, half]), 20, excluded=range(50), max_iter=1, device="cpu").indices
    assert len(chosen) == 20 and min(chosen) >= 50


@pytest.mark.parametrize("budget", [True, 1.5, None])
def test_a_budget_is_a_whole_number_of_any_kind(budget):
    rows = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    assert len(select(rows, np.int64(3), max_iter=1, device="cpu").indices) == 3
    with pytest.raises(InputError, match="a budget is a whole number of samples, not"):
        select(rows, budget)


def test_the_largest_of_nested_budgets_must_fit_too(feature_path):
    excluded = write_ids(feature_path, "excluded.json", list(range(150)))
    with pytest.raises(InputError, match="it must be from 1 to 50"):
        run("random", feature_path, "--nested", "5,30", "--exclude_ids", excluded)
    assert not (feature_path.parent / "out").exists()


def test_a_budget_beyond_what_is_left_is_an_error(feature_path):
    excluded = write_ids(feature_path, "excluded.json", list(range(150)))
    with pytest.raises(InputError, match="of which 150 are labelled or excluded: it must be from 1 to 50"):
        run("kmeans", feature_path, "--percent", 30, "--exclude_ids", excluded)
