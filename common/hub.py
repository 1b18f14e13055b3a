"""Weights and configurations from the Hugging Face hub, or one line that says what to fetch by hand."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch

from common.checkpoints import download_checkpoint, read_checkpoint
from common.errors import InputError

TIMEOUT = 10  # seconds


def download_timm_weights(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The weights that timm's configuration names, from its hub's cache or downloaded, and their address.

    Raises InputError, saying which file to fetch and where to put it, when they cannot be downloaded.
    """
    repository, url = config.get("hf_hub_id"), config.get("url")
    if not repository:
        return download_checkpoint(url), url
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from timm.models import load_state_dict_from_hf

    filename = config.get("hf_hub_filename") or "model.safetensors"
    name, _, revision = repository.partition("@")
    address = hf_hub_url(name, filename, revision=revision or None)
    by_hand = Path(torch.hub.get_dir()) / "checkpoints" / f"{name.rsplit('/', 1)[-1]}.safetensors"
    if by_hand.is_file():
        return read_checkpoint(by_hand), str(by_hand)
    if isinstance(cached := try_to_load_from_cache(name, filename, revision=revision or None), str):
        return read_checkpoint(cached), address
    with _from_hub(repository, filename, f"fetch it by hand and put it at {by_hand}"):
        given = [filename] if config.get("hf_hub_filename") else []
        return load_state_dict_from_hf(repository, *given), address


def hub_config(repository: str) -> dict[str, Any]:
    """timm's configuration of a model on the Hugging Face hub. Raises InputError when it cannot be downloaded."""
    from timm.models import load_model_config_from_hf

    cached = "or run `hf download` where there is a network and copy its cache (~/.cache/huggingface) here"
    with _from_hub(repository, "config.json", f"check the name, {cached}"):
        return load_model_config_from_hf(repository)[0]


@contextlib.contextmanager
def _from_hub(repository: str, filename: str, hint: str) -> Iterator[None]:
    """Turn what goes wrong with the hub into one line, at once: its own library retries for a minute."""
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    repository, _, revision = repository.partition("@")
    address = hf_hub_url(repository, filename, revision=revision or None)
    try:
        if not isinstance(try_to_load_from_cache(repository, filename, revision=revision or None), str):
            with contextlib.suppress(HTTPError):  # the hub answers: its own library knows other files and says more
                urlopen(Request(address, method="HEAD"), timeout=TIMEOUT).close()
        yield
    except (URLError, OSError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
        raise InputError(f"cannot download {address} ({reason}): {hint}") from None
