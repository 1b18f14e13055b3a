"""Pretrained weights of any origin, loaded so that every backbone weight is accounted for."""

import contextlib
import io
import math
import sys
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from common.checkpoints import check_finite, listing
from common.errors import InputError

Weights = dict[str, Tensor]
DEFAULT_KEY = "teacher"  # DINO's checkpoints hold a student, too
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8,
         torch.int16, torch.int32, torch.int64)  # fmt: skip

# Classification heads (timm's and torchvision's names) and DINO's projection head; `head_dist` is DeiT's second head.
HEADS = ("head.", "head_dist.", "fc.")
# Parts that only pretraining needs: DINOv2's heads and mask, MAE's decoder.
ONLY_FOR_PRETRAINING = ("dino_head.", "ibot_head.", "mask_token", "decoder_")
# Prefixes that wrappers leave in the keys: DistributedDataParallel, DINO's, torch.compile, Lightning.
WRAPPERS = ("module.", "backbone.", "_orig_mod.", "model.")


def network_weights(checkpoint: dict[str, Any], source: str, key: str = DEFAULT_KEY) -> Weights:
    """Return the weights of one network, under names without the prefixes of wrappers.

    A checkpoint is a bare state dict, or holds several networks: the one under `key` is taken. The default key may be
    missing: then it is the one under "model", else "state_dict".
    Raises InputError if there is no network, or if two networks are mixed in it.
    """
    names = (key, "model", "state_dict") if key == DEFAULT_KEY else (key,)
    network = next((checkpoint[name] for name in names if name in checkpoint), checkpoint)
    if not isinstance(network, dict) or not network or not all(map(_is_weight, network.items())):
        found = listing([*map(str, checkpoint)]) or "nothing"
        raise InputError(f"checkpoint {source} holds no network under {' or '.join(names)}; it holds {found}")
    weights: Weights = {}
    for name, weight in network.items():
        if _plain_name(name) in weights:
            raise InputError(f"checkpoint {source} mixes several networks: {name} is there twice; keep one network")
        weights[_plain_name(name)] = weight
    return weights


def _is_weight(entry: tuple[Any, Any]) -> bool:
    """Return whether this is a name and a dense tensor of plain numbers."""
    name, weight = entry
    is_dense = isinstance(weight, Tensor) and weight.layout == torch.strided and weight.device.type != "meta"
    return isinstance(name, str) and is_dense and weight.dtype in TYPES


def _plain_name(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def load_pretrained(model: nn.Module, weights: Weights, source: str) -> list[str]:
    """Load pretrained weights into `model`; every backbone weight must match, only a head may be dropped or fresh.

    Weights may have their publishers' names (Facebook's DINOv2 and DINOv3, OpenCLIP's image towers, XCiT, ...) if timm
    can convert these for the model. Position embeddings of another size are interpolated. The extra token of a
    distilled DeiT, which a plain ViT lacks, stays as initialised.
    (departure) The published scripts load with strict=False: weights whose names do not match stay random.

    Returns: the names of the model's weights that stayed as initialised.
    Raises: InputError, listing the keys, if anything else is missing, unexpected, of another shape or not finite.
    """
    own = model.state_dict()
    heads = heads_of(model)
    weights = {
        name: weight
        for name, weight in _in_timms_names(weights, model).items()
        if not name.startswith((*HEADS, *heads, *ONLY_FOR_PRETRAINING))
        or (name in own and own[name].shape == weight.shape)
    }
    if "pos_embed" in weights and "pos_embed" in own:
        weights["pos_embed"] = _resize_position_embedding(weights["pos_embed"], own["pos_embed"], model)

    fresh = [name for name in own if name not in weights and (name.startswith(heads) or name == "dist_token")]
    problems = {
        "missing": [name for name in own if name not in weights and name not in fresh],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ],
        "of whole numbers": [
            name
            for name in own
            if own[name].is_floating_point() and not weights.get(name, own[name]).is_floating_point()
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {listing(names)}" for kind, names in problems.items() if names)
        raise InputError(f"checkpoint {source} does not fit the model {type(model).__name__}: {listed}")
    check_finite(weights, source)
    model.load_state_dict(weights, strict=False)
    return fresh


def heads_of(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the names of the classifier's weights."""
    classifier = getattr(model, "pretrained_cfg", None) and model.pretrained_cfg.get("classifier")
    if not classifier:
        return HEADS
    return tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))


def _in_timms_names(weights: Weights, model: nn.Module) -> Weights:
    """Rename the weights by timm's own conversion for this kind of model; return them unchanged if it has none.

    The conversion also resizes patch embeddings and drops biases that the model lacks, so that weights that do not fit
    would load. These changes are undone, for `load_pretrained` to refuse such weights.
    """
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return weights
    # A distilled DeiT has one token more than a plain checkpoint: see _resize_position_embedding.
    kept = {"pos_embed": weights["pos_embed"]} if hasattr(model, "dist_token") and "pos_embed" in weights else {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            converted = convert({name: weight for name, weight in weights.items() if name not in kept}, model) | kept
    except (KeyError, ValueError, RuntimeError, AttributeError, TypeError, IndexError, AssertionError):
        return weights
    patches, given = converted.get("patch_embed.proj.weight"), [w for w in weights.values() if w.ndim == 4]
    if patches is not None and given and all(w.data_ptr() != patches.data_ptr() for w in weights.values()):
        converted["patch_embed.proj.weight"] = given[0]  # undo the resizing
    for name in weights if "storage_tokens" in weights else ():  # DINOv3: only biases that are all zero may be lost
        queries, _, values = weights[name].chunk(3) if name.endswith("qkv.bias") else ([], [], [])
        if name.replace("qkv.bias", "q_bias") not in converted and (any(queries) or any(values)):
            converted[name] = weights[name]
    return converted


def _resize_position_embedding(theirs: Tensor, ours: Tensor, model: nn.Module) -> Tensor:
    """Interpolate position embeddings (1, prefix + h*w, d) to the model's grid; class and distillation tokens stay."""
    prefix = model.num_prefix_tokens
    if theirs.shape == ours.shape or theirs.ndim != 3 or theirs.shape[-1] != ours.shape[-1]:
        return theirs
    # The grid is square, so the number of tokens left over is that of the prefix tokens.
    their_prefix = next((p for p in (0, 1, 2) if math.isqrt(theirs.shape[1] - p) ** 2 == theirs.shape[1] - p), None)
    if their_prefix is None:
        return theirs
    resized = resample_abs_pos_embed(theirs, model.patch_embed.grid_size, num_prefix_tokens=their_prefix)
    if (their_prefix, prefix) == (1, 2):
        resized = torch.cat([resized[:, :1], ours[:, 1:2].to(resized), resized[:, 1:]], dim=1)
    return resized
