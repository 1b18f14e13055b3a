"""A run knows what it is: nothing else is resumed, and nothing is reported as its own that is not."""

import json
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_VIT_OPTIONS, tiny_vit, write_pool

from common.checkpoints import read_checkpoint
from common.errors import InputError
from common.training import TrainingState
from deit.main import main


def options(pool: Path, backbone: Path, out: Path, *extra: object) -> list[str]:
    given = ["--data-set", "IMNETSUBSET", "--data-path", pool, "--resume", backbone, "--output_dir", out,
             "--device", "cpu", "--batch-size", 16, "--lr", 0.05, "--warmup-epochs", 0, "--num_workers", 0,
             "--auto-resume", "--model", "vit_tiny_patch16_224"]  # fmt: skip
    return [*map(str, [*given, *extra]), *TINY_VIT_OPTIONS]


def subset(path: Path, *indices: int) -> Path:
    path.write_text(json.dumps(indices))
    return path


@pytest.fixture(scope="module")
def finished(pool, backbone, tmp_path_factory):
    """A run of 2 epochs with subset A. Every test below must leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    given = ["--subset_ids", subset(folder / "A.json", 0, 3, 11, 12, 25, 29), "--epochs", 2]
    main(options(pool, backbone, folder / "out", *given))
    return folder


def other_pool(tmp_path: Path) -> list:
    return ["--data-path", write_pool(tmp_path / "other", 11, 2)]


def other_weights(tmp_path: Path) -> list:
    torch.manual_seed(5)
    torch.save({name: weight + 1 for name, weight in tiny_vit().state_dict().items()}, tmp_path / "other.pth")
    return ["--resume", tmp_path / "other.pth"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda tmp: ["--subset_ids", subset(tmp / "B.json", 1, 2, 13, 14, 21, 22)], "subset was 6 images, .*, is 6 "),
        (lambda tmp: ["--subset_ids", subset(tmp / "C.json", 1), "--epochs", 9], "subset was 6 images, .*, is 1 "),
        (other_pool, "train_images was 30 images, checksum .*, is 33 "),
        (other_weights, "weights was .*, is "),
        (lambda tmp: ["--lr", "0.1"], "lr was 0.05, is 0.1"),
        (lambda tmp: ["--lr", "0.1", "--epochs", 5], "lr was 0.05, is 0.1"),
        (lambda tmp: ["--opt", "lion"], "opt was sgd, is lion"),
        (lambda tmp: ["--seed", "1"], "seed was 0, is 1"),
        (lambda tmp: ["--epochs", "1"], "epochs was 2, is 1"),
        (lambda tmp: ["--total-batch-size", "8"], "images_per_update was 16, is 8"),
        (lambda tmp: ["--drop-path", "0"], "drop_path was 0.1, is 0.0"),
        (lambda tmp: ["--mixup", "0.8"], "mixup was 0.0, is 0.8"),
        (lambda tmp: ["--no-model-ema"], "model_ema was True, is False"),
    ],
)  # fmt: skip
def test_what_changes_the_course_of_a_run_is_refused_with_the_difference(
    change, difference, finished, pool, backbone, tmp_path
):
    given = ["--subset_ids", finished / "A.json", "--epochs", 2, *change(tmp_path)]
    before = {path.name: path.read_bytes() for path in (finished / "out").glob("*.*")}
    with pytest.raises(InputError, match=f"out/checkpoint.pth is from another run: .*{difference}") as caught:
        main(options(pool, backbone, finished / "out", *given))
    assert "\n" not in str(caught.value)
    after = {path.name: path.read_bytes() for path in (finished / "out").glob("*.*")}
    assert before | {".lock": b""} == after | {".lock": b""}


def test_another_model_is_refused_when_its_own_checkpoint_is_given_to_resume(finished, pool, backbone, tmp_path):
    given = ["--subset_ids", finished / "A.json", "--epochs", 3, "--resume", finished / "out" / "checkpoint.pth"]
    with pytest.raises(InputError, match="is of another network: depth was 2, is 3"):
        main([*options(pool, backbone, tmp_path / "out", *given), "depth=3"])


def test_what_changes_no_result_is_free(finished, pool, backbone, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    moved.symlink_to(pool)
    (tmp_path / "renamed.json").write_text((finished / "A.json").read_text())
    (tmp_path / "renamed.pth").write_bytes(backbone.read_bytes())
    expected = json.loads((finished / "out" / "summary.json").read_text())
    given = ["--subset_ids", tmp_path / "renamed.json", "--epochs", 2, "--data-path", moved, "--cache-mb", 0,
             "--resume", tmp_path / "renamed.pth", "--accum-steps", 2, "--batch-size", 8, "--total-batch-size", 16,
             "--eval_interval", 2, "--save-interval", 7, "--num_workers", 1, "--dist-eval"]  # fmt: skip
    assert main(options(pool, backbone, finished / "out", *given)) == expected


@pytest.mark.parametrize("schedule", ["cosine", "step", "poly"])
def test_more_epochs_go_on_along_the_longer_schedule_and_end_where_its_rates_end(schedule, pool, backbone, tmp_path):
    rates = {}
    given = ["--subset_ids", subset(tmp_path / "A.json", 0, 11, 25), "--sched", schedule, "--decay-epochs", 2]
    for name, lengths in (("long", [6]), ("lengthened", [3, 6])):
        for epochs in lengths:
            main(options(pool, backbone, tmp_path / name, *given, "--epochs", epochs))
        log = [json.loads(line) for line in (tmp_path / name / "log.txt").read_text().splitlines()]
        rates[name] = [entry["train_lr"] for entry in log]
    assert rates["lengthened"][3:] == rates["long"][3:] and len(rates["long"]) == 6


def test_a_plateau_schedule_keeps_its_patience_when_it_is_resumed(pool, backbone, tmp_path):
    given = ["--subset_ids", subset(tmp_path / "A.json", 0, 11, 25), "--sched", "plateau", "--patience-epochs", 2,
             "--lr", 0.0032, "--min-lr", 0, "--save-interval", 2]  # fmt: skip
    main(options(pool, backbone, tmp_path / "undisturbed", *given, "--epochs", 8))
    for epochs in (4, 6, 8):
        main(options(pool, backbone, tmp_path / "resumed", *given, "--epochs", epochs))
    logs = [(tmp_path / name / "log.txt").read_text() for name in ("undisturbed", "resumed")]
    rates = [[json.loads(line)["train_lr"] for line in log.splitlines()] for log in logs]
    assert rates[0] == rates[1] and len(set(rates[0])) > 2


def test_a_checkpoint_that_does_not_say_what_run_it_is_of_is_resumed_with_its_own_optimizer_only(
    finished, pool, backbone, tmp_path
):
    """As the published code writes them."""
    old = read_checkpoint(finished / "out" / "checkpoint.pth")
    del old["run"]
    old["args"]["opt"] = "SGD"
    torch.save(old, tmp_path / "old.pth")
    given = ["--subset_ids", finished / "A.json", "--epochs", 3, "--resume", tmp_path / "old.pth"]
    main(options(pool, backbone, tmp_path / "out", *given))
    assert read_checkpoint(tmp_path / "out" / "checkpoint.pth")["epoch"] == 2
    with pytest.raises(InputError, match="opt was sgd, is lion"):
        main(options(pool, backbone, tmp_path / "again", *given, "--opt", "lion"))


def test_when_no_checkpoint_of_a_folder_can_be_read_the_run_does_not_start_over(pool, backbone, tmp_path):
    given = ["--subset_ids", subset(tmp_path / "A.json", 0, 11, 25), "--epochs", 2]
    main(options(pool, backbone, tmp_path, *given))
    log = (tmp_path / "log.txt").read_text()
    for name in ("checkpoint.pth", "best_checkpoint.pth"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1000])
    with pytest.raises(InputError, match=r"checkpoint.pth is truncated .*to start over, remove it"):
        main(options(pool, backbone, tmp_path, *given))
    assert (tmp_path / "log.txt").read_text() == log


def test_a_run_that_finds_nothing_to_resume_says_that_it_starts(pool, backbone, tmp_path, capsys):
    given = ["--subset_ids", subset(tmp_path / "A.json", 0, 11, 25), "--epochs", 1]
    main(options(pool, backbone, tmp_path, *given))
    assert f"no checkpoint in {tmp_path}: starting at epoch 0" in capsys.readouterr().out


def test_when_one_checkpoint_of_two_cannot_be_read_this_is_said(pool, backbone, tmp_path, capsys):
    given = ["--subset_ids", subset(tmp_path / "A.json", 0, 11, 25), "--epochs", 2]
    main(options(pool, backbone, tmp_path, *given))
    (tmp_path / "checkpoint.pth").write_bytes((tmp_path / "checkpoint.pth").read_bytes()[:1000])
    main(options(pool, backbone, tmp_path, *given))
    printed = capsys.readouterr().out
    assert "warning: checkpoint" in printed and "best_checkpoint.pth at epoch" in printed


def test_a_run_that_starts_over_leaves_nothing_of_the_run_before(pool, backbone, tmp_path, monkeypatch):
    """A best checkpoint of the run before, further on than the new run, would be taken for its own."""
    given = ["--subset_ids", subset(tmp_path / "A.json", 0, 11, 25), "--epochs", 6]
    main(options(pool, backbone, tmp_path, *given))
    over = [option for option in options(pool, backbone, tmp_path, *given) if option != "--auto-resume"]
    with monkeypatch.context() as patch, pytest.raises(InputError, match="stop here"):
        patch.setattr("deit.finetuning.evaluate", stop_here)
        main([*over, "--eval_interval", "3"])
    assert not (tmp_path / "summary.json").exists() and not (tmp_path / "best_checkpoint.pth").exists()
    main(options(pool, backbone, tmp_path, *given))
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.txt").read_text().splitlines()] == list(range(6))


def stop_here(*args, **kwargs):
    raise InputError("stop here")


def test_weights_that_are_not_finite_are_named(pool, tmp_path):
    weights = tiny_vit().state_dict()
    weights["blocks.1.mlp.fc1.bias"][3] = float("nan")
    torch.save(weights, tmp_path / "broken.pth")
    given = ["--subset_ids", subset(tmp_path / "A.json", 0, 11, 25), "--epochs", 2]
    with pytest.raises(InputError, match="broken.pth holds weights that are not finite: blocks.1.mlp.fc1.bias$"):
        main(options(pool, tmp_path / "broken.pth", tmp_path / "out", *given))


def test_weights_of_an_own_checkpoint_that_are_not_finite_are_named(finished, pool, backbone, tmp_path):
    broken = read_checkpoint(finished / "out" / "checkpoint.pth")
    broken["model"]["head.bias"][0] = float("inf")
    torch.save(broken, tmp_path / "broken.pth")
    given = ["--subset_ids", finished / "A.json", "--epochs", 3, "--resume", tmp_path / "broken.pth"]
    with pytest.raises(InputError, match="broken.pth holds weights that are not finite: head.bias$"):
        main(options(pool, backbone, tmp_path / "out", *given))


def test_the_moving_average_of_a_short_run_is_said_to_be_its_first_weights_unless_it_is_warmed_up(
    pool, backbone, tmp_path, capsys
):
    given = ["--subset_ids", subset(tmp_path / "A.json", 0, 11, 25), "--epochs", 5, "--lr", 1]
    distance = {}
    for name, extra in (("published", []), ("warm", ["--model-ema-warmup"])):
        main(options(pool, backbone, tmp_path / name, *given, *extra))
        said = "moving average (test_ema) still holds 100% of its starting weights; --model-ema-warmup" in (
            capsys.readouterr().out
        )
        assert said == (name == "published")
        saved = read_checkpoint(tmp_path / name / "checkpoint.pth")
        distance[name] = (saved["model"]["head.weight"] - saved["model_ema"]["head.weight"]).norm()
    assert distance["warm"] < 0.7 * distance["published"]


def test_a_run_that_starts_over_keeps_the_checkpoints_of_the_one_before(pool, backbone, tmp_path, capsys):
    given = ["--subset_ids", subset(tmp_path / "A.json", 0, 11, 25), "--epochs", 1]
    main(options(pool, backbone, tmp_path / "out", *given))
    kept = (tmp_path / "out" / "checkpoint.pth").read_bytes(), (tmp_path / "out" / "log.txt").read_text()
    again = [option for option in options(pool, backbone, tmp_path / "out", *given) if option != "--auto-resume"]
    main(again)
    said = f"checkpoints, log and summary of the previous run are in {tmp_path}/out/previous"
    assert said in capsys.readouterr().out
    previous = tmp_path / "out" / "previous"
    assert ((previous / "checkpoint.pth").read_bytes(), (previous / "log.txt").read_text()) == kept
    assert (previous / "summary.json").is_file() and (tmp_path / "out" / "summary.json").is_file()


def test_a_move_of_old_checkpoints_that_was_killed_loses_none(pool, backbone, tmp_path):
    given = ["--subset_ids", subset(tmp_path / "A.json", 0, 11, 25), "--epochs", 1]
    main(options(pool, backbone, tmp_path / "out", *given))
    kept = {name: (tmp_path / "out" / name).read_bytes() for name in ("checkpoint.pth", "best_checkpoint.pth")}
    (tmp_path / "out" / ".previous").mkdir()
    (tmp_path / "out" / "checkpoint.pth").rename(tmp_path / "out" / ".previous" / "checkpoint.pth")
    main([option for option in options(pool, backbone, tmp_path / "out", *given) if option != "--auto-resume"])
    assert {name: (tmp_path / "out" / "previous" / name).read_bytes() for name in kept} == kept


def test_a_run_that_is_resumed_in_the_folder_of_another_one_has_no_number_of_that(pool, backbone, tmp_path):
    chosen = ["--subset_ids", subset(tmp_path / "A.json", 0, 11, 25)]
    for name, extra in (("one", ["--epochs", 3]), ("other", ["--epochs", 2, "--seed", 5])):
        main(options(pool, backbone, tmp_path / name, *chosen, *extra))
    first = (tmp_path / "one" / "log.txt").read_text()
    second = (tmp_path / "other" / "log.txt").read_text()
    go_on = ["--resume", tmp_path / "other" / "checkpoint.pth", "--epochs", 3, "--seed", 5]
    given = [option for option in options(pool, backbone, tmp_path / "one", *chosen) if option != "--auto-resume"]
    main([*given, *map(str, go_on)])
    log = (tmp_path / "one" / "log.txt").read_text()
    assert log.startswith(second) and len(log.splitlines()) == 3
    assert (tmp_path / "one" / "previous" / "log.txt").read_text() == first
    back = ["--resume", tmp_path / "one" / "previous" / "checkpoint.pth", "--epochs", 4]
    with pytest.raises(InputError, match="which is replaced by what is in .*one: move it first"):
        main([*given, *map(str, back)])
    main([*given, "--epochs", "3", "--start_epoch", "2"])
    assert [json.loads(line)["epoch"] for line in (tmp_path / "one" / "log.txt").read_text().splitlines()] == [2]


def test_tuples_in_the_state_of_an_optimizer_stay_tuples(tmp_path):
    """As those that Python's random numbers have, which kron keeps."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.state[model.weight]["drawn"] = (3, (1, 2), None)
    scheduler = SimpleNamespace(state_dict=dict)
    state = TrainingState(model, optimizer, scheduler, torch.amp.GradScaler("cpu", enabled=False))
    torch.save(state.checkpoint(Namespace(betas=(0.9, 0.99)), {}), tmp_path / "c.pth")
    saved = torch.load(tmp_path / "c.pth", weights_only=True)
    assert saved["optimizer"]["state"][0]["drawn"] == (3, (1, 2), None) and saved["args"]["betas"] == [0.9, 0.99]


def test_a_head_of_other_classes_is_not_the_beginning_of_this_one(pool, backbone, tmp_path, capsys):
    chosen = ["--subset_ids", subset(tmp_path / "A.json", 0, 11, 25), "--epochs", 1, "--lr", "1e-9"]
    main(options(pool, backbone, tmp_path / "first", *chosen, "--seed", 5))
    renamed = tmp_path / "renamed"
    for split in ("train", "val"):
        for position, folder in enumerate(sorted((pool / split).iterdir())):
            (renamed / split).mkdir(parents=True, exist_ok=True)
            (renamed / split / f"z{position}").symlink_to(folder)
    trained = tmp_path / "first" / "checkpoint.pth"
    weight = read_checkpoint(trained)["model"]["head.weight"]
    for place, is_kept in ((pool, True), (renamed, False)):
        main([*options(place, "", tmp_path / place.name, *chosen), "--finetune", str(trained)])
        now = read_checkpoint(tmp_path / place.name / "checkpoint.pth")["model"]["head.weight"]
        assert torch.allclose(now, weight, atol=1e-5) == is_kept
    distilled = ["--model", "deit_tiny_distilled_patch16_224", "--teacher-model", "vit_tiny_patch16_224"]
    distilled += ["--teacher-path", str(trained), "--distillation-type", "hard", "--resume", "", "--no-model-ema"]
    with pytest.raises(InputError, match="was trained for other classes: .* where these images have 'z0'"):
        main([*options(renamed, "", tmp_path / "d", *chosen), *distilled])
