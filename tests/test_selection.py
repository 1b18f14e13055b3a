"""The selection scripts against the published implementation's results, kept in golden_subsets.json."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, mixture, pool_of

from common.errors import InputError
from common.processes import Processes
from data_selection.activeft import reference, select, selection
from data_selection.activeft.selection import Settings
from data_selection.sample_tools.subset_command import budget_of

GOLDEN = json.loads(Path(__file__).with_name("golden_subsets.json").read_text())
SCRIPTS = Path(__file__).resolve().parents[1] / "data_selection" / "sample_tools"


def golden_pool() -> np.ndarray:
    """(1000, 32 + label), the pool of the golden subsets."""
    return mixture(1000, 32, clusters=20, spread=0.5)


@pytest.fixture
def feature_path(tmp_path: Path) -> Path:
    np.save(tmp_path / "mixture_train.npy", golden_pool())
    return tmp_path / "mixture_train.npy"


def run_main(script: str, *options: object) -> Path:
    return importlib.import_module(f"data_selection.sample_tools.{script}").main([str(option) for option in options])


def two_processes(script: str, *options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    return subprocess.run(
        [*command, *map(str, options)],
        cwd=SCRIPTS,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_scripts_choose_the_published_subset(case, feature_path, capsys):
    path = run_main(case["script"], "--feature_path", feature_path, "--output_dir", feature_path.parent, *case["args"])
    assert json.loads(path.read_text()) == case["ids"]
    printed = float(capsys.readouterr().out.split(" at iteration")[0].rsplit(maxsplit=1)[1])
    assert printed == pytest.approx(case["final_loss"], rel=1e-4)


def test_two_processes_of_torchrun_choose_the_same_subset(feature_path):
    output = feature_path.parent / "two"
    options = ["--feature_path", feature_path, "--output_dir", output, *GOLDEN[0]["args"]]
    done = two_processes("ActiveFT_CIFAR.py", *options)
    assert done.returncode == 0, done.stderr
    (path,) = output.glob("*.json")
    assert json.loads(path.read_text()) == GOLDEN[0]["ids"]


def test_two_processes_choose_every_golden_subset_and_what_one_does_with_batches_and_labels(feature_path):
    output = feature_path.parent / "two"
    runs = [(case["script"], ["--feature_path", feature_path, *case["args"]]) for case in GOLDEN]
    batches = ["--feature_path", feature_path, "--percent", 15, "--batch_size", 300, "--max_iter", 10]
    (feature_path.parent / "labeled.json").write_text(json.dumps([3, 500, 999]))
    known = [
        "--labeled_ids",
        feature_path.parent / "labeled.json",
        "--exclude_ids",
        feature_path.parent / "labeled.json",
    ]
    labels = ["--feature_path", feature_path, "--percent", 3, "--init", "fps", "--max_iter", 10, *known]
    runs += [("ActiveFT_ImageNet", batches), ("ActiveFT_CIFAR", labels)]
    program = feature_path.with_name("runs.py")
    arguments = [(script, [str(option) for option in options]) for script, options in runs]
    program.write_text(f"""if True:
        import sys
        from contextlib import nullcontext
        sys.path.insert(0, {str(ROOT)!r})
        from data_selection.sample_tools import ActiveFT_CIFAR, ActiveFT_ImageNet, ActiveFT_options as command
        with command.launched("cpu") as processes:  # they meet once, for all runs
            command.launched = lambda device: nullcontext(processes)
            for script, options in {arguments!r}:
                sys.modules[f"data_selection.sample_tools.{{script}}"].main([*options, "--output_dir", {str(output)!r}])
    """)
    done = two_processes(str(program))
    assert done.returncode == 0, done.stderr
    alone = [run_main(script, *options, "--output_dir", feature_path.parent) for script, options in runs[-2:]]
    expected = sorted([*(case["ids"] for case in GOLDEN), *(json.loads(path.read_text()) for path in alone)])
    assert sorted(json.loads(path.read_text()) for path in output.glob("*.json")) == expected


def test_a_bad_row_of_one_process_ends_both(feature_path):
    table = golden_pool()
    table[900, 3] = np.nan
    np.save(feature_path, table)
    done = two_processes("ActiveFT_CIFAR.py", "--feature_path", feature_path, "--output_dir", feature_path.parent)
    assert done.returncode != 0
    assert "error: row 900 of the features is not finite" in done.stderr


def test_a_pool_smaller_than_the_number_of_processes_is_an_error():
    with pytest.raises(InputError, match="2 processes cannot share a pool of 1 samples"):
        select(np.ones((1, 4), np.float32), 1, processes=Processes(torch.device("cpu"), 0, size=2))


def test_processes_hold_the_drawn_rows_between_them():
    def drawn(part: slice) -> np.ndarray:
        return next(Settings(batch_size=50).batches(1003, part)) + part.start

    parts = [drawn(Processes(rank=rank, size=4).part(1003)) for rank in range(4)]
    assert np.array_equal(np.concatenate(parts), drawn(slice(0, 1003)))
    assert len(np.unique(np.concatenate(parts))) == 50


def test_a_larger_pool_gives_the_loss_of_the_dense_reference():
    features = torch.from_numpy(np.random.RandomState(1).randn(2000, 24).astype(np.float32))
    pool = pool_of(F.normalize(features, dim=1))
    dense = reference.optimise(pool, 150, Settings(max_iter=40))  # more than FEW_PROTOTYPES: bounds and shortlists
    ours = select(features, 150, max_iter=40, device="cpu")
    assert ours.losses == pytest.approx(dense.losses, rel=1e-5)
    assert len(set(ours.indices) & set(dense.indices)) >= 0.98 * 150
    assert ours.indices == sorted(set(ours.indices))


@pytest.mark.parametrize(
    "settings",
    [
        {"scheduler": "cosine", "lr": 0.003},
        {"init": "fps", "distance": "cosine", "temperature": 0.2},
        {"batch_size": 300, "seed": 4},
        {"balance": 0.0},
    ],
)
def test_every_setting_does_to_the_fast_form_what_it_does_to_the_reference(settings):
    pool = pool_of(F.normalize(torch.from_numpy(golden_pool()[:, :-1]), dim=1), labeled=(3, 500), excluded=(7,))
    ours, dense = (form.optimise(pool, 140, Settings(max_iter=25, **settings)) for form in (selection, reference))
    assert ours.losses == pytest.approx(dense.losses, rel=1e-5)
    assert ours.indices == dense.indices and not {3, 500, 7} & set(ours.indices)


def test_the_reference_option_chooses_the_published_subset(feature_path, capsys):
    case = GOLDEN[0]
    options = ["--feature_path", feature_path, "--output_dir", feature_path.parent, *case["args"], "--reference"]
    assert json.loads(run_main(case["script"], *options).read_text()) == case["ids"]
    assert "GB of memory" not in capsys.readouterr().out  # that is said of the fast form


def test_the_reference_refuses_a_pool_whose_similarities_would_not_fit(feature_path, monkeypatch):
    monkeypatch.setattr(reference, "MOST_SIMILARITIES", 1000 * 20 - 1)
    with pytest.raises(InputError, match="all 1000 x 20 similarities.*leave --reference out"):
        run_main("ActiveFT_CIFAR", "--feature_path", feature_path, "--output_dir", feature_path.parent, "--reference")
    assert not list(feature_path.parent.glob("*.json"))


def test_slice_and_float16_features_change_only_rounding(feature_path):
    features = golden_pool()[:, :-1]
    whole = select(features, 140, max_iter=5, device="cpu")
    assert select(features, 140, max_iter=5, chunk=7, device="cpu").indices == whole.indices
    half = select(features.astype(np.float16), 140, max_iter=5, device="cpu")
    assert half.losses == pytest.approx(whole.losses, rel=1e-3)


@pytest.mark.parametrize(
    ("n", "percent", "k"), [(50000, "2.3", 1150), (50000, "2", 1000), (1281167, "1", 12811), (100, "100", 100)]
)
def test_budget_is_rounded_down_without_float_error(n, percent, k):
    assert budget_of(n, Fraction(percent)) == k


def test_budget_below_one_sample_is_an_error():
    with pytest.raises(InputError, match="less than one"):
        budget_of(10, Fraction("1"))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "_temp_0.07_lr_0.001000_scheduler_none_iter_1_sampleNum_20.json"),
        (["--balance", 0.5], "_temp_0.07_lr_0.001000_scheduler_none_br_0.50_iter_1_sampleNum_20.json"),
        (["--seed", 3], "_temp_0.07_lr_0.001000_scheduler_none_iter_1_sampleNum_20_seed_3.json"),
        (["--init", "fps"], "_temp_0.07_lr_0.001000_scheduler_none_iter_1_sampleNum_20_init_fps.json"),
        (["--temperature", 0.075], "_temp_0.07_lr_0.001000_scheduler_none_iter_1_sampleNum_20_temp_0.075.json"),
    ],
)
def test_file_name_is_the_published_one_and_says_what_it_left_out(options, name, feature_path):
    options = ["--feature_path", feature_path, "--output_dir", feature_path.parent, "--max_iter", 1, *options]
    assert run_main("ActiveFT_CIFAR", *options).name == f"mixture_train_ActiveFT_euclidean{name}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table[0], "shape"),
        (lambda table: table.astype(np.int64), "int64"),
        (lambda table: np.where(np.arange(1000)[:, None] == 7, 0, table), "row 7 of the features is all zero"),
        (lambda table: np.where(np.arange(33) == 5, np.inf, table), "row 0 of the features is not finite"),
        (lambda table: np.where(np.arange(33) == 32, np.nan, table), "label"),
        (lambda table: table[:, :-1], "the last column is the label, and that of row 0 is"),
    ],
)
def test_bad_feature_files_give_one_clear_error(change, message, feature_path):
    np.save(feature_path, change(golden_pool()))
    with pytest.raises(InputError, match=message):
        run_main("ActiveFT_CIFAR", "--feature_path", feature_path, "--output_dir", feature_path.parent)


@pytest.mark.parametrize(
    "options",
    [
        ["--percent", 0],
        ["--percent", "x"],
        ["--percent", "1e99999999"],
        ["--filename", ""],
        ["--temperature", 0],
        ["--max_iter", 0],
        ["--init", "no"],
        ["--lr", "nan"],
    ],
)
def test_bad_options_give_one_clear_error(options, feature_path):
    with pytest.raises(InputError, match=options[0]):
        run_main("ActiveFT_CIFAR", "--feature_path", feature_path, "--output_dir", feature_path.parent, *options)


@pytest.mark.parametrize("by", [[], ["--reference"]])
def test_an_optimisation_that_diverges_is_one_clear_error_and_no_subset(by, feature_path):
    with pytest.raises(InputError, match="the optimisation diverged: temperature 1e-40 is too low"):
        run_main("ActiveFT_CIFAR", "--feature_path", feature_path, "--output_dir", feature_path.parent, "--number", 5,
                 "--temperature", 1e-40, "--max_iter", 3, *by)  # fmt: skip
    assert not list(feature_path.parent.glob("*.json"))


def test_labels_are_not_taken_for_a_feature_where_the_description_tells(feature_path):
    described = {"model": "vit", "weights": "w", "feature": "CLS", "d": 32, "input_size": 224,
                 "interpolation": "bicubic", "mean": [0, 0, 0], "std": [1, 1, 1]}  # fmt: skip
    feature_path.with_suffix(".json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="has 32 features and a label: leave out --no-labels"):
        run_main("ActiveFT_CIFAR", "--feature_path", feature_path, "--output_dir", feature_path.parent, "--no-labels")


def test_features_without_a_label_column_give_the_subset_of_those_with_one(feature_path):
    case = GOLDEN[0]
    np.save(feature_path, golden_pool()[:, :-1])
    options = ["--feature_path", feature_path, "--output_dir", feature_path.parent, *case["args"], "--no-labels"]
    assert json.loads(run_main(case["script"], *options).read_text()) == case["ids"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": "kmeans"}, "init 'kmeans' must be random or fps"),
        ({"distance": "l1"}, "distance 'l1' must be euclidean or cosine"),
        ({"scheduler": "step"}, "scheduler 'step' must be none or cosine"),
        ({"temperature": -1}, "temperature -1 must be a number above 0"),
        ({"lr": float("nan")}, "lr nan must be a number above 0"),
        ({"balance": -1}, "balance -1 must be a number >= 0"),
        ({"max_iter": None}, "max_iter None must be a whole number >= 1"),
        ({"batch_size": 1.5}, "batch_size 1.5 must be None or a whole number >= 1"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        select(golden_pool()[:, :-1], 5, **settings)


def test_numbers_and_indices_of_numpy_and_torch_are_as_good_as_pythons():
    features = golden_pool()[:, :-1]
    plain = select(features, 5, seed=3, labeled=[1, 2], excluded=[7], max_iter=5).indices
    tensor = torch.from_numpy(features).requires_grad_()
    others = {"labeled": torch.tensor([1, 2]), "excluded": {7}}
    assert select(tensor, np.int64(5), seed=np.int64(3), **others, max_iter=5).indices == plain


@pytest.mark.parametrize(
    ("features", "given", "message"),
    [
        ([[1.0, 2.0]], {}, r"features are a list: give an array or a tensor \(n, d\)"),
        (np.eye(3), {"excluded": np.array([True, False, False])}, "excluded holds torch.bool: give the indices"),
        (np.eye(3), {"labeled": [0.0]}, "labeled holds torch.float32: give the indices"),
    ],
)
def test_what_is_no_array_or_no_index_is_refused(features, given, message):
    with pytest.raises(InputError, match=message):
        select(features, 1, **given)


def test_files_of_the_whole_pool_and_of_batches_of_a_large_one_have_different_names():
    from data_selection.sample_tools.ActiveFT_options import subset_name

    name = lambda n, batch_size: subset_name(  # noqa: E731
        argparse.Namespace(feature_path="f.npy", reference=False, **{**vars(Settings()), "batch_size": batch_size}),
        n,
        60,
    )
    assert name(100_000, None) == name(100_000, 100_000)  # which are the same
    assert name(100_001, None) == f"{name(100_001, 100_000)}_batch_all"
