"""The paper's table: what is run, what is not run again, what is marked and said."""

import importlib.util
import json
import math
import multiprocessing
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY_VIT_OPTIONS
from test_errors_end import HOLDER, processes_of

from common.errors import InputError
from common.readouts import fit_readout
from common.subset_file import read_provenance
from deit.main import main as finetune
from experiments.command_queue import PRELOADED, Job, is_finished, prepare, run_jobs, write_record
from experiments.paper_table import main, parse_args, slots_for
from experiments.plots import plot_accuracies
from experiments.protocols import PROTOCOLS, PUBLISHED_COLUMNS, PUBLISHED_ROWS, published_accuracy
from experiments.results import Cell, Comparison, Result, labelled_features
from experiments.table import columns_of, differences_of, markdown

HIGH, LOW, WIDE = [90.0, 91.0, 92.0], [70.0, 71.0, 72.0], [60.0, 80.0, 120.0]


def results_of(columns: dict[float, dict[str, list[float]]], readout: str = "finetuned") -> list[Result]:
    return [
        Result(Cell(readout, method, percent, seed), acc1, images=10, seconds=1.0, commands=("python x.py",))
        for percent, column in columns.items()
        for method, accuracies in column.items()
        for seed, acc1 in enumerate(accuracies)
    ]


def table_of(columns: dict[float, dict[str, list[float]]], dataset: str = "digits", seeds: int = 3, **changes) -> str:
    return markdown_of(results_of(columns), dataset, seeds, **changes)


def markdown_of(results: list[Result], dataset: str, seeds: int = 3, **changes) -> str:
    protocol = replace(PROTOCOLS[dataset], seeds=tuple(range(seeds)), finetuning="--epochs 1", **changes)
    return markdown(protocol, results)


def row_of(table: str, method: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {method} |"))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


# Table


def test_a_cell_shows_mean_spread_marks_and_what_is_published():
    table = table_of({0.5: {"random": LOW, "activeft": HIGH}}, dataset="CIFAR10")
    assert row_of(table, "ActiveFT") == ["**91.0 ± 1.0** ▲ (85.0 ± 0.4)"]
    assert row_of(table, "Random") == ["71.0 ± 1.0 (77.3 ± 2.6)"]


def test_methods_that_are_only_published_have_a_row():
    table = table_of({0.5: {"activeft": HIGH}, 1: {"activeft": HIGH}}, dataset="CIFAR10")
    assert row_of(table, "ALFA-Mix") == ["", "(83.4 ± 0.3)"]
    assert "ALFA-Mix" not in table_of({1: {"activeft": HIGH}})


def test_a_cell_that_is_not_complete_says_how_many_seeds_it_rests_on():
    assert row_of(table_of({1: {"activeft": HIGH[:2]}}), "ActiveFT") == ["**90.5 ± 0.7** [2 of 3 seeds]"]
    assert row_of(table_of({1: {"activeft": HIGH[:1]}}), "ActiveFT") == ["**90.0** [1 of 3 seeds]"]


def test_the_table_says_where_activeft_is_not_the_best():
    table = table_of({1: {"random": LOW, "kmeans": HIGH, "activeft": LOW}, 2: {"random": LOW, "activeft": HIGH}})
    assert "In 1 of 2 columns no method has a higher mean than ActiveFT. In the others:" in table
    # Three comparisons with the best of their columns, all with p = 1.648e-05.
    assert "- finetuned, 1%: K-Means 91.0, ActiveFT 71.0 (significant, p = 4.9e-05)" in table
    assert "ActiveFT is not significantly above Random in: finetuned, 1%." in table


def test_the_table_says_what_its_marks_rest_on():
    table = table_of({1: {"activeft": HIGH}})
    assert "Welch's t-test" in table and "3 seeds" in table and "`--epochs 1`" in table
    assert "corrected by Holm's method" in table and "all comparisons with Random, at all budgets together" in table


def test_the_ranking_names_the_best_first_and_those_without_a_rank_last():
    table = table_of({1: {"random": LOW, "fds": HIGH, "activeft": WIDE}, 2: {"random": LOW, "activeft": HIGH}})
    assert "Mean rank over the 2 budgets: ActiveFT 1.0, Random 2.0, FDS -." in table
    assert "Mean rank" not in table_of({1: {"random": LOW, "activeft": HIGH}})


def test_recipe_and_linear_readout_of_the_same_labels_are_subtracted_seed_by_seed():
    few = results_of({1: {"random": [60.0, 70.0, 80.0], "activeft": [90.0]}}, "few-labels")
    linear = results_of({1: {"random": [59.0, 68.5, 79.2], "activeft": [91.0, 92.0]}}, "linear")
    assert differences_of([*few, *linear], "few-labels", "linear")[1]["random"] == pytest.approx([1, 1.5, 0.8])
    block = markdown_of([*linear, *few], "digits").split(" minus ")[1]
    assert row_of(block, "Random") == ["+1.1 ± 0.4 ▲"]
    assert row_of(block, "ActiveFT") == ["-1.0 [1 of 3 seeds]"]
    assert "paired t-test" in block and "`--recipe few-labels " in block


def test_readouts_are_not_compared_where_one_of_them_is_missing():
    assert " minus " not in markdown_of(results_of({1: {"random": LOW}}, "few-labels"), "digits")


def test_budgets_in_images_are_told_as_such_and_stand_beside_no_published_percent():
    table = table_of({1: {"activeft": HIGH, "random": LOW}}, dataset="CIFAR10", numbers=(1,))
    assert "|  | 1 images |" in table and row_of(table, "ActiveFT") == ["**91.0 ± 1.0** ▲"]
    assert "published," not in table


def test_a_folder_that_is_called_cifar10_is_not_compared_with_what_is_published_of_it():
    table = table_of({0.5: {"activeft": HIGH}}, dataset="Folder", data_path=Path("/pools/CIFAR10"))
    assert row_of(table, "ActiveFT") == ["**91.0 ± 1.0**"] and "published" not in table


def test_what_is_measured_of_bilaf_stands_beside_what_is_published():
    table = table_of({1: {"bilaf": HIGH}}, dataset="CIFAR10")
    assert row_of(table, "BiLAF") == ["**91.0 ± 1.0** (89.2 ± 0.6)"] and table.count("| BiLAF |") == 1


def test_the_picture_takes_methods_with_holes_and_single_seeds(tmp_path):
    tables = {"finetuned": {1: {"random": LOW, "activeft": [90.0]}, 2: {"activeft": HIGH}}, "knn": {1: {"random": LOW}}}
    assert plot_accuracies(PROTOCOLS["digits"], tables, tmp_path / "accuracy.png").stat().st_size > 1000


def test_accuracies_are_grouped_by_readout_and_ascending_budget():
    results = [
        Result(Cell("knn", "random", percent, seed), percent + seed, 1, 1.0, ())
        for percent in (5, 1)
        for seed in (1, 0)
    ]
    assert columns_of(results) == {"knn": {1: {"random": [1, 2]}, 5: {"random": [5, 6]}}}
    assert list(columns_of(results)["knn"]) == [1, 5]


# Published numbers


@pytest.mark.parametrize(
    ("dataset", "readout", "method", "percent", "expected"),
    [
        ("CIFAR10", "finetuned", "activeft", 0.5, (85.0, 0.4)),
        ("CIFAR100", "finetuned", "kmeans", 5, (42.4, 1.0)),
        ("CIFAR100", "finetuned", "TA-VAAL", 2, (34.7, 0.7)),
        ("ImageNet", "finetuned", "fds", 1, (26.7, 0.6)),
        ("ImageNet", "finetuned", "activeft", 5, (65.3, 0.1)),
        ("ADE20K", "finetuned", "random", 10, (20.27, 1.68)),
        ("ADE20K", "finetuned", "kmeans", 5, (13.62, None)),
        ("ADE20K", "finetuned", "coreset", 5, None),
        ("ADE20K", "finetuned", "bilaf", 15, (25.71, None)),
        ("CIFAR10", "finetuned", "bilaf", 0.5, (81.0, 1.2)),
        ("CIFAR100", "finetuned", "bilaf", 10, (73.7, 0.5)),
        ("ImageNet", "finetuned", "bilaf", 1, (50.8, 0.4)),
        ("ImageNet", "finetuned", "bilaf", 5, (66.2, 0.2)),
        ("CIFAR10", "knn", "bilaf", 2, (88.7, None)),
        ("CIFAR10", "few-labels", "activeft", 0.5, None),
        ("CIFAR10", "finetuned", "coreset", 0.5, None),
        ("CIFAR10", "linear", "activeft", 0.5, (87.8, None)),
        ("CIFAR10", "finetuned", "herding", 1, None),
        ("digits", "finetuned", "random", 1, None),
    ],
)
def test_published_numbers_are_those_of_the_paper(dataset, readout, method, percent, expected):
    assert published_accuracy(dataset, readout, method, percent) == expected


def test_every_published_row_has_all_columns():
    assert {len(row.split()) for row in PUBLISHED_ROWS.values()} == {len(PUBLISHED_COLUMNS)}


# Commands


def commands(*options: str) -> list[str]:
    _, protocol = parse_args(list(options))
    return Comparison(protocol).commands


def test_a_dry_run_prints_the_documented_commands_and_runs_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    main(["--dataset", "CIFAR10", "--methods", "random", "activeft", "--percents", "0.5", "--seeds", "1", "--dry_run",
          "--output_dir", str(out), "--data_path", "/pools", "--finetuning_options=--epochs 300"])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "(cd data_selection && python extract_feature.py --dataset CIFAR10 --data_path /pools --arch vit_small "
        f"--output_dir {out}/features --resume)"
    )
    assert lines[1] == (
        f"(cd data_selection && python sample_tools/baseline.py --method random --feature_path "
        f"{out}/features/CIFAR10_train.npy --percent 0.5 --seed 1 "
        f"--output_dir {out}/0.5_percent/random/seed_1/subset --filename subset.json)"
    )
    assert lines[2] == (
        f"(cd deit && python main.py --data-set CIFAR10SUBSET --data-path /pools --subset_ids "
        f"{out}/0.5_percent/random/seed_1/subset/subset.json --model deit_small_patch16_224 "
        "--resume https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth "
        f"--seed 1 --output_dir {out}/0.5_percent/random/seed_1/finetuned --auto-resume "
        "--total-batch-size 512 --clip-grad 2.0 --eval_interval 50 --save-interval 50 --epochs 300)"
    )
    assert lines[3].endswith("/few-labels --auto-resume --recipe few-labels --eval_interval 50 --save-interval 50)")
    assert lines[4] == lines[0].replace("--data_path /pools", "--data_path /pools --split test").replace(
        f"{out}/features", f"{out}/test_features"
    )
    assert lines[5].startswith("(cd data_selection && python sample_tools/ActiveFT_CIFAR.py --feature_path ")
    assert len(lines) == 8 and not out.exists()


def test_ade20k_is_finetuned_and_probed_by_the_segmenter():
    lines = commands("--dataset", "ADE20K", "--methods", "activeft", "--percents", "5", "--seeds", "0",
                     "--readouts", "finetuned", "linear", "--finetuning_options=--iterations 100")  # fmt: skip
    assert len(lines) == 4
    assert lines[0].startswith("(cd data_selection && python extract_feature.py --dataset ADE20K")
    assert "features/ADE20K_train.npy --percent 5" in lines[1]
    assert lines[2].startswith(
        "(cd segmenter && python main.py --data-path ../data_selection/data/ADEChallengeData2016 "
    )
    assert lines[2].endswith("--auto-resume --batch-size 8 --iterations 100)")
    assert lines[3].endswith("--iterations 100 --probe linear)") and "/linear " in lines[3]


def test_a_folder_in_ade20ks_layout_has_a_table_of_its_own_name_without_published_numbers():
    _, protocol = parse_args(["--dataset", "ADE20K", "--data_path", "/pools/CIFAR10"])
    assert not protocol.published_as
    _, protocol = parse_args(["--dataset", "ADE20K", "--data_path", "/pools/streets"])
    assert protocol.pool == "streets" and protocol.output_dir.name == "streets"
    assert protocol.feature_file("train") == "streets_train.npy"
    assert published_accuracy(protocol.pool, "finetuned", "activeft", 5) is None


def test_options_that_the_segmenter_does_not_take_are_refused_at_once():
    with pytest.raises(InputError, match="unrecognized arguments: --epochs 3"):
        parse_args(["--dataset", "ADE20K", "--finetuning_options=--epochs 3"])
    with pytest.raises(InputError, match="--readouts knn needs images with one label each"):
        parse_args(["--dataset", "ADE20K", "--readouts", "knn"])


def test_the_digits_are_compared_with_every_baseline_at_four_budgets_and_five_seeds():
    lines = commands("--dataset", "digits")
    assert sum("ActiveFT_CIFAR.py" in line for line in lines) == 20
    for method in (
        "random", "fds", "kmeans", "coreset", "herding", "typiclust", "probcover", "maxherding", "bilaf", "usl"
    ):  # fmt: skip
        assert sum(f"--method {method} " in line for line in lines) == (4 if "herding" in method else 20)
    assert sum("main.py" in line for line in lines) == 440
    assert sum("--recipe few-labels" in line for line in lines) == 220
    _, protocol = parse_args(["--dataset", "digits"])
    readouts = [cell.readout for cell in Comparison(protocol).jobs]
    assert [readouts.count(name) for name in ("finetuned", "few-labels", "linear", "knn")] == [220] * 4


def test_any_folder_and_backbone_can_be_compared(pool, backbone):
    folder = ["--dataset", "Folder", "--data_path", str(pool), "--arch", "vit_tiny_patch16_224"]
    lines = commands(*folder, "--pretrained_weights", str(backbone), "--methods", "activeft", "--seeds", "0")
    extraction = f"extract_feature.py --dataset Folder --data_path {pool} --arch vit_tiny_patch16_224"
    assert f"{extraction} --pretrained_weights {backbone} --output_dir ../experiments/output/insects/fea" in lines[0]
    assert f"--data-set FOLDERSUBSET --data-path {pool} " in lines[2]
    assert f"--model vit_tiny_patch16_224 --resume {backbone} " in lines[2]


def test_budgets_in_images_have_folders_of_their_own_and_are_asked_for_by_number():
    lines = commands("--dataset", "CIFAR10", "--methods", "usl", "--numbers", "1000", "--seeds", "3")
    assert "baseline.py --method usl --feature_path " in lines[1] and "--number 1000 --seed 3 " in lines[1]
    assert "/1000_images/usl/seed_3/subset " in lines[1] and "percent" not in lines[1]


def test_bilaf_and_usl_have_their_authors_options_from_the_published_budgets_on():
    options = ("--dataset", "CIFAR10", "--methods", "bilaf", "--seeds", "0", "--readouts", "knn")
    for percent in ("0.5", "5"):
        assert "--core_number 50)" in commands(*options, "--percents", percent)[-1]
    usl = ("--dataset", "CIFAR10", "--methods", "usl", "--seeds", "0", "--readouts", "linear", "--percents", "1")
    assert "--neighbours 400)" in commands(*usl)[-1]
    assert "--core_number" not in commands(*options, "--numbers", "20")[-1]
    assert "--core_number" not in commands(*options, "--percents", "0.05")[-1]


def test_the_recipe_for_few_labels_takes_the_place_of_the_published_options():
    common = ("--methods", "activeft", "--percents", "2", "--seeds", "0", "--few_labels_options=--lr 0.1")
    published, few = commands(*common, "--readouts", "finetuned", "few-labels")[-2:]
    assert " --recipe few-labels " not in published and "--lr 0.1" not in published
    kept = published.split(" --auto-resume ")[0].replace("/finetuned", "/few-labels")
    assert few.split(" --auto-resume ") == [
        kept,
        "--recipe few-labels --eval_interval 50 --save-interval 50 --num_workers 0 --hflip 0 --lr 0.1)",
    ]


def test_options_that_need_the_backbone_are_taken_for_it_is_there():
    lines = commands("--methods", "random", "--readouts", "finetuned", "--finetuning_options=--head-init linear")
    assert "--num_workers 0 --head-init linear)" in lines[-1]


def test_timms_own_weights_do_where_only_frozen_features_are_read_out(pool):
    dinov2 = "vit_small_patch14_dinov2.lvd142m"
    for dataset in ("Folder", "digits"):
        lines = commands(
            "--dataset", dataset, "--data_path", str(pool), "--arch", dinov2, "--readouts", "linear", "knn"
        )
        extraction = next(line for line in lines if "extract_feature.py" in line)
        assert f"--arch {dinov2} " in extraction and "--pretrained_weights" not in extraction


def test_a_folder_may_have_a_test_split_as_the_scripts_take_it(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    assert commands("--dataset", "Folder", "--data_path", str(tmp_path), "--methods", "random")


@pytest.mark.parametrize(
    ("jobs", "given", "threads"),
    [(1, "8", "2"), (2, "8", "1"), (None, "8", "1"), (1, "1", "1"), (1, "4,2", "2"), (1, "1,2", "1"), (1, "", "2")],
)
def test_jobs_share_the_processor_cores(monkeypatch, jobs, given, threads):
    monkeypatch.setattr("experiments.paper_table.worker_count", lambda wanted: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert slots_for(PROTOCOLS["digits"], jobs) == [{"OMP_NUM_THREADS": threads}] * (jobs or 2)


def test_imagenet_is_chosen_from_by_its_own_script():
    lines = commands("--dataset", "ImageNet", "--methods", "activeft", "--percents", "1", "--seeds", "0")
    assert "sample_tools/ActiveFT_ImageNet.py" in lines[1] and "--data-set IMNETSUBSET" in lines[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--percents", "0"], "argument --percents: 0 must be above 0"),
        (["--numbers", "2.5"], "argument --numbers: '2.5' is not a whole number"),
        (["--numbers", "20", "--percents", "2"], "argument --percents: not allowed with argument --numbers"),
        (["--methods", "best"], "argument --methods: invalid choice: 'best'"),
        (["--finetuning_options=--lr much"], "argument --lr: 'much' is not a number"),
        (["--finetuning_options=--lr '1"], "cannot be split into words: No closing quotation"),
        (["--few_labels_options=--lr '1"], "--few_labels_options .* cannot be split into words"),
        (["--few_labels_options=--lr much"], "argument --lr: 'much' is not a number"),
        (["--pretrained_weights", "missing.pth"], "--pretrained_weights missing.pth is not there"),
        (["--arch", "vit_base_patch16_224"], "--arch vit_base_patch16_224 needs --pretrained_weights"),
        (["--arch", "vit_base_patch16_224", "--readouts", "few-labels"], "main.py downloads none"),
        (["--dataset", "ADE20K", "--readouts", "few-labels"], "--readouts few-labels needs images with one label each"),
        (["--dataset", "ADE20K", "--few_labels_options=--lr 1"], "--few_labels_options is for images with one label"),
        (["--few_labels_options=--mixup 0.2"], "--unlabelled 4000 has soft labels, and --mixup"),
        (["--finetuning_options=--eval"], "--finetuning_options gives --eval, which the table sets itself"),
        (["--finetuning_options=--seed 7"], "--finetuning_options gives --seed, which the table sets itself"),
        (
            ["--finetuning_options=--output_dir X"],
            "--finetuning_options gives --output-dir, which the table sets itself",
        ),
        (
            ["--dataset", "ADE20K", "--readouts", "linear", "--finetuning_options=--decoder linear"],
            "--probe linear has a decoder of its own",
        ),
        (["--dataset", "Folder"], "--dataset Folder needs --data_path with train/<class>/"),
    ],
)
def test_a_wrong_option_is_said_before_anything_is_run(options, message):
    with pytest.raises(InputError, match=message):
        parse_args(options)


def test_options_that_only_a_pool_or_a_folder_makes_possible_are_taken():
    lines = commands("--readouts", "few-labels", "--few_labels_options=--unlabelled 10 --confusion-matrix")
    assert lines[-1].endswith("--unlabelled 10 --confusion-matrix)")


def test_a_folder_called_like_a_data_set_has_an_output_folder_of_its_own(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "digits" / split).mkdir(parents=True)
    _, protocol = parse_args(["--dataset", "Folder", "--data_path", str(tmp_path / "digits"), "--readouts", "knn"])
    assert protocol.output_dir.name == "Folder_digits"


# Running and resuming


def job(folder: Path, options: str = "--a 1", needs: tuple[Job, ...] = ()) -> Job:
    return Job(folder.name, "experiments/digits_pool.py", options, folder, folder / "result", needs)


def finish(*jobs: Job) -> None:
    for finished in jobs:
        prepare(finished)
        finished.result.write_text("done")
        write_record(finished, 1.0)


def test_a_result_counts_only_with_the_options_it_was_made_with(tmp_path):
    first = job(tmp_path / "first")
    assert not is_finished(first)
    finish(first)
    assert is_finished(first)
    assert not is_finished(job(tmp_path / "first", "--a 2"))
    first.result.unlink()
    assert not is_finished(first)


def test_a_result_does_not_count_when_what_it_was_made_from_has_changed(tmp_path):
    first = job(tmp_path / "first")
    second = job(tmp_path / "second", "--b", needs=(first,))
    finish(first, second)
    assert is_finished(second)
    assert not is_finished(job(tmp_path / "second", "--b", needs=(job(tmp_path / "first", "--a 2"),)))


def test_an_unfinished_folder_is_kept_for_the_same_command_and_cleared_for_another(tmp_path):
    first = job(tmp_path / "first")
    prepare(first)
    checkpoint = first.folder / "checkpoint.pth"
    checkpoint.write_text("half")
    prepare(first)
    assert checkpoint.exists()
    prepare(job(tmp_path / "first", "--a 2"))
    assert not checkpoint.exists()


def test_files_of_something_else_are_not_removed(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds unrelated files: remove it, or give another --output_dir"):
        prepare(job(tmp_path / "first"))


@pytest.fixture(scope="module")
def tiny_options(pool, backbone) -> list[str]:
    """The digits' protocol on a smaller pool, with a smaller ViT."""
    return ["--methods", "random", "activeft", "--percents", "40", "--seeds", "0", "--jobs", "2",
            "--readouts", "finetuned", "linear", "knn",
            "--data_path", str(pool), "--pretrained_weights", str(backbone), *TINY_VIT_OPTIONS]  # fmt: skip


@pytest.fixture(scope="module")
def finished_table(tiny_options, tmp_path_factory) -> Path:
    """The output folder, given relative to where it was called, of a comparison: one seed, one budget, one epoch."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(out.parent)
        main([*tiny_options, "--output_dir", "out", "--finetuning_options=--epochs 1"])
    return out


def test_the_provenance_of_a_subset_names_its_own_command(finished_table):
    subset = finished_table / "40_percent" / "activeft" / "seed_0" / "subset" / "subset.json"
    assert "sample_tools/ActiveFT_CIFAR.py --feature_path" in read_provenance(subset)["command"]


def test_a_comparison_ends_with_table_numbers_and_picture(finished_table):
    table = (finished_table / "table.md").read_text()
    assert row_of(table, "ActiveFT")[0] and row_of(table, "Random")[0]
    assert "40% (12 images)" in table
    records = json.loads((finished_table / "table.json").read_text())
    assert {(record["readout"], record["method"]) for record in records} == {
        (readout, method) for readout in ("finetuned", "linear", "knn") for method in ("random", "activeft")
    }
    for record in records:
        assert math.isfinite(record["acc1"]) and math.isfinite(record["seconds"]) and record["images"] == 12
        finetuned = record["readout"] == "finetuned"
        scripts = [command.split(".py ")[0].split("/")[-1].split()[-1] for command in record["commands"]]
        assert scripts == [
            "digits_pool",
            *["extract_feature"] * (1 if finetuned else 2),
            "ActiveFT_CIFAR" if record["method"] == "activeft" else "baseline",
            *["main"] * finetuned,
        ]
        if finetuned:
            folder = finished_table / "40_percent" / record["method"] / "seed_0" / "finetuned"
            summary = json.loads((folder / "summary.json").read_text())
            assert record["acc1"] == summary["last"]["test"]["acc1"]
    assert (finished_table / "accuracy.png").stat().st_size > 1000


def test_a_finished_finetuning_keeps_its_log_and_not_its_checkpoints(finished_table):
    folder = finished_table / "40_percent" / "activeft" / "seed_0" / "finetuned"
    assert (folder / "log.txt").is_file() and not list(folder.glob("*.pth"))
    assert "last top-1" in (folder / "command.log").read_text()


@pytest.mark.parametrize("readout", ["linear", "knn"])
def test_a_readout_of_the_feature_files_is_that_of_the_finetuning_script(finished_table, readout):
    subset_folder = finished_table / "40_percent" / "random" / "seed_0"
    command = json.loads((subset_folder / "finetuned" / "command.json").read_text())["commands"][-1]
    words = command.split("main.py ")[1].split(" --output_dir ")[0].split()
    expected = finetune([*words, "--probe", readout])["last"]["test"]["acc1"]
    assert json.loads((subset_folder / f"{readout}.json").read_text())["acc1"] == pytest.approx(expected)


def test_a_readout_needs_labels(tmp_path):
    np.save(tmp_path / "flat_train.npy", np.array([[1.0, 2.0, -1.0]], dtype=np.float32))
    with pytest.raises(InputError, match="flat_train.npy has images without a label"):
        labelled_features(tmp_path / "flat_train.npy")


def test_a_readout_that_knows_a_single_class_predicts_it():
    classifier = fit_readout("linear", np.eye(3), np.array([2, 2, 2]), classes=4)
    assert classifier.predict(np.ones((2, 3))).tolist() == [2, 2]


def test_nothing_is_run_again(finished_table, tiny_options, capsys):
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in finished_table.rglob("*/*") if path.is_file()}

    before = written()
    main([*tiny_options, "--output_dir", str(finished_table), "--finetuning_options=--epochs 1"])
    assert "7 commands: 7 finished, 0 to run" in capsys.readouterr().out
    assert written() == before and len(before) > 20


def test_what_had_other_options_is_run_again_and_nothing_else(finished_table, tiny_options, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished_table, out)
    for record in out.rglob("*.json"):  # the commands name the folder that they write to
        record.write_text(record.read_text().replace(str(finished_table), str(out)))
    main([*tiny_options, "--output_dir", str(out), "--finetuning_options=--epochs 2"])
    assert (
        "7 commands: 5 finished, 2 to run, 2 of them again, because the options or the version changed"
        in capsys.readouterr().out
    )
    for method in ("random", "activeft"):
        folder = out / "40_percent" / method / "seed_0" / "finetuned"
        assert len((folder / "log.txt").read_text().splitlines()) == 2


def test_what_another_version_has_made_is_not_taken_for_finished(finished_table, tmp_path):
    job = finetuning_job(finished_table, tmp_path / "run", 1)
    run_jobs([job], [{}], lambda job: "")
    assert is_finished(job)
    record = json.loads(job.record.read_text())
    job.record.write_text(json.dumps({**record, "version": "0.9"}))
    assert not is_finished(job)


def test_a_failing_command_ends_the_comparison_with_one_line_that_names_its_log(tiny_options, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError) as failed:
        main([*tiny_options, "depth=3", "--readouts", "finetuned", "--output_dir", str(out)])
    message = str(failed.value)
    assert message.startswith("features ended with exit code 2: error: checkpoint ")
    assert message.endswith(f"are in {out}/features/command.log") and "\n" not in message
    assert "does not fit the model" in (out / "features" / "command.log").read_text()


def finetuning_job(finished_table: Path, folder: Path, epochs: int) -> Job:
    """A finetuning on the random subset of a finished table."""
    done = finished_table / "40_percent" / "random" / "seed_0" / "finetuned"
    command = json.loads((done / "command.json").read_text())["commands"][-1]
    options = command.split("main.py ")[1].removesuffix(")").replace(str(done), str(folder))
    return Job(folder.name, "deit/main.py", f"{options} --epochs {epochs}", folder, folder / "summary.json")


def wait_for_an_epoch(job: Job) -> None:
    log = job.folder / "log.txt"
    while not (log.is_file() and log.read_text()):
        time.sleep(0.01)


def test_an_interrupted_comparison_leaves_no_process_and_keeps_what_is_done(finished_table, tmp_path):
    short = finetuning_job(finished_table, tmp_path / "short", 1)
    endless = finetuning_job(finished_table, tmp_path / "endless", 1000000)

    def interrupt(job: Job) -> str:
        assert job == short
        wait_for_an_epoch(endless)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([endless, short], [{}, {}], interrupt)
    assert multiprocessing.active_children() == []
    assert is_finished(short) and not is_finished(endless)
    assert "stopped by SIGTERM" in endless.log.read_text() and (endless.folder / "checkpoint.pth").is_file()


def test_a_killed_command_stops_the_comparison_with_one_line_and_the_others_save(finished_table, tmp_path):
    jobs = [finetuning_job(finished_table, tmp_path / name, 1000000) for name in ("first", "second")]

    def kill_one() -> None:
        for job in jobs:
            wait_for_an_epoch(job)
        multiprocessing.active_children()[0].kill()

    with (
        ThreadPoolExecutor() as thread,
        pytest.raises(InputError, match="(first|second) was killed, perhaps out of memory"),
    ):
        thread.submit(kill_one)
        run_jobs(jobs, [{}, {}], str)
    assert multiprocessing.active_children() == []
    assert sum("stopped by SIGTERM" in job.log.read_text() for job in jobs) == 1


def test_a_command_that_fails_while_its_loaders_are_at_work_ends(finished_table, pool, tmp_path):
    damaged = tmp_path / "pool"
    shutil.copytree(pool, damaged)
    for image in (damaged / "val").rglob("*.png"):
        image.write_bytes(image.read_bytes()[:100])
    job = finetuning_job(finished_table, tmp_path / "run", 2)
    job = replace(job, options=f"{job.options} --data-path {damaged} --num_workers 2")
    with pytest.raises(InputError, match="run ended with exit code 2: error: cannot read the image"):
        run_jobs([job], [{}], str)
    assert multiprocessing.active_children() == []


def test_a_killed_driver_takes_its_commands_with_it_and_they_save(finished_table, tmp_path):
    job = finetuning_job(finished_table, tmp_path / "endless", 1000000)
    code = f"""
from pathlib import PosixPath
from experiments.command_queue import Job, run_jobs
run_jobs([{job!r}], [{{}}], str)
"""
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    wait_for_an_epoch(job)
    driver.kill()
    driver.wait()
    while processes_of(driver.pid):
        time.sleep(0.01)
    assert "stopped by SIGTERM" in job.log.read_text() and (job.folder / "checkpoint.pth").is_file()
    assert not is_finished(job)


def test_what_the_fork_server_loads_is_there():
    assert all(importlib.util.find_spec(name) for name in PRELOADED)


def test_the_makefile_runs_the_digits_table():
    assert "experiments/paper_table.py --dataset digits" in (ROOT / "Makefile").read_text()


def test_two_comparisons_do_not_write_into_one_folder(finished_table, tiny_options):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(finished_table)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="is in use by process"):
            main([*tiny_options, "--output_dir", str(finished_table), "--finetuning_options=--epochs 1"])
    finally:
        holder.kill()
        holder.wait()


def test_the_published_names_of_networks_are_timms_in_the_trainer(pool, backbone):
    given = ["--dataset", "Folder", "--data_path", str(pool), "--pretrained_weights", str(backbone), "--seeds", "0"]
    lines = commands(*given, "--arch", "vit_base", "--methods", "random", "--readouts", "finetuned")
    assert "--arch vit_base " in lines[0] and "--model vit_base_patch16_224 " in lines[-1]
