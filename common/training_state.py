"""The state of a training run: everything that it changes, saved and taken up again to the bit."""

import argparse
import zlib
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from common.checkpoints import check_finite
from common.errors import InputError


@dataclass
class TrainingState:
    """Everything that a run changes.

    metric: the score that evaluations are compared by, higher being better, such as "acc1" or "miou".
    epoch: the pass over the images that is being trained. update, losses: its updates so far, and their losses.
    last, best: for the model ("test") and its moving average ("test_ema"), the last evaluation and the best one.
    Random numbers are no part of it: they follow from --seed and the place in the run (batch_stream.py).
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: Scheduler
    scaler: torch.amp.GradScaler
    model_ema: ModelEmaV3 | None = None
    metric: str = "acc1"
    epoch: int = 0
    update: int = 0
    losses: list[float] = field(default_factory=list)
    last: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def best_score(self) -> float:
        return self.best["test"][self.metric] if "test" in self.best else -1.0

    @property
    def lr(self) -> float:
        return max(group["lr"] for group in self.optimizer.param_groups)

    def note(self, results: dict[str, dict[str, Any]], **when: int) -> bool:
        """Keep an evaluation, `when` it was made (epoch=7). Returns whether the model itself is better than before."""
        self.last = results
        improved = results["test"][self.metric] > self.best_score
        for name, result in results.items():
            if name not in self.best or result[self.metric] > self.best[name][self.metric]:
                self.best[name] = {**result, **when}
        return improved

    def next_epoch(self) -> None:
        self.epoch, self.update, self.losses = self.epoch + 1, 0, []

    def averaged_model(self, device: torch.device) -> nn.Module:
        """The moving average, copied to the device if it is kept elsewhere."""
        averaged = self.model_ema.module
        return averaged if self.model_ema.device is None else deepcopy(averaged).to(device)

    def checkpoint(self, args: argparse.Namespace, run: dict[str, Any]) -> dict[str, Any]:
        """A copy in main memory, of plain tensors and values. "epoch" is the last one that was completed.

        run: everything that its numbers depend on, which is compared when it is resumed.
        """
        return in_main_memory({
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self._schedule(),
            "epoch": self.epoch - 1,
            "update": self.update,
            "losses": self.losses,
            "model_ema": self.model_ema.module.state_dict() if self.model_ema else None,
            "scaler": self.scaler.state_dict(),
            "last": self.last,
            "best": self.best,
            "args": vars(args),
            "run": run,
        })  # fmt: skip

    def resume(self, checkpoint: dict[str, Any], source: str, run: dict[str, Any]) -> None:
        """Take up what `checkpoint` saved, but for the schedule, which may be longer now: step it to its place.

        Raises InputError, with the difference, when it was saved by anything but the same run or a shorter one.
        """
        changed = differences(checkpoint.get("run") or _run_of_old(checkpoint.get("args", {})), run)
        if changed:
            advice = "choose another --output_dir, or the options of that run (only its length may grow)"
            raise InputError(f"checkpoint {source} is of another run: {'; '.join(changed)}: {advice}")
        check_finite(checkpoint["model"], source)
        try:
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"checkpoint {source} is of a run with another model or optimizer: {reason}") from None
        if "plateau" in checkpoint["lr_scheduler"]:  # the one schedule that is no function of the place in the run
            self.lr_scheduler.lr_scheduler.load_state_dict(checkpoint["lr_scheduler"]["plateau"])
            self.lr_scheduler.restore_lr = checkpoint["lr_scheduler"]["restore_lr"]
        if checkpoint.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint["scaler"])
        if self.model_ema:
            self.model_ema.module.load_state_dict(checkpoint.get("model_ema") or checkpoint["model"])
        self.last, self.best = checkpoint.get("last", {}), checkpoint.get("best", {})
        self.epoch = checkpoint["epoch"] + 1
        self.update, self.losses = checkpoint.get("update", 0), checkpoint.get("losses", [])

    def _schedule(self) -> dict[str, Any]:
        state = self.lr_scheduler.state_dict()
        plateau = getattr(self.lr_scheduler, "lr_scheduler", None)  # torch's, of which timm saves a part
        if plateau is not None:
            state |= {"plateau": plateau.state_dict(), "restore_lr": self.lr_scheduler.restore_lr}
        return state


def differences(
    before: dict[str, Any], now: dict[str, Any], growing: tuple[str, ...] = ("epochs", "iterations")
) -> list[str]:
    """What differs between two runs, of what both know, as "lr was 0.01, is 0.1"; the lengths of a run may grow."""
    now = in_main_memory(now)  # lists for tuples, as in a checkpoint
    return [
        f"{name} was {before[name]}, is {now[name]}"
        for name in now
        if name in before and before[name] != now[name] and not (name in growing and before[name] < now[name])
    ]


def checksum(parts: Iterable[bytes]) -> str:
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, zlib.crc32(len(part).to_bytes(8, "little"), crc))
    return f"{crc:08x}"


def weights_checksum(weights: dict[str, Tensor]) -> str:
    names = sorted(weights)
    values = (weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for name in names)
    return checksum(part for name, value in zip(names, values, strict=True) for part in (name.encode(), value.data))


def _run_of_old(args: argparse.Namespace | dict[str, Any]) -> dict[str, Any]:
    """What checkpoints of the published code, which do not say what run they are of, tell of it."""
    args = args if isinstance(args, dict) else vars(args)
    return {name: str(args[name]).lower() for name in ("opt", "model") if name in args}


def in_main_memory(tree: Any) -> Any:
    """A copy of nested dictionaries and lists of tensors and plain values that later updates do not change."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: in_main_memory(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [in_main_memory(value) for value in tree]
    return tree


def is_own_checkpoint(checkpoint: dict[str, Any]) -> bool:
    """A run's own checkpoint, with an optimizer, as opposed to pretrained weights."""
    return {"model", "optimizer", "lr_scheduler", "epoch"} <= checkpoint.keys()
