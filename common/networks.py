"""timm networks, by any name that timm knows; keyword overrides allow a user's own small ViT, too.

Weights and configurations come from the Hugging Face hub; if that fails, one line says what to fetch by hand.
"""

import argparse
import contextlib
import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import to_2tuple
from timm.models import get_pretrained_cfg, load_model_config_from_hf, load_state_dict_from_hf, split_model_name_tag
from torch import Tensor, nn

from common.checkpoints import download_checkpoint, read_checkpoint
from common.errors import InputError

HUB = "hf-hub:"
TIMEOUT = 10  # seconds
# Keywords of timm.create_model that concern weights: it would read what they name.
NO_OVERRIDES = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir",
)  # fmt: skip
PUBLISHED_INPUT_SIZE = 224
# The plain ViTs of DINO and DeiT, for which the published scripts normalise images with ImageNet's statistics.
PUBLISHED_VITS = re.compile(r"(vit|deit)_(tiny|small|base)_patch\d+_224")


class Preprocessing(NamedTuple):
    """What a network expects: square images of `input_size` pixels per side, normalised per channel."""

    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    def described(self) -> dict[str, Any]:
        """Return the fields in JSON types."""
        return {**self._asdict(), "mean": list(self.mean), "std": list(self.std)}


def preprocessing(
    name: str, input_size: int | None = None, model_kwargs: dict[str, Any] | None = None
) -> Preprocessing:
    """Return how to prepare images for a timm network, with statistics and interpolation from timm's configuration.

    The plain ViTs of the published scripts get ImageNet's statistics if `name` has no tag to say whose weights are
    meant. Without an input size, take img_size of `model_kwargs`; else 224, as published, if the patches divide it;
    else the network's own size.
    Raises InputError if timm does not know the name or its tag, or if a size in `model_kwargs` is not a number.
    """
    config, kwargs = model_config(name), model_kwargs or {}
    for key, sides in (
        ("img_size", [kwargs.get("img_size", 1)]),
        ("patch_size", to_2tuple(kwargs.get("patch_size", 1))),
    ):
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise InputError(f"{key}={kwargs[key]} of {name} is not a whole number of pixels")
    if not input_size:
        patch = kwargs.get("patch_size") or next(map(int, re.findall(r"patch(\d+)", name)), None)
        fits = PUBLISHED_INPUT_SIZE % to_2tuple(patch)[0] == 0 if patch else not config.get("fixed_input_size")
        input_size = kwargs.get("img_size") or (PUBLISHED_INPUT_SIZE if fits else config["input_size"][-1])
    if PUBLISHED_VITS.fullmatch(name) or "mean" not in config:
        return Preprocessing(input_size, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "bicubic")
    return Preprocessing(input_size, tuple(config["mean"]), tuple(config["std"]), config["interpolation"])


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert byte images (b, 3, h, w) to float32 in 0..1, subtract each channel's mean and divide by its std."""
    mean, std = (torch.tensor(channels, device=images.device)[:, None, None] for channels in (mean, std))
    return images.float().div_(255).sub_(mean).div_(std)


def input_size(args: argparse.Namespace) -> int:
    """Return the pixels per side of the images that --model, --input-size and --model-kwargs together ask for."""
    return preprocessing(args.model, args.input_size, args.model_kwargs).input_size


def create_network(
    name: str, num_classes: int, input_size: int, model_kwargs: dict[str, Any] | None = None, **rates: float
) -> nn.Module:
    """Build a timm network with fresh weights for square images of `input_size` pixels per side.

    `name` may have a tag or start with hf-hub:. `model_kwargs` are the user's overrides, `rates` those of dropout and
    stochastic depth. With num_classes 0 there is no head. Two attributes are added: `statistics`, the mean and std of
    the images, and `built_with`, the keywords that timm's create_model needs to build the network again.
    Raises InputError if timm does not know the name, does not take an override, or the patches do not divide the
    input size.
    """
    config, prepared = model_config(name), preprocessing(name, input_size, model_kwargs)
    kwargs = dict(model_kwargs or {})
    for key in kwargs:
        if key in NO_OVERRIDES:  # overrides may also come from a stranger's checkpoint
            raise InputError(f"the keyword {key} concerns weights, not the network: weights have their own option")
    if config.get("fixed_input_size"):
        kwargs.setdefault("img_size", input_size)
    if kwargs.get("img_size", input_size) != input_size:
        raise InputError(f"img_size={kwargs['img_size']} in --model-kwargs and an input size of {input_size} differ")
    try:
        network = timm.create_model(name, pretrained=False, num_classes=num_classes, **{**rates, **kwargs})
    except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError, ArithmeticError) as error:
        given = " ".join(f"{key}={value}" for key, value in {**rates, **kwargs}.items())
        raise InputError(f"model {name} cannot be built with {given}: {error or type(error).__name__}") from None
    network.built_with = kwargs
    patch = to_2tuple(getattr(getattr(network, "patch_embed", None), "patch_size", 1))[0]
    if input_size % patch and input_size != config["input_size"][-1]:
        near = max(1, round(input_size / patch)) * patch
        raise InputError(
            f"the {patch}x{patch} patches of {name} do not divide an input size of {input_size}: try {near}"
        )
    network.statistics = (prepared.mean, prepared.std)
    return network


def has_class_token(network: nn.Module) -> bool:
    """Whether a class token passes through all blocks with the patches, whatever the network's class in timm."""
    if getattr(network, "cls_token", None) is None:
        return False
    forward: Callable = getattr(network, "forward_intermediates", lambda: None)
    return "return_prefix_tokens" in inspect.signature(forward).parameters


def averages_beside_class_token(network: nn.Module) -> bool:
    """Whether the head sees the mean patch, though there is a class token and no norm was trained for the mean."""
    has_own_norm = not isinstance(getattr(network, "fc_norm", nn.Identity()), nn.Identity)
    return getattr(network, "global_pool", "") == "avg" and has_class_token(network) and not has_own_norm


def model_config(name: str) -> dict[str, Any]:
    """Return timm's configuration of a model. Raises InputError, with the nearest names, if timm does not know it."""
    if name.startswith(HUB):
        return hub_config(name.removeprefix(HUB))
    architecture, tag = split_model_name_tag(name)
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise InputError(
            f"model {name!r} is not known to timm" + (f"; close to it: {', '.join(close)}" if close else "")
        )
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0) or ["no pretrained weights for this model"]
        raise InputError(f"timm has no {name!r}; it has {', '.join(close)}")
    config = get_pretrained_cfg(name, allow_unregistered=True)
    return config.to_dict() if config else {"input_size": (3, PUBLISHED_INPUT_SIZE, PUBLISHED_INPUT_SIZE)}


def download_timm_weights(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the weights that timm's configuration names, from the hub's cache or downloaded, and their address.

    Raises InputError, saying which file to fetch and where to put it, if they cannot be downloaded.
    """
    repository, url = config.get("hf_hub_id"), config.get("url")
    if not repository:
        return download_checkpoint(url), url
    filename = config.get("hf_hub_filename") or "model.safetensors"
    name = repository.partition("@")[0].rsplit("/", 1)[-1]
    by_hand = Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.safetensors"
    if by_hand.is_file():
        return read_checkpoint(by_hand), str(by_hand)
    address, cached = _on_hub(repository, filename)
    if cached:
        return read_checkpoint(cached), address
    with _from_hub(repository, filename, f"fetch it by hand and put it at {by_hand}"):
        given = [filename] if config.get("hf_hub_filename") else []
        return load_state_dict_from_hf(repository, *given), address


def hub_config(repository: str) -> dict[str, Any]:
    """Return timm's configuration of a model on the Hugging Face hub. Raises InputError if the download fails."""
    cached = "or run `hf download` where there is a network and copy its cache (~/.cache/huggingface) here"
    with _from_hub(repository, "config.json", f"check the name, {cached}"):
        return load_model_config_from_hf(repository)[0]


def _on_hub(repository: str, filename: str) -> tuple[str, str | None]:
    """Return the address of a file in a repository (NAME or NAME@revision), and its cached path or None.

    Raises InputError if no repository can have this name.
    """
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    name, _, revision = repository.partition("@")
    try:
        cached = try_to_load_from_cache(name, filename, revision=revision or None)
        return hf_hub_url(name, filename, revision=revision or None), cached if isinstance(cached, str) else None
    except ValueError as error:
        raise InputError(f"{repository!r} is not the name of a model on the Hugging Face hub: {error}") from None


@contextlib.contextmanager
def _from_hub(repository: str, filename: str, hint: str) -> Iterator[None]:
    """Turn failures of the hub into an InputError at once: its own library retries for a minute."""
    address, cached = _on_hub(repository, filename)
    try:
        if not cached:
            with contextlib.suppress(HTTPError):  # the hub answers: its library tries other files and says more
                urlopen(Request(address, method="HEAD"), timeout=TIMEOUT).close()
        yield
    except (URLError, OSError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
        raise InputError(f"cannot download {address} ({reason}): {hint}") from None
