"""Starting points and checkpoints: pretrained weights in, the state of a run out and in again."""

import argparse
import json
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from common.checkpoints import load_pretrained, network_weights
from common.command_line import InputError
from common.output_files import whole_file


@dataclass
class TrainingState:
    """Everything that a run changes.

    best: for the model ("test") and its moving average ("test_ema"), the evaluation with the highest top-1 so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: Scheduler
    scaler: torch.amp.GradScaler
    model_ema: ModelEmaV3 | None = None
    best: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def best_acc1(self) -> float:
        return self.best["test"]["acc1"] if "test" in self.best else -1.0

    def note(self, results: dict[str, dict[str, Any]], epoch: int) -> bool:
        """Keep what is better than before. Returns whether the model itself improved."""
        improved = results["test"]["acc1"] > self.best_acc1
        for name, result in results.items():
            if name not in self.best or result["acc1"] > self.best[name]["acc1"]:
                self.best[name] = {**result, "epoch": epoch}
        return improved

    def averaged_model(self, device: torch.device) -> nn.Module:
        """The moving average, copied to the device if it is kept elsewhere."""
        averaged = self.model_ema.module
        return averaged if self.model_ema.device is None else deepcopy(averaged).to(device)

    def save(self, path: Path, epoch: int, args: argparse.Namespace) -> None:
        """Write a checkpoint of plain tensors and values, whole or not at all."""
        checkpoint = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "epoch": epoch,
            "model_ema": self.model_ema.module.state_dict() if self.model_ema else None,
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "args": vars(args),
        }
        with whole_file(path) as temporary:
            torch.save(checkpoint, temporary)

    def resume(self, checkpoint: dict[str, Any], source: str) -> int:
        """Take up an own checkpoint. Returns the epoch to go on with."""
        try:
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"checkpoint {source} is of a run with another model or optimizer: {reason}") from None
        self.lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])
        if checkpoint.get("scaler"):
            self.scaler.load_state_dict(checkpoint["scaler"])
        if self.model_ema:
            self.model_ema.module.load_state_dict(checkpoint.get("model_ema") or checkpoint["model"])
        self.best = checkpoint.get("best", {})
        return checkpoint["epoch"] + 1


def is_own_checkpoint(checkpoint: dict[str, Any]) -> bool:
    """A run's own checkpoint, with an optimizer, as opposed to pretrained weights."""
    return {"model", "optimizer", "lr_scheduler", "epoch"} <= checkpoint.keys()


def load_starting_weights(model: nn.Module, checkpoint: dict[str, Any], source: str) -> list[str]:
    """Load pretrained weights. Returns the names of those that stayed fresh: the head, if none fitted."""
    return load_pretrained(model, network_weights(checkpoint, source), source)


class EpochLog:
    """log.txt: one JSON object per epoch. A resumed run keeps the lines of the epochs before it."""

    def __init__(self, path: Path, start_epoch: int):
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] < start_epoch]
        with whole_file(path) as temporary:
            temporary.write_text("".join(kept))

    def append(self, entry: dict[str, Any]) -> None:
        with self.path.open("a") as log:
            log.write(json.dumps(entry) + "\n")
