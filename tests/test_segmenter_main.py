"""segmenter/main.py and predict.py as users run them."""

import json
import os
import signal
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_VIT_OPTIONS, launch_two, same
from digit_scenes import CLASSES, write_scenes
from PIL import Image

import segmenter.finetuning
import segmenter.predict
from common.checkpoints import read_checkpoint
from common.errors import InputError
from common.processes import Processes
from common.scenes import IGNORED
from segmenter.builders import EndlessShuffle, build_state, pixel_loss
from segmenter.main import main
from segmenter.models import build_model
from segmenter.recipe_options import parse_args

SHORT = [
    "--iterations",
    "6",
    "--eval_interval",
    "4",
    "--log-interval",
    "2",
    "--save-interval",
    "3",
    "--batch-size",
    "4",
]
TINY = ["--model", "vit_tiny_patch16_224", *TINY_VIT_OPTIONS, "--crop-size", "32", "--short-side", "40"]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "digits")


def options(scenes: Path, backbone: Path, *extra: object) -> list[str]:
    given = ["--data-path", scenes, "--resume", backbone, "--device", "cpu", "--num_workers", 0, *SHORT, *TINY, *extra]
    return [*map(str, given)]


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def test_finetuning_a_subset_writes_checkpoints_log_summary_and_pictures(scenes, backbone, tmp_path):
    subset = tmp_path / "subset.json"
    subset.write_text("[0, 3, 7]")
    out = tmp_path / "out"
    summary = main(options(scenes, backbone, "--subset_ids", subset, "--output_dir", out))
    log = log_of(out)
    assert [entry["iteration"] for entry in log] == [2, 4, 6]
    assert ["test_miou" in entry for entry in log] == [False, True, True]  # every fourth iteration, and the last
    assert summary["images"] == 3 and summary["iterations"] == 6
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["last"]["test"]["miou"] == log[-1]["test_miou"]
    assert summary["best"]["test"]["miou"] == max(entry["test_miou"] for entry in log[1:])
    assert list(summary["per_class_iou"]) == CLASSES
    assert summary["per_class_iou"]["digit 3"] == summary["last"]["test"]["iou"][3]
    assert read_checkpoint(out / "checkpoint.pth")["update"] == 6 and (out / "best_checkpoint.pth").is_file()
    for picture in ("curves.png", "predictions.png"):
        assert Image.open(out / picture).width > 300


@pytest.mark.parametrize("decoder", ["linear", "mask_transformer"])
def test_training_learns_the_scenes_it_is_trained_on(decoder, backbone, tmp_path):
    seen = write_scenes(tmp_path / "seen", training=4, validation=0)
    for kind in ("images", "annotations"):
        (seen / kind / "validation").rmdir()
        (seen / kind / "validation").symlink_to(seen / kind / "training")
    plain = ["--crop-size", 48, "--scale", 1, 1, "--flip", 0, "--photometric", 0, "--drop-path", 0, "--dropout", 0]
    recipe = ["--decoder", decoder, "--opt", "adamw", "--lr", 0.003, "--batch-size", 4, "--iterations", 200]
    summary = main(options(seen, backbone, *plain, *recipe, "--max-class-share", 1, "--eval_interval", 50))
    assert summary["best"]["test"]["pixel_acc"] > 70


def test_a_probe_trains_batch_norm_and_one_layer_and_leaves_the_backbone_as_it_was(scenes, backbone, tmp_path):
    main(options(scenes, backbone, "--probe", "linear", "--output_dir", tmp_path))
    trained = read_checkpoint(tmp_path / "checkpoint.pth")
    for name, weight in read_checkpoint(backbone).items():
        assert torch.equal(trained["model"][f"encoder.{name}"], weight)
    assert trained["model"]["decoder.norm.num_batches_tracked"] == 6
    assert trained["args"]["opt"] == "adamw" and trained["args"]["weight_decay"] == 1e-4
    assert log_of(tmp_path)[0]["n_parameters"] == 24 * 10 + 10 + 2 * 24


def test_loss_is_the_mean_cross_entropy_of_the_pixels_that_count():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 3, 4), torch.randint(-1, 5, (2, 3, 4)).to(torch.int16)
    plain = [-F.log_softmax(logits[b, :, y, x], dim=0)[targets[b, y, x].long()]
             for b in range(2) for y in range(3) for x in range(4) if targets[b, y, x] != IGNORED]  # fmt: skip
    assert 0 < len(plain) < 24
    torch.testing.assert_close(pixel_loss(logits, targets, Processes()), torch.stack(plain).mean())


def test_loss_and_gradient_of_ignored_pixels_alone_are_zero():
    logits = torch.randn(1, 5, 3, 4, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 3, 4), IGNORED), Processes())
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_a_run_survives_scenes_without_a_label(scenes, backbone, tmp_path):
    mixed = write_scenes(tmp_path / "mixed", training=6)
    for path in sorted((mixed / "annotations/training").iterdir())[:5]:
        Image.new("L", Image.open(path).size).save(path)
    summary = main(options(mixed, backbone, "--batch-size", 1, "--probe", "linear"))
    assert np.isfinite(summary["last"]["test"]["miou"])
    Image.new("L", (48, 40)).save(path.with_name("scene_005.png"))
    with pytest.raises(InputError, match="no pixel in the 6 masks used from .*training is labelled"):
        main(options(mixed, backbone))


def test_schedule_is_polynomial_per_iteration():
    args = parse_args([*TINY, "--num-classes", "3"])
    state = build_state(args, build_model(args, 3), 1000, None)
    for iteration in (0, 1, 10, 500, 999):
        state.lr_scheduler.step_update(iteration)
        assert state.lr == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 - iteration / 1000) ** 0.9, rel=1e-9)


def test_published_recipe_is_the_default():
    args = vars(parse_args([]))
    expected = {"crop_size": 512, "short_side": 512, "long_side": 2048, "scale": [0.5, 2.0], "max_class_share": 0.75,
                "stride": 480, "batch_size": 8, "opt": "sgd", "momentum": 0.9, "lr": 1e-3, "weight_decay": 0.0,
                "power": 0.9, "min_lr": 1e-5, "warmup": 0.0, "drop_path": 0.1, "dropout": 0.1,
                "decoder": "mask_transformer", "reduce_zero_label": True, "ignore_label": 255}  # fmt: skip
    assert {name: args[name] for name in expected} == expected
    args = parse_args(TINY)
    assert build_state(args, build_model(args, 3), 10, None).optimizer.defaults["nesterov"]


@pytest.mark.parametrize(("n", "world_size"), [(7, 1), (7, 2), (3, 4), (1, 2)])
def test_every_pass_shows_every_image_once_and_processes_share_the_draws_of_one(n, world_size):
    draws = 8 * world_size
    alone = list(EndlessShuffle(n, draws, seed=0))
    for start in range(0, draws - n + 1, n):
        assert sorted(alone[start : start + n]) == list(range(n))
    shares = [list(EndlessShuffle(n, draws, 0, rank, world_size)) for rank in range(world_size)]
    assert [index for draw in zip(*shares, strict=True) for index in draw] == alone
    if n == 7:
        assert list(EndlessShuffle(n, draws, seed=1)) != alone


@pytest.mark.parametrize("how", ["killed", "SIGTERM"])
def test_a_run_that_was_stopped_at_any_iteration_ends_with_the_bits_of_one_that_was_not(
    how, scenes, backbone, tmp_path, monkeypatch
):
    command = options(scenes, backbone, "--auto-resume")
    main([*command, "--output_dir", str(tmp_path / "whole")])
    original, made = segmenter.finetuning.update_weights, 0

    def interrupted(*arguments):
        nonlocal made
        made += 1
        if made == 3:  # in every go, so that it takes four to the end
            if how == "killed":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(segmenter.finetuning, "update_weights", interrupted)
    goes = 0
    while goes < 10:
        made, goes = 0, goes + 1
        try:
            main([*command, "--save-interval", "2", "--output_dir", str(tmp_path / "stopped")])
            break
        except KeyboardInterrupt:
            pass
        except SystemExit as exit:
            assert exit.code == 75
    assert 1 < goes < 10
    for name in ("checkpoint.pth", "best_checkpoint.pth"):
        ended, expected = (read_checkpoint(tmp_path / run / name) for run in ("stopped", "whole"))
        for checkpoint in (ended, expected):
            del checkpoint["args"]
        assert same(ended, expected), name
    for name in ("log.txt", "summary.json"):
        assert (tmp_path / "stopped" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_two_launched_processes_make_the_updates_of_one_and_count_every_scene_once(
    run_script, scenes, backbone, tmp_path
):
    """Padding gives the processes different numbers of pixels that count; three scenes are shared unevenly."""
    odd = write_scenes(tmp_path / "odd", validation=3)
    common = options(odd, backbone, "--lr", 0.01, "--drop-path", 0, "--dropout", 0, "--scale", 0.5, 1)
    main([*common, "--output_dir", str(tmp_path / "one")])
    run_script("segmenter/main.py", *common, "--output_dir", tmp_path / "two", launcher=launch_two(29531))
    one, two = (read_checkpoint(tmp_path / name / "checkpoint.pth")["model"] for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-5)
        assert theirs.get("test_pixel_acc") == pytest.approx(ours.get("test_pixel_acc"), abs=1e-6)


def test_evaluation_of_a_checkpoint_gives_the_result_of_its_run(scenes, backbone, tmp_path):
    summary = main(options(scenes, backbone, "--output_dir", tmp_path))
    evaluated = main(options(scenes, tmp_path / "checkpoint.pth", "--eval"))
    assert evaluated["last"]["test"] == summary["last"]["test"]


def test_evaluation_on_other_classes_is_refused(scenes, backbone, tmp_path):
    main(options(scenes, backbone, "--output_dir", tmp_path))
    names = read_checkpoint(tmp_path / "checkpoint.pth")["run"]["classes"]
    (tmp_path / "names.txt").write_text("\n".join(reversed(names)))
    with pytest.raises(InputError, match=f"was trained for other classes: '{names[0]}' where these images have"):
        main(options(scenes, tmp_path / "checkpoint.pth", "--eval", "--class-names", tmp_path / "names.txt"))


def test_resuming_another_run_is_refused_with_what_differs(scenes, backbone, tmp_path):
    main(options(scenes, backbone, "--output_dir", tmp_path))
    subset = tmp_path / "subset.json"
    subset.write_text("[0, 3, 7]")
    for changed, message in (
        (["--lr", 0.02], "lr was 0.001, is 0.02"),
        (["--subset_ids", subset], "train_images was 12 images, .* is 3 images, "),
        (["--iterations", 5], "iterations was 6, is 5"),
        (["--decoder", "linear"], "decoder was mask_transformer, is linear"),
        (["--seed", 5], "seed was 0, is 5"),
    ):
        with pytest.raises(InputError, match=message):
            main(options(scenes, backbone, "--auto-resume", "--output_dir", tmp_path, *changed))


def test_a_longer_run_goes_on_on_the_longer_schedule(scenes, backbone, tmp_path):
    main(options(scenes, backbone, "--output_dir", tmp_path))
    main(options(scenes, backbone, "--auto-resume", "--iterations", 12, "--output_dir", tmp_path))
    log = log_of(tmp_path)
    assert [entry["iteration"] for entry in log] == [2, 4, 6, 8, 10, 12]
    assert log[3]["train_lr"] == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 - 7 / 12) ** 0.9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--probe", "linear", "--decoder", "linear"], "--probe linear has a decoder of its own"),
        (["--stride", 33], "--stride 33 above --crop-size 32 leaves pixels out"),
        (["--scale", 2, 1], "--scale 2 1: the first must not be above the second"),
        (["--auto-resume"], "--auto-resume needs --output_dir"),
        (["--eval", "--resume", ""], "--eval needs --resume"),
        (["--eval"], "is not a checkpoint of segmenter/main.py"),
        (["--model", "resnet18", "--model-kwargs"], "--model resnet18 is not a ViT"),
        (["--momentum", 0], "--opt sgd does not work with its options as given"),
        (["--opt", "nosuch"], "--opt nosuch is not known"),
    ],
)
def test_options_that_cannot_be_used_are_refused(given, message, scenes, backbone):
    with pytest.raises(InputError, match=message):
        main(options(scenes, backbone, *given))


def test_predictions_are_label_images_that_score_as_the_run_did_and_overlays(scenes, backbone, tmp_path):
    more = ["--decoder", "linear", "--iterations", 20, "--lr", 0.01]
    summary = main(options(scenes, backbone, *more, "--output_dir", tmp_path / "out"))
    photos, output = scenes / "images/validation", tmp_path / "masks"
    segmenter.predict.main(["--checkpoint", str(tmp_path / "out/checkpoint.pth"), "--data_path", str(photos),
                            "--output", str(output), "--device", "cpu"])  # fmt: skip
    right = total = 0
    for photo in sorted(photos.iterdir()):
        truth = np.asarray(Image.open(scenes / "annotations/validation" / f"{photo.stem}.png"))
        labels = np.asarray(Image.open(output / "labels" / f"{photo.stem}.png"))
        assert labels.shape == truth.shape and labels.min() >= 1 and labels.max() <= 10
        right, total = right + (labels == truth).sum(), total + (truth > 0).sum()
        assert Image.open(output / "overlays" / f"{photo.stem}.png").size == truth.shape[::-1]
    assert 100 * right / total == pytest.approx(summary["last"]["test"]["pixel_acc"])
    assert json.loads((output / "classes.json").read_text())["4"] == "digit 3"


def test_photos_are_predicted_upright(scenes, backbone, tmp_path):
    main(options(scenes, backbone, "--iterations", 1, "--output_dir", tmp_path / "out"))
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (40, 60)).save(tmp_path / "photos" / "a.jpg", exif=exif)
    where = ["--data_path", str(tmp_path / "photos"), "--output", str(tmp_path / "masks")]
    segmenter.predict.main(["--checkpoint", str(tmp_path / "out/checkpoint.pth"), *where, "--device", "cpu"])
    assert Image.open(tmp_path / "masks/labels/a.png").size == (60, 40)


@pytest.mark.parametrize("given", ["backbone", "photos"])
def test_predicting_with_what_is_no_model_or_from_what_is_no_folder_is_refused(given, scenes, backbone, tmp_path):
    photos = scenes / "images/validation" if given == "backbone" else tmp_path / "nowhere"
    message = "is not a checkpoint of segmenter/main.py" if given == "backbone" else "image folder .* is not there"
    with pytest.raises(InputError, match=message):
        segmenter.predict.main(["--checkpoint", str(backbone), "--data_path", str(photos),
                                "--output", str(tmp_path / "masks")])  # fmt: skip
    assert not (tmp_path / "masks").exists()


def test_an_image_that_cannot_be_read_is_told_and_the_others_are_labelled(scenes, backbone, tmp_path, capsys):
    main(options(scenes, backbone, "--iterations", 1, "--output_dir", tmp_path / "out"))
    Path(tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 60)).save(tmp_path / "photos" / "b.jpg")
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no image")
    where = ["--data_path", str(tmp_path / "photos"), "--output", str(tmp_path / "masks")]
    segmenter.predict.main(["--checkpoint", str(tmp_path / "out/checkpoint.pth"), *where, "--device", "cpu"])
    assert (tmp_path / "masks/labels/b.png").is_file() and (tmp_path / "masks/classes.json").is_file()
    said = capsys.readouterr().out
    assert "wrote 1 of 2 label images" in said and "a.jpg" in said


def test_masks_and_images_that_predict_has_not_written_are_never_overwritten(scenes, backbone, tmp_path, monkeypatch):
    main(options(scenes, backbone, "--iterations", 1, "--output_dir", tmp_path / "out"))
    yolo = tmp_path / "yolo"
    for kind in ("images", "labels"):
        (yolo / kind).mkdir(parents=True)
        Image.new("L", (40, 60), 7).save(yolo / kind / "a.png")
    before = (yolo / "labels" / "a.png").read_bytes()
    checkpoint = ["--checkpoint", str(tmp_path / "out/checkpoint.pth"), "--device", "cpu"]
    with pytest.raises(InputError, match="yolo/labels holds other files than masks of these classes"):
        segmenter.predict.main([*checkpoint, "--data_path", str(yolo / "images"), "--output", str(yolo)])
    assert (yolo / "labels" / "a.png").read_bytes() == before
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("segmenter.evaluation.overlay", Mock(side_effect=KeyboardInterrupt))
        segmenter.predict.main([*checkpoint, "--data_path", str(yolo / "images"), "--output", str(tmp_path / "m")])
    for _ in range(2):  # what a killed run left, and its own files, it may write again
        segmenter.predict.main([*checkpoint, "--data_path", str(yolo / "images"), "--output", str(tmp_path / "m")])
    with pytest.raises(InputError, match="the images are in .*m/overlays, which would be overwritten"):
        segmenter.predict.main(
            [*checkpoint, "--data_path", str(tmp_path / "m/overlays"), "--output", str(tmp_path / "m")]
        )


def test_a_probe_of_random_weights_is_refused(scenes, tmp_path):
    for extra, message in (
        (
            ["--auto-resume", "--output_dir", tmp_path / "new"],
            "needs --resume: .*new holds no checkpoint to go on from",
        ),
        (["--resume", "", "--batch-size", 1, "--crop-size", 8], "needs --resume"),
    ):
        with pytest.raises(InputError, match=message):
            main([*options(scenes, "", "--probe", "linear", *extra)])
