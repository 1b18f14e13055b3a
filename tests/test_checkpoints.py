"""Checkpoints in the formats found in the wild; nothing is loaded that does not fit, and nothing is executed."""

import argparse
import os
import pickle

import pytest
import safetensors.torch
import timm
import torch
from conftest import tiny_vit

from common.checkpoints import download_checkpoint, read_checkpoint
from common.errors import InputError
from common.pretrained import load_pretrained, network_weights


def load(model, checkpoint, key="teacher"):
    return load_pretrained(model, network_weights(checkpoint, "test.pth", key), "test.pth")


def with_prefix(weights, prefix):
    return {prefix + name: weight for name, weight in weights.items()}


WEIGHTS = tiny_vit().state_dict()
OTHER = {name: weight + 1 for name, weight in WEIGHTS.items()}
DINO_HEAD = {"head.mlp.0.weight": torch.zeros(2, 2), "head.last_layer.weight_g": torch.zeros(2, 1)}


@pytest.mark.parametrize(
    "checkpoint",
    [
        WEIGHTS,
        {"model": WEIGHTS},
        {"state_dict": with_prefix(WEIGHTS, "module.")},
        {"teacher": with_prefix(WEIGHTS, "backbone."), "student": OTHER},
        {"student": OTHER, "teacher": with_prefix({**WEIGHTS, **DINO_HEAD}, "module.backbone."), "epoch": 3},
        {"teacher": {**with_prefix(WEIGHTS, "backbone."), **DINO_HEAD}},
        {**WEIGHTS, "head.weight": torch.zeros(1000, 24), "head.bias": torch.zeros(1000)},
    ],
    ids=["bare", "model", "state_dict+module", "teacher", "dino full", "dino head", "classification head"],
)
def test_every_backbone_weight_is_loaded_from(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "c.pth")
    model = tiny_vit(depth=2)
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    assert load(model, read_checkpoint(tmp_path / "c.pth")) == []
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, WEIGHTS[name])


def test_the_checkpoint_key_chooses_the_network():
    model = tiny_vit()
    load(model, {"teacher": WEIGHTS, "student": OTHER}, key="student")
    assert torch.equal(model.state_dict()["norm.weight"], OTHER["norm.weight"])


def test_a_key_that_was_asked_for_and_is_not_there_is_no_other_network():
    with pytest.raises(InputError, match="holds no network under modelema; it holds model, model_ema"):
        load(tiny_vit(), {"model": WEIGHTS, "model_ema": OTHER}, "modelema")
    assert load(tiny_vit(), WEIGHTS, "student") == []  # a bare state dict has no keys of networks


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(3).to_sparse(),
        torch.ones(3, device="meta"),
        torch.ones(3, dtype=torch.complex64),
        torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    ],
)
def test_what_is_no_dense_tensor_of_plain_numbers_is_no_network(weight):
    with pytest.raises(InputError, match="holds no network"):
        load(tiny_vit(), {"model": {**WEIGHTS, "norm.weight": weight}})
    with pytest.raises(InputError, match="holds no network"):
        load(tiny_vit(), {"model": dict(enumerate(WEIGHTS.values()))})


def test_whole_numbers_are_no_weights_of_a_backbone():
    with pytest.raises(InputError, match="of whole numbers: norm.weight$"):
        load(tiny_vit(), {**WEIGHTS, "norm.weight": WEIGHTS["norm.weight"].to(torch.int8)})


def test_published_options_in_a_namespace_are_read_as_data(tmp_path):
    torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=0.1)}, tmp_path / "c.pth")
    assert read_checkpoint(tmp_path / "c.pth")["args"].lr == 0.1


def test_safetensors_files_are_read(tmp_path):
    safetensors.torch.save_file(WEIGHTS, tmp_path / "c.safetensors")
    assert load(tiny_vit(), read_checkpoint(tmp_path / "c.safetensors")) == []


def test_a_head_of_another_size_is_dropped_and_stays_fresh():
    model = tiny_vit(num_classes=3)
    before = model.head.weight.clone()
    fresh = load(model, {**WEIGHTS, "head.weight": torch.ones(1000, 24), "head.bias": torch.ones(1000)})
    assert fresh == ["head.weight", "head.bias"]
    assert torch.equal(model.head.weight, before)


def test_missing_unexpected_and_misshapen_weights_are_listed():
    damaged = {**WEIGHTS, "blocks.0.extra": torch.zeros(1), "norm.weight": torch.zeros(5)}
    del damaged["cls_token"]
    with pytest.raises(
        InputError, match="missing: cls_token; unexpected: blocks.0.extra; of another shape: norm.weight"
    ):
        load(tiny_vit(), damaged)


def test_the_weights_of_another_patch_size_are_refused():
    with pytest.raises(InputError, match="of another shape: patch_embed.proj.weight"):
        load(tiny_vit(patch_size=16), WEIGHTS)


def test_position_embeddings_of_another_size_are_interpolated_and_the_class_token_kept():
    model = tiny_vit(img_size=64)
    assert load(model, WEIGHTS) == []
    theirs, ours = WEIGHTS["pos_embed"], model.state_dict()["pos_embed"]
    assert ours.shape == (1, 1 + 64, 24)
    assert torch.equal(ours[:, 0], theirs[:, 0])
    grids = [embedding[0, 1:].T.reshape(24, side, side) for embedding, side in ((theirs, 4), (ours, 8))]
    expected = torch.nn.functional.interpolate(grids[0][None], (8, 8), mode="bicubic", antialias=True)[0]
    torch.testing.assert_close(grids[1], expected)


def test_a_plain_backbone_starts_a_distilled_model_whose_extra_token_stays_fresh():
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, **tiny)
    before = model.pos_embed[:, 1].clone()
    fresh = load(model, WEIGHTS)
    assert sorted(fresh) == ["dist_token", "head.bias", "head.weight", "head_dist.bias", "head_dist.weight"]
    assert torch.equal(model.pos_embed[:, 1], before)
    assert torch.equal(model.pos_embed[:, 2:], WEIGHTS["pos_embed"][:, 1:])


def test_dinos_names_of_an_xcit_are_understood():
    model = timm.create_model("xcit_nano_12_p16_224", num_classes=0, img_size=32)
    published = {}
    for name, weight in model.state_dict().items():
        published[name.replace("pos_embed.", "pos_embeder.")] = weight
    for block in {name.split(".")[1] for name in published if name.startswith("cls_attn_blocks.")}:
        for kind in ("weight", "bias"):
            parts = [published.pop(f"cls_attn_blocks.{block}.attn.{letter}.{kind}") for letter in "qkv"]
            published[f"cls_attn_blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    assert load(timm.create_model("xcit_nano_12_p16_224", num_classes=0, img_size=32), published) == []


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_checkpoint_that_needs_pickle_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": WEIGHTS, "hook": RunsCode()}, "c.pth")
    with pytest.raises(InputError, match="cannot be read as plain tensors"):
        read_checkpoint("c.pth")
    (tmp_path / "p.pth").write_bytes(pickle.dumps(RunsCode()))
    with pytest.raises(InputError, match=r"p\.pth"):
        read_checkpoint("p.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_checkpoint_is_named(tmp_path, suffix):
    path = tmp_path / f"c{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=f"c{suffix} is truncated or not a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_is_known_by_its_content_not_by_its_name(suffix, tmp_path):
    path = tmp_path / f"c{suffix}"
    (safetensors.torch.save_file if suffix == ".pth" else torch.save)(WEIGHTS, path)
    assert load(tiny_vit(), read_checkpoint(path)) == []


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html>\n<html>404</html>", "it is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "it is a Git LFS pointer"),
        (b'{"a": 1}', "it is a JSON file"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(suffix, content, kind, tmp_path):
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"c{suffix} is .*not a checkpoint: {kind}"):
        read_checkpoint(path)


def test_an_empty_or_missing_checkpoint_is_named(tmp_path):
    (tmp_path / "empty.pth").touch()
    with pytest.raises(InputError, match=r"empty\.pth is truncated or not a checkpoint"):
        read_checkpoint(tmp_path / "empty.pth")
    with pytest.raises(InputError, match=r"gone\.pth is not there"):
        read_checkpoint(tmp_path / "gone.pth")


def test_a_checkpoint_without_a_network_says_what_it_holds():
    with pytest.raises(InputError, match="holds no network under teacher or model or state_dict; it holds epoch, loss"):
        network_weights({"epoch": 1, "loss": 2.0}, "test.pth")


def test_a_failed_download_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=f"fetch it by hand and put it at {tmp_path}/checkpoints/w.pth"):
        download_checkpoint("https://localhost:9/w.pth")


def test_weights_put_there_by_hand_are_used(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(WEIGHTS, tmp_path / "checkpoints" / "w.pth")
    assert download_checkpoint("https://localhost:9/w.pth").keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    ("part", "value"), [("epoch", "3"), ("optimizer", []), ("losses", {}), ("run", {"classes": "ants"})]
)
def test_a_part_of_a_runs_checkpoint_that_is_not_what_it_should_be_is_named(part, value, tmp_path):
    run = {"model": {}, "optimizer": {}, "lr_scheduler": {}, "epoch": 1, "run": {}}
    torch.save({**run, part: value}, tmp_path / "c.pth")
    with pytest.raises(InputError, match=f"c.pth is damaged: its {'classes' if part == 'run' else part} is a "):
        read_checkpoint(tmp_path / "c.pth")


def test_what_other_projects_mean_by_the_same_names_is_no_damage(tmp_path):
    other = {"model": {}, "optimizer": {}, "lr_scheduler": {}, "epoch": 1, "best": 0.8, "run": "3f9a", "args": "--lr 1"}
    torch.save(other, tmp_path / "c.pth")
    read = read_checkpoint(tmp_path / "c.pth")
    assert (read["best"], read["run"], read["args"]) == ({}, {}, {})


def test_of_a_published_checkpoint_what_it_lacks_is_empty(tmp_path):
    published = {"model": {}, "optimizer": {}, "lr_scheduler": {}, "epoch": 1, "args": argparse.Namespace(opt="sgd")}
    torch.save(published, tmp_path / "c.pth")
    read = read_checkpoint(tmp_path / "c.pth")
    assert (read["args"], read["run"], read["best"], read["update"]) == ({"opt": "sgd"}, {}, {}, 0)
    read["losses"].append(1.0)  # as the run that resumes it does
    assert read_checkpoint(tmp_path / "c.pth")["losses"] == []
