"""Checkpoints of any origin, read as data, never as code; and what a run's own checkpoint holds."""

import argparse
import pickle
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from common.errors import InputError
from common.files import atomic_file, check_given, checksum, kind_of_file

# Keys of a run's own checkpoint, with their types: the published code's, those saved in addition, those in its "run".
PUBLISHED = {"model": dict, "optimizer": dict, "lr_scheduler": dict, "epoch": int}
OWN = {"args": dict, "run": dict, "update": int, "losses": list, "last": dict, "best": dict}
OF_A_RUN = {"classes": list, "mean": list, "std": list, "built_with": dict}


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


def run_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return what a run's own checkpoint records of its run; nothing of other checkpoints."""
    return checkpoint["run"] if is_own_checkpoint(checkpoint) else {}


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


def weights_checksum(weights: dict[str, Tensor]) -> str:
    names = sorted(weights)
    values = (weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for name in names)
    return checksum(part for name, value in zip(names, values, strict=True) for part in (name.encode(), value.data))


def read_trained(
    source: str,
    script: str,
    build: Callable[[argparse.Namespace, dict[str, Any]], nn.Module],
    classes: Sequence[str] | None = None,
) -> tuple[nn.Module, argparse.Namespace, dict[str, Any]]:
    """Return a trained model, the options of its training, and what else its checkpoint says about the run.

    build: makes the model from the latter two. classes: the names that it must know, if any.
    Raises InputError if it is not a checkpoint of `script`, holds other class names or none, or holds another model
    than it names.
    """
    checkpoint = fetch_checkpoint(source)
    if not is_own_checkpoint(checkpoint):
        raise InputError(f"{source} is not a checkpoint of {script} but bare weights, of unknown model and classes")
    run = checkpoint["run"]
    if not run.get("classes"):
        raise InputError(f"checkpoint {source} holds no class names: it was written by another version or script")
    if classes is not None:
        check_classes(run, source, classes)
    try:
        options = argparse.Namespace(**checkpoint["args"])
        check_finite(checkpoint["model"], source)
        model = build(options, run)
        model.load_state_dict(checkpoint["model"])
    except (AttributeError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{source} is not a checkpoint of {script}, or belongs to another model: {reason}") from None
    return model.eval(), options, run


def check_finite(weights: dict[str, Tensor], source: str) -> None:
    """Raise InputError, listing them, if some weights are not finite: no --lr would help."""
    broken = [name for name, weight in weights.items() if weight.is_floating_point() and not weight.isfinite().all()]
    if broken:
        raise InputError(f"checkpoint {source} holds weights that are not finite: {listing(broken)}")


def listing(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
