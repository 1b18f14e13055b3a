"""Checkpoints from anywhere: read as data, never as code, and loaded so that every backbone weight is accounted for."""

import argparse
import math
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.layers import resample_abs_pos_embed
from timm.models.xcit import Xcit
from timm.models.xcit import checkpoint_filter_fn as rename_xcit_weights
from torch import Tensor, nn

from common.errors import InputError

Weights = dict[str, Tensor]

# Classification heads (timm's and torchvision's names) and DINO's projection head; `head_dist` is DeiT's second head.
HEADS = ("head.", "head_dist.", "fc.")
# Wrappers that leave their name in the keys: DistributedDataParallel, DINO's MultiCropWrapper.
WRAPPERS = ("module.", "backbone.")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a .pth or .safetensors file onto the CPU, executing nothing that is in it.

    Raises InputError when the file is missing, truncated, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} is not there")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # The published checkpoints keep their options in a Namespace, which is harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"checkpoint {path} cannot be read as plain tensors: it is damaged, or holds Python objects, which may run "
            "code when unpickled; save its state_dict alone"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"checkpoint {path} is truncated or no checkpoint: {reason}") from None
    if not isinstance(checkpoint, dict):
        raise InputError(f"checkpoint {path} holds a {type(checkpoint).__name__}, not a dictionary of weights")
    return checkpoint


def download_checkpoint(url: str) -> dict[str, Any]:
    """Download a checkpoint into torch's hub cache, or take it from there. Raises InputError, with where to put it."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(cached))
        except (URLError, OSError, RuntimeError) as error:
            raise InputError(f"cannot download {url} ({error}); fetch it by hand and put it at {cached}") from None
    return read_checkpoint(cached)


def fetch_checkpoint(source: str) -> dict[str, Any]:
    """Read a checkpoint from a file or from an https:// address."""
    return download_checkpoint(source) if source.startswith("https://") else read_checkpoint(source)


def network_weights(checkpoint: dict[str, Any], source: str, key: str = "teacher") -> Weights:
    """The weights of one network, under their plain names.

    A checkpoint is a bare state dict, or holds several networks: the one under `key` is taken, else "model", else
    "state_dict". Raises InputError when none of them is there.
    """
    network = next((checkpoint[name] for name in (key, "model", "state_dict") if name in checkpoint), checkpoint)
    if not isinstance(network, dict) or not network or not all(isinstance(w, Tensor) for w in network.values()):
        found = ", ".join(map(str, list(checkpoint)[:10])) or "nothing"
        raise InputError(f"checkpoint {source} holds no network under {key}, model or state_dict; it holds {found}")
    return {_plain_name(name): weight for name, weight in network.items()}


def _plain_name(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def load_pretrained(model: nn.Module, weights: Weights, source: str) -> list[str]:
    """Load pretrained weights into `model`; every backbone weight must be matched, only a head may be dropped or fresh.

    Position embeddings of another size are interpolated. The extra token of a distilled DeiT, which a plain ViT lacks,
    stays as initialised.
    (departure) The published scripts load with strict=False and go on with random weights where names do not fit.

    Returns: the names of the model's weights that stayed as initialised.
    Raises: InputError, listing the keys, when anything else is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    if isinstance(model, Xcit):
        weights = rename_xcit_weights(dict(weights), model)
    weights = {
        name: weight
        for name, weight in weights.items()
        if not name.startswith(HEADS) or (name in own and own[name].shape == weight.shape)
    }
    if "pos_embed" in weights and "pos_embed" in own:
        weights["pos_embed"] = _resize_position_embedding(weights["pos_embed"], own["pos_embed"], model)

    fresh = [name for name in own if name not in weights and (name.startswith(HEADS) or name == "dist_token")]
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
    broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if broken:
        raise InputError(f"checkpoint {source} holds weights that are not finite: {_listing(broken)}")
    model.load_state_dict(weights, strict=False)
    return fresh


def _listing(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _resize_position_embedding(theirs: Tensor, ours: Tensor, model: nn.Module) -> Tensor:
    """Interpolate position embeddings (1, prefix + h*w, d) to the model's grid; class and distillation tokens stay."""
    prefix = model.num_prefix_tokens
    if theirs.shape == ours.shape or theirs.ndim != 3 or theirs.shape[-1] != ours.shape[-1]:
        return theirs
    # The grid is square, so what is left over is the number of prefix tokens.
    their_prefix = next((p for p in (0, 1, 2) if math.isqrt(theirs.shape[1] - p) ** 2 == theirs.shape[1] - p), None)
    if their_prefix is None:
        return theirs
    resized = resample_abs_pos_embed(theirs, model.patch_embed.grid_size, num_prefix_tokens=their_prefix)
    if (their_prefix, prefix) == (1, 2):
        resized = torch.cat([resized[:, :1], ours[:, 1:2].to(resized), resized[:, 1:]], dim=1)
    return resized
