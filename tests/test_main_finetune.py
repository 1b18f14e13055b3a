"""deit/main.py as users run it: starting, going on, several processes, and what it writes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, TINY_VIT_OPTIONS, launch_two, tiny_vit
from PIL import Image

from common.checkpoints import read_checkpoint
from common.errors import InputError
from common.run_folder import plot_confusion_matrix
from deit.main import main

SHORT = ["--device", "cpu", "--num_workers", "0", "--warmup-epochs", "0", "--batch-size", "16"]
TINY = ["--model", "vit_tiny_patch16_224", *TINY_VIT_OPTIONS]


def options(pool: Path, *extra: object) -> list[str]:
    return [*SHORT, *TINY, *map(str, ["--data-set", "IMNET", "--data-path", pool, *extra])]


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


@pytest.fixture
def subset(tmp_path: Path) -> Path:
    path = tmp_path / "subset.json"
    path.write_text("[0, 3, 11, 12, 25, 29]")
    return path


def test_finetuning_a_subset_writes_checkpoints_log_and_summary(pool, backbone, subset, tmp_path):
    out = tmp_path / "out"
    summary = main([*SHORT, *TINY, "--data-set", "IMNETSUBSET", "--data-path", str(pool), "--subset_ids", str(subset),
                    "--resume", str(backbone), "--epochs", "3", "--eval_interval", "2",
                    "--output_dir", str(out)])  # fmt: skip
    log = log_of(out)
    assert [entry["epoch"] for entry in log] == [0, 1, 2]
    assert ["test_acc1" in entry for entry in log] == [False, True, True]  # every second epoch, and the last
    assert {"train_loss", "train_lr", "n_parameters"} <= log[0].keys()
    assert summary["images"] == 6
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["last"]["test"]["acc1"] == log[-1]["test_acc1"]
    assert summary["best"]["test"]["acc1"] == max(entry.get("test_acc1", 0) for entry in log)
    checkpoint = read_checkpoint(out / "checkpoint.pth")
    assert set(checkpoint) >= {"model", "optimizer", "lr_scheduler", "epoch", "model_ema", "scaler", "args"}
    assert checkpoint["epoch"] == 2 and checkpoint["args"]["lr"] == 0.01
    assert (out / "best_checkpoint.pth").is_file()


def test_a_backbone_given_to_resume_starts_at_epoch_0_with_its_weights(pool, backbone, tmp_path):
    main(options(pool, "--resume", backbone, "--epochs", 1, "--lr", 1e-12, "--warmup-lr", 0, "--output_dir", tmp_path))
    trained = read_checkpoint(tmp_path / "checkpoint.pth")
    for name, weight in read_checkpoint(backbone).items():
        torch.testing.assert_close(trained["model"][name], weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(trained["model_ema"][name], weight, rtol=1e-5, atol=1e-6)
    assert [entry["epoch"] for entry in log_of(tmp_path)] == [0]


def test_an_own_checkpoint_given_to_resume_goes_on_after_its_epoch(pool, backbone, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    main(options(pool, "--resume", backbone, "--epochs", 4, "--output_dir", first))
    half = options(pool, "--resume", backbone, "--epochs", 2, "--output_dir", second)
    main(half)
    again = options(pool, "--resume", second / "checkpoint.pth", "--epochs", 4, "--output_dir", second)
    summary = main(again)
    assert [entry["epoch"] for entry in log_of(second)] == [0, 1, 2, 3]
    assert read_checkpoint(second / "checkpoint.pth")["epoch"] == 3
    best_before = max(entry["test_acc1"] for entry in log_of(second)[:2])
    assert summary["best"]["test"]["acc1"] >= best_before


def test_evaluation_of_a_checkpoint_gives_the_accuracy_of_its_run(pool, backbone, tmp_path):
    summary = main(options(pool, "--resume", backbone, "--epochs", 2, "--lr", 1, "--output_dir", tmp_path))
    evaluated = main(options(pool, "--eval", "--resume", tmp_path / "checkpoint.pth"))
    assert evaluated["last"]["test"] == summary["last"]["test"]


def test_evaluation_on_other_classes_is_refused(pool, backbone, tmp_path):
    main(options(pool, "--resume", backbone, "--epochs", 1, "--output_dir", tmp_path))
    shutil.copytree(pool, tmp_path / "renamed")
    for split in ("train", "val"):
        (tmp_path / "renamed" / split / "bee").rename(tmp_path / "renamed" / split / "wasp")
    with pytest.raises(InputError, match="was trained for other classes: 'bee' where these images have 'cat'"):
        main(options(tmp_path / "renamed", "--eval", "--resume", tmp_path / "checkpoint.pth"))
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "renamed" / split / "cat")
    with pytest.raises(InputError, match="was trained for 3 classes, but the images have 2"):
        main(options(tmp_path / "renamed", "--eval", "--resume", tmp_path / "checkpoint.pth"))


def test_evaluation_of_a_network_that_was_built_otherwise_is_refused(pool, backbone, tmp_path):
    main(options(pool, "--resume", backbone, "--epochs", 1, "--output_dir", tmp_path))
    evaluation = options(pool, "--eval", "--resume", tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match="is of another network: num_heads was 2, is 3: give the --model"):
        main([*evaluation, *(option.replace("num_heads=2", "num_heads=3") for option in TINY)])
    with pytest.raises(InputError, match="is of another network: mean was"):
        main([*evaluation, "--model", "vit_tiny_patch16_224.augreg_in21k"])


def test_keywords_that_name_files_of_weights_are_refused(pool, backbone):
    given = ["--model-kwargs", "checkpoint_path=evil.pth"]
    with pytest.raises(InputError, match="the keyword checkpoint_path concerns weights, not the network"):
        main([*options(pool, "--resume", backbone), *given])


def test_an_evaluation_draws_the_confusion_matrix(pool, backbone, tmp_path):
    main(options(pool, "--resume", backbone, "--epochs", 1, "--output_dir", tmp_path))
    main(options(pool, "--eval", "--resume", tmp_path / "checkpoint.pth", "--confusion-matrix",
                 "--output_dir", tmp_path / "seen"))  # fmt: skip
    assert [file.name for file in (tmp_path / "seen").glob("[!.]*")] == ["confusion_matrix.png"]


def test_a_probe_does_not_write_over_a_finetuning(pool, backbone, tmp_path):
    main(options(pool, "--resume", backbone, "--epochs", 1, "--output_dir", tmp_path))
    before = (tmp_path / "summary.json").read_bytes()
    with pytest.raises(InputError, match="would overwrite the summary of the finetuning in .*: give another folder"):
        main(options(pool, "--resume", backbone, "--probe", "knn", "--output_dir", tmp_path))
    assert (tmp_path / "summary.json").read_bytes() == before


def test_names_of_classes_are_drawn_as_they_are_written(tmp_path):
    plot_confusion_matrix(torch.eye(2).long(), [r"$\frac{$", "caf\udce9"], tmp_path / "c.png")
    assert (tmp_path / "c.png").is_file()


def test_evaluation_with_a_fresh_head_is_refused(pool, backbone):
    with pytest.raises(InputError, match="--eval needs --resume with trained weights"):
        main(options(pool, "--eval", "--resume", backbone))


def test_mixup_takes_a_last_batch_of_odd_size(pool, backbone):
    # 90 draws in batches of 16 leave 10; in batches of 13, 12; in batches of 89, 1
    for batch_size in (13, 89):
        main(options(pool, "--resume", backbone, "--epochs", 1, "--mixup", 0.8, "--mixup-prob", 1,
                     "--batch-size", batch_size))  # fmt: skip


def test_hard_and_soft_distillation_train_a_distilled_model_from_a_plain_backbone(pool, backbone, tmp_path):
    teacher = tmp_path / "teacher.pth"
    torch.save({"model": tiny_vit(num_classes=3, img_size=32, patch_size=16, embed_dim=192, depth=12, num_heads=3)
                .state_dict()}, teacher)  # fmt: skip
    for kind in ("soft", "hard"):
        out = tmp_path / kind
        main(options(pool, "--resume", backbone, "--epochs", 1, "--model", "deit_tiny_distilled_patch16_224",
                     "--distillation-type", kind, "--teacher-path", teacher, "--output_dir", out,
                     "--teacher-model", "vit_tiny_patch16_224"))  # fmt: skip
        assert log_of(out)[0]["train_loss"] > 0


def test_a_loss_that_is_not_finite_ends_the_run_with_epoch_step_and_lr(pool, backbone):
    with pytest.raises(InputError, match=r"the loss is nan at epoch \d, update \d, lr .*: lower --lr"):
        main(options(pool, "--resume", backbone, "--epochs", 3, "--lr", 1e30, "--warmup-lr", 1e30))


def assert_same_weights(one: Path, other: Path) -> None:
    expected, actual = (read_checkpoint(out / "checkpoint.pth") for out in (one, other))
    for kind in ("model", "model_ema"):
        for name, weight in expected[kind].items():
            torch.testing.assert_close(actual[kind][name], weight, rtol=1e-5, atol=1e-5)
    for before, after in zip(log_of(one), log_of(other), strict=True):  # one log, not one of each process
        assert after["test_acc1"] == before["test_acc1"]
        assert after["train_loss"] == pytest.approx(before["train_loss"], rel=1e-4)


def test_accumulation_and_two_launched_processes_make_the_updates_of_one_process(run_script, pool, backbone, tmp_path):
    """Augmentation included: it depends on the draw, not on who makes it. 90 draws are updates of 32, 32 and 26."""
    common = options(pool, "--resume", backbone, "--epochs", 3, "--lr", 0.1, "--clip-grad", 2.0, "--drop-path", 0)
    common += ["--total-batch-size", "32"]
    main([*common, "--output_dir", str(tmp_path / "one")])
    main([*common, "--accum-steps", "3", "--output_dir", str(tmp_path / "accumulated")])
    assert_same_weights(tmp_path / "one", tmp_path / "accumulated")
    two = [*common, "--accum-steps", "2", "--dist-eval", "--output_dir", str(tmp_path / "two")]
    run_script("deit/main.py", *two, launcher=launch_two(29511))
    assert_same_weights(tmp_path / "one", tmp_path / "two")


def test_batch_size_per_process_is_what_it_was_in_the_published_code(run_script, pool, backbone, tmp_path):
    common = options(pool, "--resume", backbone, "--epochs", 2, "--lr", 0.1, "--drop-path", 0)
    main([*common, "--batch-size", "32", "--output_dir", str(tmp_path / "one")])
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port", "29513")
    two = [*common, "--batch-size", "16", "--output_dir", str(tmp_path / "two")]
    run_script("deit/main.py", *two, launcher=torchrun)
    assert_same_weights(tmp_path / "one", tmp_path / "two")


def test_the_same_command_gives_the_same_log_twice_and_another_seed_another(pool, backbone, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        main(
            options(
                pool, "--resume", backbone, "--epochs", 2, "--lr", 0.1, "--seed", seed, "--output_dir", tmp_path / name
            )
        )
    logs = [(tmp_path / name / "log.txt").read_text() for name in "abc"]
    assert logs[0] == logs[1] != logs[2]


def test_the_recipe_is_printed_with_a_warning_when_it_is_not_the_published_one(pool, backbone, capsys):
    main(options(pool, "--resume", backbone, "--epochs", 1, "--total-batch-size", 64))
    printed = capsys.readouterr().out
    recipe = "recipe: 64 images per update at lr 0.00125; an epoch is 2 update(s), 90 draws of 30 of the 30 images"
    assert recipe in printed
    assert "warning: the published recipe is 512 images per update and --lr 0.01" in printed
    main(options(pool, "--resume", backbone, "--epochs", 1, "--total-batch-size", 512))
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_probe_reads_classes_out_of_frozen_features(kind, backbone, tmp_path):
    """Images of one colour per class are told apart by any features; noise is not."""
    for split, shades in (("train", (0, 8)), ("val", (3, 5))):
        for number, name in enumerate(CLASSES):
            for shade in shades:
                path = tmp_path / "colours" / split / name / f"{shade}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (100 * number, 255 - 100 * number, shade)).save(path)
    main(options(tmp_path / "colours", "--resume", backbone, "--probe", kind, "--output_dir", tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["probe"] == kind and summary["last"]["test"] == {"acc1": 100.0, "acc5": 100.0}


def test_a_confusion_matrix_counts_every_image_and_gives_the_accuracy_of_each_class(pool, backbone, tmp_path):
    summary = main(options(pool, "--resume", backbone, "--epochs", 1, "--confusion-matrix", "--output_dir", tmp_path))
    per_class = summary["per_class_acc1"]
    assert list(per_class) == list(CLASSES)
    assert sum(per_class.values()) / 3 == pytest.approx(summary["last"]["test"]["acc1"])
    for picture in ("confusion_matrix.png", "curves.png"):
        assert Image.open(tmp_path / picture).width > 300


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--auto-resume"], "--auto-resume needs --output_dir"),
        (["--auto-resume", "--eval", "--output_dir", "OUT"], "--auto-resume continues training"),
        (["--probe", "knn"], "--probe knn needs --resume"),
        (["--accum-steps", "0"], "0 must be at least 1"),
        (["--teacher-path", "T.pth"], "--teacher-path T.pth has no effect without --distillation-type"),
        (["--opt", "adahessian"], "--opt adahessian needs second derivatives"),
        (["--momentum", "0"], "--opt sgd does not work with its options as given: Nesterov momentum requires"),
        (["--opt", "adamw", "--opt-betas", "0.9"], "--opt adamw does not work with its options as given"),
        (["--sched", "plateau", "--decay-rate", "1"], "--sched plateau does not work with its options as given"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given, message, pool, tmp_path):
    given = [str(tmp_path) if option == "OUT" else option for option in given]
    with pytest.raises(InputError, match=message):
        main(options(pool, *given))
