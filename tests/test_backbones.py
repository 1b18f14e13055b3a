"""Small fresh networks of each family: the right token, the right statistics, their owners' checkpoint formats."""

import socket
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import timm
import torch
from conftest import TINY_VIT

from common import networks
from common.errors import InputError
from common.networks import create_network, preprocessing
from common.pretrained import load_pretrained, network_weights
from data_selection.backbones import Backbone, build_backbone

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 4}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OWN = "the model's own pooling"
FAMILIES = {  # name: overrides, statistics, the feature in words
    "vit_small_patch16_224.dino": (SMALL, IMAGENET, "CLS"),
    "vit_small_patch14_dinov2.lvd142m": (SMALL, IMAGENET, "CLS"),
    "vit_small_patch14_reg4_dinov2.lvd142m": (SMALL, IMAGENET, "CLS"),
    "vit_small_patch16_dinov3.lvd1689m": (SMALL, IMAGENET, "CLS"),
    "vit_base_patch16_siglip_224.v2_webli": (SMALL, HALF, f"{OWN} (map)"),
    "vit_base_patch16_clip_224.openai": (SMALL, CLIP, "CLS"),
    "vit_pe_core_base_patch16_224.fb": (SMALL, HALF, f"{OWN} (map)"),
    "convnext_tiny.dinov3_lvd1689m": (
        {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
        IMAGENET,
        "the model's own pooling",
    ),
    "resnet10t.c3_in1k": ({}, IMAGENET, OWN),
}


def fresh(name: str, num_classes: int = 0, **kwargs) -> torch.nn.Module:
    torch.manual_seed(0)
    size = preprocessing(name, model_kwargs=kwargs).input_size
    network = create_network(name, num_classes, size, kwargs).eval()
    with torch.no_grad():
        for weight in network.parameters():  # fresh ones are nearly constant functions: give every weight a say
            weight.add_(torch.randn_like(weight) * 0.1)
    return network


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_its_token_with_the_statistics_of_its_configuration(name, tmp_path):
    overrides, statistics, kind = FAMILIES[name]
    network = fresh(name, **overrides)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "w.safetensors")
    backbone = build_backbone(name, weights=str(tmp_path / "w.safetensors"), model_kwargs=overrides)
    described = backbone.describe()
    assert (tuple(described["mean"]), tuple(described["std"])) == statistics
    assert described["input_size"] == 224 and described["interpolation"] == "bicubic"
    assert described["feature"] == kind and described["model"] == name
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        features = backbone.features(images)
        expected = network.forward_features(images)[:, 0] if kind == "CLS" else network(images)
    assert features.shape == (2, described["d"]) and torch.equal(features, expected)


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_registers_are_never_averaged_in(name):
    network, images = fresh(name, **SMALL), torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        tokens = network.forward_features(images)
        features = Backbone(network, "", "", None, avgpool_patchtokens=True).features(images)
        torch.testing.assert_close(features[:, ::2], tokens[:, 0])
        torch.testing.assert_close(features[:, 1::2], tokens[:, 5:].mean(dim=1))
        assert Backbone(network, "", "", None, n_last_blocks=2).features(images)[:, 48:].equal(tokens[:, 0])


def test_the_published_names_keep_imagenets_statistics_and_224_pixels():
    for name in ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "deit_small_patch16_224"):
        assert preprocessing(name) == (224, *IMAGENET, "bicubic")
    assert preprocessing("vit_tiny_patch16_224.augreg_in21k").mean == HALF[0]
    assert preprocessing("vit_base_patch16_siglip_224").mean == HALF[0]


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        ("vit_small_patch14_dinov2", {}, 224),
        ("vit_small_patch16_dinov3", {}, 224),
        ("vit_so400m_patch14_siglip_384", {}, 224),
        ("vit_base_patch16_plus_240", {}, 224),
        ("vit_tiny_patch16_224", {"img_size": 32}, 32),
        ("vit_tiny_patch16_224", {"patch_size": 9}, 224),
        ("swinv2_tiny_window8_256", {}, 256),
        ("resnet50", {}, 224),
    ],
)
def test_the_input_size_is_224_where_the_network_can_take_it(name, kwargs, size):
    assert preprocessing(name, model_kwargs=kwargs).input_size == size


def stand_in_dinov2(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Facebook's names for the weights of a timm DINOv2."""
    weights = dict(network.state_dict())
    if "reg_token" in weights:  # timm adds the position embedding of the class token to it
        weights["register_tokens"] = weights.pop("reg_token")
        weights["pos_embed"] = torch.cat([torch.zeros(1, 1, 48), weights["pos_embed"]], dim=1)
    return {"mask_token": torch.zeros(1, 48), **weights}


def stand_in_dinov3(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    weights = {"storage_tokens": network.reg_token.data, "mask_token": torch.zeros(1, 48)}
    weights["rope_embed.periods"] = torch.ones(4)
    for name, weight in network.state_dict().items():
        weights[name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = weight
        if name.endswith("qkv.weight"):
            weights[name.replace("weight", "bias")] = torch.zeros(len(weight))
            weights[name.replace("weight", "bias_mask")] = torch.full((len(weight),), torch.nan)
    del weights["reg_token"]
    return weights


def stand_in_openclip(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    names = {"patch_embed.proj": "conv1", "blocks.": "transformer.resblocks.", "norm_pre": "ln_pre",
             "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "norm1": "ln_1",
             "norm2": "ln_2", "qkv.": "in_proj_"}  # fmt: skip
    weights = {"logit_scale": torch.ones(()), "text_projection": torch.zeros(4, 4), "ln_final.weight": torch.ones(4)}
    for name, weight in network.state_dict().items():
        renamed = "ln_post" + name[4:] if name.startswith("norm.") else name
        for ours, theirs in names.items():
            renamed = renamed.replace(ours, theirs)
        weights[f"visual.{renamed}"] = weight
    weights["visual.class_embedding"] = weights.pop("visual.cls_token")[0, 0]
    weights["visual.positional_embedding"] = weights.pop("visual.pos_embed")[0]
    weights["visual.proj"] = torch.zeros(48, 16)
    return weights


def stand_in_mae(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    decoder = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_blocks.0.norm1.weight": torch.ones(8),
        "decoder_pos_embed": torch.ones(1),
    }
    return {"model": {**network.state_dict(), **decoder}}


def stand_in_dino_training(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    teacher = {f"module.backbone.{name}": weight for name, weight in network.state_dict().items()}
    heads = {"module.dino_head.mlp.0.weight": torch.ones(2, 2), "module.ibot_head.mlp.0.weight": torch.ones(2, 2)}
    return {"teacher": {**teacher, **heads}, "student": {"x": torch.ones(1)}}


@pytest.mark.parametrize(
    ("name", "stand_in"),
    [
        ("vit_small_patch14_dinov2", stand_in_dinov2),
        ("vit_small_patch14_reg4_dinov2", stand_in_dinov2),
        ("vit_small_patch16_dinov3", stand_in_dinov3),
        ("vit_base_patch16_clip_224", stand_in_openclip),
        ("vit_small_patch16_224", stand_in_mae),
        ("vit_small_patch16_224", stand_in_dino_training),
        ("vit_small_patch16_224", lambda network: {f"_orig_mod.{n}": w for n, w in network.state_dict().items()}),
        ("vit_small_patch16_224",
         lambda network: {"state_dict": {f"model.{n}": w for n, w in network.state_dict().items()}, "epoch": 1}),
    ],
    ids=["dinov2", "dinov2 registers", "dinov3", "openclip", "mae", "dino training", "torch.compile", "lightning"],
)  # fmt: skip
def test_checkpoints_in_their_owners_formats_load_to_the_bit(name, stand_in):
    source, target = fresh(name, **SMALL), create_network(name, 0, 224, SMALL)
    load_pretrained(target, network_weights(stand_in(source), "theirs.pth"), "theirs.pth")
    for key, weight in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], weight), key


def refused(name: str, weights: dict[str, torch.Tensor]) -> str:
    with pytest.raises(InputError) as caught:
        load_pretrained(create_network(name, 0, 224, SMALL), network_weights(weights, "theirs.pth"), "theirs.pth")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_of_another_member_of_the_family_is_refused():
    plain, with_registers = (fresh(f"vit_small_patch14_{kind}dinov2", **SMALL) for kind in ("", "reg4_"))
    assert "missing: reg_token" in refused("vit_small_patch14_reg4_dinov2", stand_in_dinov2(plain))
    assert "unexpected: register_tokens" in refused("vit_small_patch14_dinov2", stand_in_dinov2(with_registers))
    assert "unexpected: blocks.0.ls1.gamma" in refused("vit_small_patch16_224", plain.state_dict())
    coarse = fresh("vit_base_patch32_clip_224", **SMALL)
    assert "of another shape: patch_embed.proj.weight (48, 3, 32, 32)" in refused(
        "vit_base_patch16_clip_224", stand_in_openclip(coarse)
    )
    biased = stand_in_dinov3(fresh("vit_small_patch16_dinov3", **SMALL))
    biased["blocks.1.attn.qkv.bias"][:3] = 1
    assert "unexpected: blocks.1.attn.qkv.bias" in refused("vit_small_patch16_dinov3", biased)


def test_two_networks_under_one_name_are_refused():
    with pytest.raises(InputError, match="mixes several networks"):
        network_weights({"model.norm.weight": torch.ones(1), "module.norm.weight": torch.zeros(1)}, "theirs.pth")


def test_weights_that_are_not_finite_are_named():
    weights = fresh("vit_small_patch16_224", **SMALL).state_dict()
    weights["blocks.1.norm1.weight"][0] = torch.nan
    assert "weights that are not finite: blocks.1.norm1.weight" in refused("vit_small_patch16_224", weights)


@pytest.fixture
def no_network(monkeypatch, tmp_path) -> Path:
    """Returns: torch's hub folder."""

    def refuse(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(networks, "urlopen", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path


def test_without_a_network_the_line_says_which_file_to_fetch_and_where_to_put_it(no_network):
    name = "vit_small_patch14_dinov2.lvd142m"
    with pytest.raises(InputError) as caught:
        build_backbone(name, model_kwargs=SMALL)
    put = no_network / "checkpoints" / f"{name}.safetensors"
    assert f"timm/{name}/resolve/main/model.safetensors (no network): fetch it by hand and put it at {put}" in str(
        caught.value
    )
    network = fresh(name, **SMALL)
    put.parent.mkdir()
    safetensors.torch.save_file(network.state_dict(), put)
    backbone = build_backbone(name, model_kwargs=SMALL)
    assert backbone.weights == str(put) and torch.equal(backbone.network.cls_token, network.cls_token)


def test_without_a_network_a_model_of_the_hub_is_one_line(no_network):
    with pytest.raises(InputError, match="cannot download .*someone/their-vit/resolve/main/config.json"):
        build_backbone("hf-hub:someone/their-vit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "vit_small_patch14_dinov2.lvd142"}, "timm has no .*; it has vit_small_patch14_dinov2.lvd142m"),
        ({"arch": "vit_small_patch14_dinov3"}, "is not known to timm; close to it: .*vit_small_patch16_dinov3"),
        ({"arch": "vit_small_patch14_dinov2", "input_size": 225}, "14x14 patches of .* do not divide .* 225: try 224"),
        (
            {"arch": "vit_tiny_patch16_224", "model_kwargs": {"img_size": 40}},
            "patches .* do not divide an input size of 40",
        ),
        (
            {"arch": "vit_tiny_patch16_224", "model_kwargs": {"patch_size": (16, "x")}},
            r"patch_size=\(16, 'x'\) of vit_tiny_patch16_224.* is not a whole number of pixels",
        ),
        ({"arch": "vit_tiny_patch16_224", "model_kwargs": {"patch_size": 0}}, "patch_size=0 .* is not a whole number"),
        ({"arch": "vit_tiny_patch16_224", "model_kwargs": {"img_size": "x"}}, "img_size=x .* is not a whole number"),
        (
            {"arch": "vit_small_patch16_18x2_224"},
            "timm has no weights for vit_small_patch16_18x2_224: give --pretrained",
        ),
        ({"arch": "xcit_small_12_p16", "n_last_blocks": 2}, "need a ViT with a class token"),
        (
            {"arch": "hf-hub:someone/their/vit"},
            "'someone/their/vit' is not the name of a model on the Hugging Face hub",
        ),
    ],
)
def test_an_unusable_backbone_is_one_line_before_the_work(options, message, no_network):
    with pytest.raises(InputError, match=message) as caught:
        build_backbone(**options)
    assert "\n" not in str(caught.value)


def test_a_name_without_a_tag_gets_the_weights_and_statistics_of_timms_default(no_network):
    folder = no_network / "checkpoints"
    folder.mkdir()
    name = timm.models.get_pretrained_cfg("vit_tiny_patch16_224").hf_hub_id.split("/")[1]
    safetensors.torch.save_file(fresh(name, **TINY_VIT).state_dict(), folder / f"{name}.safetensors")
    backbone = build_backbone("vit_tiny_patch16_224", model_kwargs=TINY_VIT)
    assert isinstance(backbone, Backbone) and backbone.model == name and backbone.preprocessing.mean == HALF[0]
    assert backbone.feature_kind() == "CLS"
