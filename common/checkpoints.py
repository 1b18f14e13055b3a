"""Checkpoints of any origin: read as data, never as code; every backbone weight must be accounted for."""

import argparse
import contextlib
import io
import math
import pickle
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from common.errors import InputError
from common.files import atomic_file, check_given, checksum, kind_of_file

Weights = dict[str, Tensor]

# Keys of a run's own checkpoint, with their types: the published code's, those saved in addition, those in its "run".
PUBLISHED = {"model": dict, "optimizer": dict, "lr_scheduler": dict, "epoch": int}
OWN = {"args": dict, "run": dict, "update": int, "losses": list, "last": dict, "best": dict}
OF_A_RUN = {"classes": list, "mean": list, "std": list, "built_with": dict}

# Classification heads (timm's and torchvision's names) and DINO's projection head; `head_dist` is DeiT's second head.
HEADS = ("head.", "head_dist.", "fc.")
# Parts that only pretraining needs: DINOv2's heads and mask, MAE's decoder.
ONLY_FOR_PRETRAINING = ("dino_head.", "ibot_head.", "mask_token", "decoder_")
# Prefixes that wrappers leave in the keys: DistributedDataParallel, DINO's, torch.compile, Lightning.
WRAPPERS = ("module.", "backbone.", "_orig_mod.", "model.")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a PyTorch or safetensors file, whatever its name, onto the CPU, without executing anything in it.

    Raises InputError if the file is missing, truncated, or holds anything but tensors and plain values.
    """
    path = Path(path)
    check_given([str(path)], "checkpoint")
    kind = kind_of_file(path) or ""
    is_torch = "zip archive" in kind or "pickle" in kind
    try:
        if "safetensors" in kind or (path.suffix == ".safetensors" and not is_torch):
            return safetensors.torch.load_file(path)
        # The published checkpoints keep their options in a Namespace, which is harmless.
        known = torch.serialization.safe_globals([argparse.Namespace])
        with known, path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about old pickles: they are read, or raise an error below
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if kind and not is_torch:
            raise InputError(f"checkpoint {path} is not a checkpoint: {kind}") from None
        raise InputError(
            f"checkpoint {path} cannot be read as plain tensors: it is damaged, or holds Python objects, which may run "
            "code when unpickled; save its state_dict alone"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        said = re.sub(r"^\[enforce fail at [^]]*\] \. ", "", " ".join(str(error).split()))
        reason = said.split(". ")[0][:200] or type(error).__name__
        reason = kind if kind and not is_torch and "safetensors" not in kind else reason
        raise InputError(f"checkpoint {path} is truncated or not a checkpoint: {reason}") from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"checkpoint {path} holds a {type(checkpoint).__name__}, not a dictionary of weights")
    return _complete(checkpoint, path) if is_own_checkpoint(checkpoint) else checkpoint


def download_checkpoint(url: str) -> dict[str, Any]:
    """Read a checkpoint from torch's hub cache, downloaded if need be. InputError says where to put it by hand."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(cached))
        except (URLError, OSError, RuntimeError) as error:
            raise InputError(f"cannot download {url} ({error}); fetch it by hand and put it at {cached}") from None
    return read_checkpoint(cached)


def fetch_checkpoint(source: str) -> dict[str, Any]:
    """Read a checkpoint from a file or an https:// address."""
    return download_checkpoint(source) if source.startswith("https://") else read_checkpoint(source)


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values to a file. Raises InputError, naming the file, if it cannot be written."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer hides the system's error behind one about its own state
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def check_classes(run: dict[str, Any], source: str, classes: Sequence[str]) -> None:
    """Raise InputError if a checkpoint's `run` records other classes, or the same ones in another order."""
    trained = run.get("classes", classes)
    if len(trained) != len(classes):
        raise InputError(f"{source} was trained for {len(trained)} classes, but the images have {len(classes)}")
    for theirs, ours in zip(trained, classes, strict=True):
        if theirs != ours:
            raise InputError(f"{source} was trained for other classes: {theirs!r} where these images have {ours!r}")


def is_own_checkpoint(checkpoint: dict[str, Any]) -> bool:
    """Return whether this is a run's own checkpoint, with an optimizer, as opposed to pretrained weights."""
    return checkpoint.keys() >= PUBLISHED.keys()


def _complete(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a run's checkpoint, options as a dictionary, absent parts empty. Raises InputError for a damaged part."""
    args = checkpoint.get("args")
    options = vars(args) if isinstance(args, argparse.Namespace) else args
    empty = {key: kind() for key, kind in OWN.items()}  # new objects: a resumed run adds to its losses and its best
    complete = empty | {key: value for key, value in checkpoint.items() if value is not None or key not in OWN}
    if not isinstance(checkpoint.get("run"), dict):  # not ours: its keys may mean other things
        complete |= empty
    complete["args"] = options if isinstance(options, dict) else {}
    for whole, known in ((complete, PUBLISHED | OWN), (complete["run"], OF_A_RUN)):
        for key, kind in known.items():
            if key in whole and not isinstance(whole[key], kind):
                raise InputError(f"checkpoint {path} is damaged: its {key} is a {type(whole[key]).__name__}")
    return complete


def network_weights(checkpoint: dict[str, Any], source: str, key: str = "teacher") -> Weights:
    """Return the weights of one network, under names without the prefixes of wrappers.

    A checkpoint is a bare state dict, or holds several networks: the one under `key` is taken, else "model", else
    "state_dict". Raises InputError if there is no network, or if two networks are mixed in it.
    """
    network = next((checkpoint[name] for name in (key, "model", "state_dict") if name in checkpoint), checkpoint)
    if not isinstance(network, dict) or not network or not all(isinstance(w, Tensor) for w in network.values()):
        found = ", ".join(map(str, list(checkpoint)[:10])) or "nothing"
        raise InputError(f"checkpoint {source} holds no network under {key}, model or state_dict; it holds {found}")
    weights: Weights = {}
    for name, weight in network.items():
        if _plain_name(name) in weights:
            raise InputError(f"checkpoint {source} mixes several networks: {name} is there twice; keep one network")
        weights[_plain_name(name)] = weight
    return weights


def _plain_name(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def weights_checksum(weights: dict[str, Tensor]) -> str:
    names = sorted(weights)
    values = (weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for name in names)
    return checksum(part for name, value in zip(names, values, strict=True) for part in (name.encode(), value.data))


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
    heads = _heads_of(model)
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
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_listing(names)}" for kind, names in problems.items() if names)
        raise InputError(f"checkpoint {source} does not fit the model {type(model).__name__}: {listed}")
    check_finite(weights, source)
    model.load_state_dict(weights, strict=False)
    return fresh


def check_finite(weights: Weights, source: str) -> None:
    """Raise InputError, listing them, if some weights are not finite: no --lr would help."""
    broken = [name for name, weight in weights.items() if weight.is_floating_point() and not weight.isfinite().all()]
    if broken:
        raise InputError(f"checkpoint {source} holds weights that are not finite: {_listing(broken)}")


def _heads_of(model: nn.Module) -> tuple[str, ...]:
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


def _listing(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


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
