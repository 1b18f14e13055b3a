"""The state of a run, and how it is kept so that nothing is lost, whenever the run is killed."""

import argparse
import json
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from common.checkpoints import read_checkpoint
from common.errors import InputError
from common.files import atomic_file


@dataclass
class TrainingState:
    """Everything that a run changes.

    epoch: the one that is being trained. update, losses: how many of its updates are made, and their losses.
    last, best: for the model ("test") and its moving average ("test_ema"), the evaluation made last, and the one with
    the highest top-1.
    Random numbers are no part of it: they follow from --seed and the place in the run (batch_stream.py).
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: Scheduler
    scaler: torch.amp.GradScaler
    model_ema: ModelEmaV3 | None = None
    epoch: int = 0
    update: int = 0
    losses: list[float] = field(default_factory=list)
    last: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def best_acc1(self) -> float:
        return self.best["test"]["acc1"] if "test" in self.best else -1.0

    def note(self, results: dict[str, dict[str, Any]]) -> bool:
        """Keep an evaluation. Returns whether the model itself is better than before."""
        self.last = results
        improved = results["test"]["acc1"] > self.best_acc1
        for name, result in results.items():
            if name not in self.best or result["acc1"] > self.best[name]["acc1"]:
                self.best[name] = {**result, "epoch": self.epoch}
        return improved

    def next_epoch(self) -> None:
        # Stepped with the number of the epoch that ends, so that epochs 0 and 1 both run at --warmup-lr, as published.
        self.lr_scheduler.step(self.epoch, max(0.0, self.best_acc1))
        self.epoch, self.update, self.losses = self.epoch + 1, 0, []

    def averaged_model(self, device: torch.device) -> nn.Module:
        """The moving average, copied to the device if it is kept elsewhere."""
        averaged = self.model_ema.module
        return averaged if self.model_ema.device is None else deepcopy(averaged).to(device)

    def checkpoint(self, args: argparse.Namespace) -> dict[str, Any]:
        """A copy in main memory, of plain tensors and values. "epoch" is the last one that was completed."""
        return in_main_memory({
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "epoch": self.epoch - 1,
            "update": self.update,
            "losses": self.losses,
            "model_ema": self.model_ema.module.state_dict() if self.model_ema else None,
            "scaler": self.scaler.state_dict(),
            "last": self.last,
            "best": self.best,
            "args": vars(args),
        })  # fmt: skip

    def resume(self, checkpoint: dict[str, Any], source: str, args: argparse.Namespace) -> None:
        """Take up an own checkpoint.

        Raises InputError when it is of a run with another model, optimizer or, within an epoch, other updates.
        """
        try:
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"checkpoint {source} is of a run with another model or optimizer: {reason}") from None
        self.lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])
        if checkpoint.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint["scaler"])
        if self.model_ema:
            self.model_ema.module.load_state_dict(checkpoint.get("model_ema") or checkpoint["model"])
        self.last, self.best = checkpoint.get("last", {}), checkpoint.get("best", {})
        self.epoch = checkpoint["epoch"] + 1
        self.update, self.losses = checkpoint.get("update", 0), checkpoint.get("losses", [])
        if self.update and checkpoint["args"]["total_batch_size"] != args.total_batch_size:
            raise InputError(f"checkpoint {source} is within an epoch: keep its --total-batch-size")
        if self.epoch >= args.epochs and not self.last:
            raise InputError(f"checkpoint {source} is after epoch {self.epoch - 1}: raise --epochs, or --eval")


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


def newest_checkpoint(folder: Path) -> tuple[dict[str, Any], str] | None:
    """The own checkpoint in a folder that is furthest on, and its path; files that cannot be read are passed over."""
    found = []
    for name in ("checkpoint.pth", "best_checkpoint.pth"):
        try:
            checkpoint = read_checkpoint(folder / name)
        except InputError:
            continue
        if is_own_checkpoint(checkpoint):
            found.append((checkpoint, str(folder / name)))
    return max(found, key=lambda pair: (pair[0]["epoch"], pair[0].get("update", 0)), default=None)


class RunFolder:
    """What a run leaves in --output_dir, written in order by a thread of its own, so that training goes on meanwhile.

    Of an epoch's files the log's line is written first and checkpoint.pth last: a run that is killed in between, and
    resumed, makes the epoch again and writes the same.
    """

    def __init__(self, path: Path, start_epoch: int, tensorboard: bool = False):
        self.path, self.log_path = path, path / "log.txt"
        self.writer = ThreadPoolExecutor(1)
        self.pending: list[Future] = []
        lines = self.log_path.read_text().splitlines(keepends=True) if self.log_path.is_file() else []
        with atomic_file(self.log_path) as temporary:
            temporary.write_text("".join(line for line in lines if is_of_epoch_before(line, start_epoch)))
        self.tensorboard = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # an optional package

            self.tensorboard = SummaryWriter(str(path), purge_step=start_epoch)

    def append_to_log(self, entry: dict[str, Any]) -> None:
        def append() -> None:
            with self.log_path.open("a") as log:
                log.write(json.dumps(entry) + "\n")
            for key, value in entry.items() if self.tensorboard else ():
                self.tensorboard.add_scalar(key.replace("_", "/", 1), value, entry["epoch"])

        self.pending.append(self.writer.submit(append))

    def save(self, checkpoint: dict[str, Any], names: list[str]) -> None:
        def save() -> None:
            for name in names:
                with atomic_file(self.path / name) as temporary:
                    torch.save(checkpoint, temporary)

        self.finish()  # at most one copy of the weights waits to be written
        self.pending.append(self.writer.submit(save))

    def finish(self) -> None:
        """Wait until everything is written. Raises InputError when the disk is full."""
        try:
            for written in self.pending:
                written.result()
        except (OSError, RuntimeError) as error:
            raise InputError(f"cannot write into {self.path}: {error}") from None
        self.pending = []
        if self.tensorboard:
            self.tensorboard.flush()

    def log(self) -> list[dict[str, Any]]:
        self.finish()
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]


def is_of_epoch_before(line: str, epoch: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["epoch"] < epoch
    except (ValueError, KeyError, TypeError):  # a line that was being written when the run was killed
        return False


class Interruption:
    """Notes SIGTERM instead of dying of it, so that the update under way is finished and the state saved."""

    EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: run it again, with --auto-resume

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interruption":
        self.previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self.previous)
