"""Features of images, from the command to the file."""

import contextlib
import errno
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from hashlib import md5
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from conftest import CLASSES, ROOT, TINY_VIT_OPTIONS, launch_two, tiny_vit, write_image
from PIL import Image
from test_nothing_lost import Nursery

from common.command_line import run
from common.errors import InputError
from common.feature_file import FeatureFile, read_features, unfinished
from common.pool_paths import PoolImage, paths_file, read_pool_paths
from common.processes import Processes
from data_selection import extraction
from data_selection.backbones import Backbone, build_backbone
from data_selection.extract_feature import main

KILLS = 10
TINY = ["--arch", "vit_tiny_patch16_224", *TINY_VIT_OPTIONS, "--device", "cpu", "--num_workers", "0"]


def folder_options(folder: Path, backbone: Path, out: Path, *extra: object) -> list[str]:
    given = ["--dataset", "Folder", "--data_path", folder, "--pretrained_weights", backbone, "--output_dir", out]
    return [*TINY, *map(str, [*given, *extra])]


def class_tokens(weights: dict[str, torch.Tensor], images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """An independent ViT in float64: the normalised [CLS] token after each block, and the last mean patch token."""
    w = {name: weight.double() for name, weight in weights.items()}

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = F.conv2d(images.double(), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=8)
    x = torch.cat([w["cls_token"].expand(len(images), -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + w["pos_embed"]
    tokens = []
    for block in ("blocks.0", "blocks.1"):
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.reshape(len(images), -1, 3, 2, 12).permute(2, 0, 3, 1, 4)
        attended = (q @ k.transpose(-1, -2) / 12**0.5).softmax(-1) @ v
        x = x + linear(attended.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        tokens.append(norm(x, "norm")[:, 0])
    return tokens, norm(x, "norm")[:, 1:].mean(dim=1)


def preprocessed(path: Path) -> torch.Tensor:
    image = Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.from_numpy((np.asarray(image) / 255 - mean) / std).permute(2, 0, 1)[None]


def test_features_equal_an_independent_forward_pass_row_by_row(pool, backbone, tmp_path):
    path = main(folder_options(pool, backbone, tmp_path, "--batch_size_per_gpu", 7))
    assert path == tmp_path / "insects_train.npy"
    features, labels = read_features(path)
    assert np.load(path).dtype == np.float32 and features.shape == (30, 24)
    assert labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    for row, image in enumerate(read_pool_paths(path, 30).files()):
        assert image == sorted((pool / "train").glob("*/*"))[row]
        tokens, _ = class_tokens(torch.load(backbone), preprocessed(image))
        np.testing.assert_allclose(features[row], tokens[-1][0], rtol=1e-3, atol=1e-3)


def test_n_last_blocks_concatenates_class_tokens_in_depth_order(backbone):
    images = torch.randn(3, 3, 32, 32)
    tokens, _ = class_tokens(torch.load(backbone), images)
    actual = Backbone(tiny_vit(), "", "", None, n_last_blocks=2).features(images)
    torch.testing.assert_close(actual.double(), torch.cat(tokens, dim=1), rtol=1e-3, atol=1e-3)


def test_avgpool_interleaves_the_class_token_with_the_mean_patch_token(backbone):
    images = torch.randn(3, 3, 32, 32)
    tokens, mean_patch = class_tokens(torch.load(backbone), images)
    actual = Backbone(tiny_vit(), "", "", None, avgpool_patchtokens=True).features(images).double()
    assert actual.shape == (3, 48)
    torch.testing.assert_close(actual[:, ::2], tokens[-1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(actual[:, 1::2], mean_patch, rtol=1e-3, atol=1e-3)


def test_a_network_that_is_no_vit_gives_its_pooled_output(pool, tmp_path):
    network = timm.create_model("resnet10t", num_classes=0)
    torch.save(network.state_dict(), tmp_path / "r.pth")
    path = main(["--arch", "resnet10t", "--input_size", "32", "--dataset", "Folder", "--data_path", str(pool),
                 "--device", "cpu", "--num_workers", "0", "--pretrained_weights", str(tmp_path / "r.pth"),
                 "--output_dir", str(tmp_path)])  # fmt: skip
    features, _ = read_features(path)
    image = preprocessed(read_pool_paths(path, 30).files()[4]).float()
    np.testing.assert_allclose(features[4], network.eval()(image)[0].detach(), rtol=1e-3, atol=1e-3)


def test_images_of_any_shape_are_resized_whole(backbone, tmp_path):
    write_image(tmp_path / "photos" / "wide.png", seed=1, size=(90, 40))
    features, labels = read_features(main(folder_options(tmp_path / "photos", backbone, tmp_path)))
    tokens, _ = class_tokens(torch.load(backbone), preprocessed(tmp_path / "photos" / "wide.png"))
    np.testing.assert_allclose(features[0], tokens[-1][0], rtol=1e-3, atol=1e-3)
    assert labels.tolist() == [-1]  # a flat folder has no labels


def test_the_val_split_of_a_folder_has_its_own_file(pool, backbone, tmp_path):
    path = main(folder_options(pool, backbone, tmp_path, "--split", "val"))
    assert path.name == "insects_val.npy" and len(read_features(path)[0]) == 6


def test_all_rows_are_in_the_file_before_the_processes_meet(pool, backbone, tmp_path, monkeypatch):
    happened = []
    monkeypatch.setattr(np.memmap, "flush", lambda table: happened.append("flush"))
    monkeypatch.setattr(Processes, "barrier", lambda processes: happened.append("barrier"))
    main(folder_options(pool, backbone, tmp_path))
    assert happened[-3:] == ["flush", "barrier", "flush"]  # the last one is of the main process's own


def test_bf16_gives_nearly_the_same_features(pool, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "has_fast_bfloat16", lambda: True)
    exact, _ = read_features(main(folder_options(pool, backbone, tmp_path / "off")))
    rough, _ = read_features(main(folder_options(pool, backbone, tmp_path / "bf16", "--amp", "bf16")))
    cosine = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert cosine.min() > 0.99
    assert not np.array_equal(exact, rough)


@pytest.mark.parametrize(
    ("amx", "avx512", "vendor", "fast"),
    [
        (True, False, "GenuineIntel", True),
        (False, True, "GenuineIntel", False),
        (False, True, "AuthenticAMD", True),
        (False, False, "AuthenticAMD", False),
    ],
)
def test_bf16_is_used_on_processors_that_multiply_fast_in_it(amx, avx512, vendor, fast, monkeypatch, tmp_path, capsys):
    (tmp_path / "cpuinfo").write_text(f"vendor_id : {vendor}\n")
    monkeypatch.setattr(extraction, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    assert extraction.amp_dtype("bf16", Processes()) == (torch.bfloat16 if fast else None)
    assert ("no faster in bfloat16" in capsys.readouterr().out) != fast


def test_vit_arch_and_patch_size_name_the_published_networks(monkeypatch, tmp_path):
    asked = []
    backbones = "data_selection.backbones"
    monkeypatch.setattr(f"{backbones}.download_checkpoint", lambda url: asked.append(url) or {})
    monkeypatch.setattr(f"{backbones}.network_weights", lambda *_: {})
    monkeypatch.setattr(f"{backbones}.load_pretrained", lambda *_: [])
    network = build_backbone("vit_small", patch_size=8, input_size=64).network
    assert network.patch_embed.patch_size == (8, 8) and network.embed_dim == 384 and len(network.blocks) == 12
    build_backbone("xcit_small_12_p16")
    build_backbone("resnet50")
    assert [url.rsplit("/", 1)[1] for url in asked] == [
        "dino_deitsmall8_pretrain.pth", "dino_xcit_small_12_p16_pretrain.pth", "dino_resnet50_pretrain.pth",
    ]  # fmt: skip


def test_two_processes_write_the_file_of_one(pool, backbone, tmp_path, run_script):
    alone = main(folder_options(pool, backbone, tmp_path / "one", "--batch_size_per_gpu", 4))
    options = folder_options(pool, backbone, tmp_path / "two", "--batch_size_per_gpu", 4)
    done = run_script("data_selection/extract_feature.py", *options, launcher=launch_two(29512))
    assert "\r" not in done.stderr  # no progress bar in a log
    assert (tmp_path / "two" / alone.name).read_bytes() == alone.read_bytes()


def test_a_killed_extraction_leaves_no_feature_file_and_resumes_to_the_same_bytes(pool, backbone, tmp_path):
    whole = main(folder_options(pool, backbone, tmp_path / "whole", "--batch_size_per_gpu", 1))
    options = folder_options(pool, backbone, tmp_path / "killed", "--batch_size_per_gpu", 1)
    path = tmp_path / "killed" / whole.name
    # 30 batches of one image, each with a pause, so that the kill falls in the middle
    slow = f"import sys, time; sys.path[:0] = [{str(ROOT)!r}]\n"
    slow += "from data_selection.backbones import Backbone as B; f = B.features\n"
    slow += "B.features = lambda *a: (time.sleep(0.2), f(*a))[1]\n"
    slow += "from data_selection.extract_feature import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *options], cwd=ROOT / "data_selection", stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (unfinished(path).is_file() and computed_rows(unfinished(path)) >= 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= computed_rows(unfinished(path)) < 30
    assert not path.exists()
    with pytest.raises(InputError, match="is unfinished: extract with --resume"):
        read_features(path)
    assert main([*options, "--resume"]).read_bytes() == whole.read_bytes()
    assert not unfinished(path).exists()


def test_an_extraction_killed_at_random_moments_ends_with_the_bytes_of_an_undisturbed_one(backbone, tmp_path):
    for number in range(30):
        write_image(tmp_path / "photos" / f"{number:02d}.png", number)
    options = folder_options(tmp_path / "photos", backbone, tmp_path / "out", "--batch_size_per_gpu", 1, "--resume")
    moments, kills = random.Random(0), 0
    imports = "import data_selection.extraction; from data_selection.extract_feature import main"
    with Nursery(imports) as nursery:
        for _ in range(2):  # the first waits for the imports
            started = time.monotonic()
            nursery.start(folder_options(tmp_path / "photos", backbone, tmp_path / "whole", "--batch_size_per_gpu", 1))
            assert nursery.exit_code() == 0
        longest = time.monotonic() - started
        whole = visible_files(tmp_path / "whole")
        while kills < KILLS:
            child = nursery.start(options)
            time.sleep(longest * moments.random())
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            code = nursery.exit_code()
            assert code in (0, -signal.SIGKILL)
            kills += code == -signal.SIGKILL
            if code == 0:  # finished before it was killed
                assert visible_files(tmp_path / "out") == whole
                shutil.rmtree(tmp_path / "out")
        nursery.start(options)
        assert nursery.exit_code() == 0
    assert visible_files(tmp_path / "out") == whole


def visible_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def computed_rows(path: Path) -> int:
    try:
        return int(np.isfinite(np.load(path)).all(axis=1).sum())
    except ValueError:  # still being created
        return 0


def test_resume_refuses_features_that_were_begun_with_other_options(pool, backbone, tmp_path):
    file = FeatureFile(tmp_path / "f.npy", 4, 2, {"amp": "off"})
    file.prepare(resume=False)
    with pytest.raises(InputError, match="has other settings: amp was off, is bf16"):
        FeatureFile(tmp_path / "f.npy", 4, 2, {"amp": "bf16"}).prepare(resume=True)


def test_resume_of_a_finished_file_leaves_it_alone(pool, backbone, tmp_path, capsys):
    path = main(folder_options(pool, backbone, tmp_path))
    before = path.stat().st_mtime_ns
    main(folder_options(pool, backbone, tmp_path, "--resume"))
    assert path.stat().st_mtime_ns == before and "nothing to resume" in capsys.readouterr().out


def test_resume_refuses_a_finished_file_of_other_features_or_images(pool, backbone, tmp_path):
    images = shutil.copytree(pool / "train", tmp_path / "images")
    options = folder_options(images, backbone, tmp_path, "--resume")
    before = main(options).read_bytes()
    other = torch.load(backbone, weights_only=True)
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(InputError, match="is finished, but has weights .* instead of .*: leave out --resume"):
        main(folder_options(images, tmp_path / "other.pth", tmp_path, "--resume"))
    extra = next(images.iterdir()) / "zz.png"
    write_image(extra, 3)
    with pytest.raises(InputError, match="is finished, but has 30 images instead of 31"):
        main(options)
    extra.unlink()
    one, *_ = sorted(images.rglob("*.png"))
    one.rename(one.with_name("00 renamed.png"))
    with pytest.raises(InputError, match="is finished, but has other images"):
        main(options)
    assert next(tmp_path.glob("*.npy")).read_bytes() == before


def test_resume_refuses_a_finished_file_of_weights_that_were_replaced(pool, backbone, tmp_path):
    weights = torch.load(backbone, weights_only=True)
    torch.save(weights, tmp_path / "weights.pth")
    main(folder_options(pool, tmp_path / "weights.pth", tmp_path))
    torch.save({name: weight + 1 for name, weight in weights.items()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="is finished, but has weights checksum"):
        main(folder_options(pool, tmp_path / "weights.pth", tmp_path, "--resume"))


def test_resume_refuses_a_folder_of_the_same_names_elsewhere(pool, backbone, tmp_path):
    """Two folders of one name may hold other images of the same names, sizes and times."""
    for place in "ab":
        shutil.copytree(pool / "train" / CLASSES[0], tmp_path / place / "photos")
    main(folder_options(tmp_path / "a/photos", backbone, tmp_path))
    with pytest.raises(InputError, match="is finished, but has the images of .*/a/photos"):
        main(folder_options(tmp_path / "b/photos", backbone, tmp_path, "--resume"))
    damaged = tmp_path / "a/photos/zz.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(InputError, match="zz.png"):
        main(folder_options(tmp_path / "a/photos", backbone, tmp_path))
    with pytest.raises(InputError, match="has other settings: folder was .*/a/photos, is .*/b/photos"):
        main(folder_options(tmp_path / "b/photos", backbone, tmp_path, "--resume"))


def begun(pool_folder, backbone, tmp_path):
    """An extraction that ended at an image that cannot be read, which is not there any more."""
    damaged = pool_folder / "zz.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(InputError, match="zz.png"):
        main(folder_options(pool_folder, backbone, tmp_path))
    damaged.unlink()
    return next(tmp_path.glob("*.partial.json"))


def test_a_pool_that_was_moved_is_resumed_with_all_its_features(pool, backbone, tmp_path, monkeypatch):
    shutil.copytree(pool / "train" / CLASSES[0], tmp_path / "a" / "photos")
    begun(tmp_path / "a" / "photos", backbone, tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    computed, seen = [], Backbone.features
    monkeypatch.setattr(Backbone, "features", lambda *args: computed.append(1) or seen(*args))
    main(folder_options(tmp_path / "b" / "photos", backbone, tmp_path, "--resume"))
    assert len(computed) == 1  # of an empty image, for d


def test_what_an_older_version_did_not_note_is_no_difference(pool, backbone, tmp_path):
    photos = shutil.copytree(pool / "train" / CLASSES[0], tmp_path / "photos")
    settings = begun(photos, backbone, tmp_path)
    noted = json.loads(settings.read_text())
    for new in ("folder", "weights_checksum", "model", "feature"):
        del noted[new]
    settings.write_text(json.dumps(noted))
    assert main(folder_options(photos, backbone, tmp_path, "--resume")).is_file()


def test_resume_refuses_a_finished_file_of_other_labels(pool, backbone, tmp_path):
    images = sorted((pool / "train").rglob("*.png"))[:2]
    (tmp_path / "pool.csv").write_text(f"path,label\n{images[0]},\n{images[1]},\n")
    options = [*folder_options(tmp_path / "pool.csv", backbone, tmp_path), "--dataset", "List"]
    main(options)
    (tmp_path / "pool.csv").write_text(f"path,label\n{images[0]},ant\n{images[1]},bee\n")
    with pytest.raises(InputError, match="is finished, but has other labels"):
        main([*options, "--resume"])


def test_images_of_formats_that_are_not_read_are_counted(backbone, tmp_path, capsys):
    write_image(tmp_path / "pool" / "b" / "1.png", 1)
    for name in ("2.GIF", "b/3.heic", "notes.txt"):
        (tmp_path / "pool" / name).touch()
    main(folder_options(tmp_path / "pool", backbone, tmp_path, "--no-labels"))
    assert re.search(r"left out of \S+/pool: 1 .gif, 1 .heic; convert them", capsys.readouterr().out)


def damaged_pool(folder: Path) -> list[Path]:
    """12 images, of which the 4th, 5th and 10th are cut off."""
    for number in range(12):
        write_image(folder / f"{number:02d}.png", number)
    damaged = [folder / f"{number:02d}.png" for number in (3, 4, 9)]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:200])
    return damaged


def all_unreadable(options: list[str]) -> str:
    with pytest.raises(InputError) as caught:
        main(options)
    return str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_all_unreadable_images_are_listed_in_one_run(num_workers, backbone, tmp_path):
    damaged = damaged_pool(tmp_path / "photos")
    extra = "--batch_size_per_gpu", 4, "--num_workers", num_workers
    message = all_unreadable(folder_options(tmp_path / "photos", backbone, tmp_path / "out", *extra))
    listing = tmp_path / "out" / "photos_train_unreadable.txt"
    assert all(str(path) in message for path in damaged) and f"3 of 12, all listed in {listing}" in message
    assert [line.split(": ")[0].split()[-1] for line in listing.read_text().splitlines()] == list(map(str, damaged))


@pytest.mark.parametrize("mend", ["remove", "repair"])
def test_resume_keeps_every_feature_that_is_still_valid_when_images_are_removed_or_repaired(
    mend, backbone, tmp_path, monkeypatch
):
    damaged = damaged_pool(tmp_path / "photos")
    options = folder_options(tmp_path / "photos", backbone, tmp_path / "out", "--batch_size_per_gpu", 1, "--resume")
    all_unreadable(options)
    for number, path in enumerate(damaged):
        path.unlink() if mend == "remove" else write_image(path, 50 + number)
    computed = []
    seen = Backbone.features
    monkeypatch.setattr(Backbone, "features", lambda *args: computed.append(1) or seen(*args))
    resumed = main(options)
    assert len(computed) == 1 + (0 if mend == "remove" else 3)  # one to learn the feature size
    whole = main(folder_options(tmp_path / "photos", backbone, tmp_path / "whole", "--batch_size_per_gpu", 1))
    assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in resumed.parent.iterdir()) == [
        ".photos_train.lock", "photos_train.json", "photos_train.npy", "photos_train_paths.json",
    ]  # fmt: skip


def test_resume_computes_images_that_were_replaced_and_follows_classes_that_moved(backbone, tmp_path):
    for name in ("b/1", "b/2", "c/3", "c/4"):
        write_image(tmp_path / "photos" / f"{name}.png", int(name[-1]))
    bad = tmp_path / "photos" / "c" / "5.png"
    bad.write_bytes(b"")
    options = folder_options(tmp_path / "photos", backbone, tmp_path / "out", "--batch_size_per_gpu", 1, "--resume")
    all_unreadable(options)
    bad.unlink()
    write_image(tmp_path / "photos" / "a" / "0.png", 8)
    write_image(tmp_path / "photos" / "b" / "2.png", 9, size=(40, 40))
    whole = main(folder_options(tmp_path / "photos", backbone, tmp_path / "whole", "--batch_size_per_gpu", 1))
    assert main(options).read_bytes() == whole.read_bytes()
    assert read_features(whole)[1].tolist() == [0, 1, 1, 2, 2]


def test_a_resume_that_was_killed_while_it_moved_rows_loses_none(backbone, tmp_path, monkeypatch):
    damaged = damaged_pool(tmp_path / "photos")
    options = folder_options(tmp_path / "photos", backbone, tmp_path / "out", "--batch_size_per_gpu", 1, "--resume")
    all_unreadable(options)
    for path in damaged:
        path.unlink()
    write_settings, killed = FeatureFile._write_settings, []
    for before in (True, False):  # once before, once after the settings name the new images

        def kill(file, before=before):
            if not before:
                write_settings(file)
            killed.append(1)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(FeatureFile, "_write_settings", kill)
            main(options)
    assert len(killed) == 2
    assert main(options).read_bytes() == main([*options[:-1], "--extra_name", "_b_"]).read_bytes()


def test_an_unfinished_extraction_is_continued_with_smaller_batches_and_with_keywords_of_several_numbers(
    backbone, tmp_path
):
    damaged = damaged_pool(tmp_path / "photos")
    options = folder_options(tmp_path / "photos", backbone, tmp_path / "out", "--resume")
    options = [*options, "--batch_size_per_gpu", "4"]
    all_unreadable(options)
    for path in damaged:
        write_image(path, 1)
    features, _ = read_features(main([*options, "--batch_size_per_gpu", "3"]))
    assert np.isfinite(features).all()
    file = FeatureFile(tmp_path / "f.npy", 2, 1, {"model_kwargs": {"depths": (1, 2)}})
    file.prepare(resume=False)
    file.prepare(resume=True)


def test_beginning_anew_says_that_an_unfinished_file_could_have_been_continued(backbone, tmp_path, capsys):
    damaged_pool(tmp_path / "photos")
    options = folder_options(tmp_path / "photos", backbone, tmp_path / "out")
    all_unreadable(options)
    assert "note:" not in capsys.readouterr().out
    all_unreadable(options)
    assert "photos_train.npy.partial is begun anew; --resume would continue it" in capsys.readouterr().out


def test_a_split_that_a_folder_does_not_have_is_refused_and_classes_are_said(pool, backbone, tmp_path, capsys):
    main(folder_options(pool / "train", backbone, tmp_path))
    assert f"classes: {len(CLASSES)} ({CLASSES[0]}, " in capsys.readouterr().out
    for extra in ([], ["--no-labels"]):
        with pytest.raises(InputError, match="--split val needs a folder of splits, and .*train"):
            main(folder_options(pool / "train", backbone, tmp_path, "--split", "val", *extra))


def test_a_folder_that_cannot_be_read_is_named(pool, backbone, tmp_path, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith(CLASSES[1]):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=f"cannot read the folder .*{CLASSES[1]}: Permission denied"):
        main(folder_options(pool / "train", backbone, tmp_path))


def test_rows_that_a_killed_resume_has_moved_are_not_taken_for_those_of_a_later_run(tmp_path, monkeypatch):
    before, after = ([PoolImage(f"{name}.png", 0, 1, 1) for name in names] for names in ("ab", "ac"))
    file = FeatureFile(tmp_path / "f.npy", 2, 1, {"weights": "one"}, before)
    file.prepare(resume=False)
    file.open()
    file.write(range(2), np.ones((2, 1)), np.zeros(2))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FeatureFile, "_write_settings", Mock(side_effect=KeyboardInterrupt))
        FeatureFile(tmp_path / "f.npy", 2, 1, {"weights": "one"}, after).prepare(resume=True)
    for resume in (False, True):
        other = FeatureFile(tmp_path / "f.npy", 2, 1, {"weights": "another"}, after)
        other.prepare(resume)
    other.open()
    assert other.missing_rows() == [0, 1]
    other.discard()
    assert not list(tmp_path.iterdir())


def test_a_second_extraction_of_one_file_is_refused_and_of_another_is_not(pool, backbone, tmp_path):
    options = folder_options(pool, backbone, tmp_path)
    program = "import sys; sys.path[:0] = [{!r}]; from common.files import *; from pathlib import Path\n"
    program += "with locked(Path({!r}), 'insects_train'): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program.format(str(ROOT), str(tmp_path))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"insects_train is in use by process {other.pid}"):
            main(options)
        main([*options, "--split", "val"])
        other.stdin.close()
    main(options)


def test_a_disk_that_is_full_is_one_line_with_the_file(pool, backbone, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "full", full)  # the empty rows of the file
    with pytest.raises(InputError, match="cannot write .*insects_train.npy: No space left on device"):
        main(folder_options(pool, backbone, tmp_path))
    assert not list(tmp_path.glob("*.npy*"))


def test_file_names_in_any_encoding_are_fine(backbone, tmp_path, run_script):
    write_image(tmp_path / "photos" / "1.png", 1)
    odd = os.fsencode(tmp_path / "photos") + b"/caf\xe9.png"
    (tmp_path / "photos" / "1.png").rename(os.fsdecode(odd))
    options = folder_options(tmp_path / "photos", backbone, tmp_path)
    assert [os.fsencode(path) for path in read_pool_paths(main(options), 1).files()] == [odd]
    Path(os.fsdecode(odd)).write_bytes(b"")
    done = run_script("data_selection/extract_feature.py", *options, check=False)
    assert done.returncode == 2 and "caf" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def cifar_stand_in(tmp_path, monkeypatch) -> Path:
    """Archives in CIFAR10's format with 20 training and 10 test images, in place of the download."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    lists = {"train_list": [], "test_list": []}
    for name, kind in ((f"data_batch_{i}", "train_list") for i in range(1, 6)):
        batch = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": rng.integers(0, 10, 4).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
        lists[kind].append([name, md5((folder / name).read_bytes()).hexdigest()])
    batch = {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    lists["test_list"].append(["test_batch", md5((folder / "test_batch").read_bytes()).hexdigest()])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    meta = {
        "filename": "batches.meta",
        "key": "label_names",
        "md5": md5((folder / "batches.meta").read_bytes()).hexdigest(),
    }
    data = tmp_path / "data"
    data.mkdir()
    with tarfile.open(data / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
    monkeypatch.setattr(
        torchvision.datasets.CIFAR10, "tgz_md5", md5((data / "cifar-10-python.tar.gz").read_bytes()).hexdigest()
    )
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", meta)
    for kind, files in lists.items():
        monkeypatch.setattr(torchvision.datasets.CIFAR10, kind, files)
    return data


def test_cifar_is_unpacked_from_an_archive_that_was_put_there_by_hand(cifar_stand_in, backbone, tmp_path):
    options = [*TINY, "--dataset", "CIFAR10", "--data_path", str(cifar_stand_in), "--pretrained_weights", str(backbone)]
    train = main([*options, "--output_dir", str(tmp_path)])
    test = main([*options, "--output_dir", str(tmp_path), "--split", "test"])
    assert (train.name, test.name) == ("CIFAR10_train.npy", "CIFAR10_test.npy")
    assert read_features(train)[0].shape == (20, 24)
    assert read_features(test)[1].tolist() == list(range(10))
    assert not paths_file(train).exists()  # CIFAR's images are no files


def test_a_failed_download_of_cifar_says_where_to_put_the_archive(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", "https://localhost:9/cifar-100-python.tar.gz")
    with pytest.raises(InputError, match="cannot download CIFAR100 from .* put it at .*/cifar-100-python.tar.gz"):
        main([*TINY, "--dataset", "CIFAR100", "--data_path", str(tmp_path), "--pretrained_weights", str(backbone),
              "--output_dir", str(tmp_path)])  # fmt: skip


def empty_classes(folder: Path) -> str:
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    return "holds no images"


def no_images(folder: Path) -> str:
    folder.mkdir()
    (folder / "notes.txt").touch()
    return "holds no images"


def images_beside_folders(folder: Path) -> str:
    write_image(folder / "a" / "1.png", 1)
    write_image(folder / "2.png", 1)
    return "holds images as well as folders"


def corrupt_image(folder: Path) -> str:
    write_image(folder / "1.png", 1)
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes()[:200])
    return r"cannot read the image .*2\.png"


@pytest.mark.parametrize(
    "make", [empty_classes, no_images, images_beside_folders, corrupt_image, lambda folder: "is not there"]
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unusable_image_folder_is_one_clear_line(make, num_workers, backbone, tmp_path, capsys):
    message = make(tmp_path / "photos")
    options = folder_options(tmp_path / "photos", backbone, tmp_path / "out", "--num_workers", num_workers)
    with pytest.raises(SystemExit, match="2"):
        run(lambda: main(options))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and re.search(message, line) and "Traceback" not in line
    assert not list((tmp_path / "out").glob("*.npy"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "MNIST"], "invalid choice: 'MNIST'"),
        (["--arch", "vit_smal"], "model 'vit_smal' is not known to timm"),
        (["--dataset", "ImageNet", "--data_path", "nowhere"], "image folder nowhere/ImageNet/train is not there"),
        (["--arch", "vit_tiny"], "there are no DINO weights for vit_tiny/16: give --pretrained_weights"),
        (["--arch", "resnet50", "--patch_size", "8"], "--patch_size goes with"),
        (["--arch", "resnet50", "--n_last_blocks", "4"], "need a ViT with a class token, not resnet50"),
        (["--n_last_blocks", "4", "--avgpool_patchtokens"], "goes with --n_last_blocks 1 only"),
        (
            ["--n_last_blocks", "40", "--pretrained_weights", "BACKBONE", *TINY],
            "--n_last_blocks 40 is more than the 2 blocks",
        ),
        (["--batch_size_per_gpu", "0"], "0 must be at least 1"),
        (["--input_size", "abc"], "'abc' is not a whole number"),
        (["--amp", "int8"], "invalid choice: 'int8'"),
        (["--device", "gpu"], "--device gpu cannot be used here"),
        (["--model-kwargs", "depth"], "'depth' is not KEY=VALUE"),
        (["--model-kwargs", "deepness=3"], "cannot be built with .*deepness=3"),
        (["--pretrained_weights", "gone.pth"], "checkpoint gone.pth is not there"),
        (["--output_dir", "/proc/nowhere"], "cannot write into the output folder /proc/nowhere"),
        (["--extra_name", "a/b"], "--extra_name a/b"),
    ],
)
def test_an_unusable_option_is_one_clear_line(options, message, pool, backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [str(backbone) if option == "BACKBONE" else option for option in options]
    with pytest.raises(InputError, match=message) as caught:
        main(["--dataset", "Folder", "--data_path", str(pool), "--device", "cpu", *options])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.npy*"))


def test_errors_reach_the_user_as_one_line_and_a_non_zero_exit(run_script, tmp_path):
    done = run_script("data_selection/extract_feature.py", "--dataset", "MNIST", check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: argument --dataset: invalid choice: 'MNIST'")
