"""Training, the same in every trainer: the state of a run, and one update of its weights.

The state holds everything that a run changes; it is saved, and resumed bit for bit. An update handles micro-batches,
mixed precision, several processes and clipping.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from common.batch_stream import EpochPlan, seed_everything
from common.checkpoints import check_finite, write_checkpoint
from common.errors import InputError
from common.networks import normalised
from common.processes import Interruption, Processes, autocast, gradients_stay

Batch = tuple[Tensor, Tensor]
LENGTHS = ("epochs", "iterations")


@dataclass
class TrainingState:
    """Everything that a run changes.

    metric: the score that evaluations are compared by, higher being better, such as "acc1" or "miou".
    epoch: the current pass over the images. update, losses: its number of updates so far, and their losses.
    soft_labels: (m, c), of the unlabelled images that are also trained on, if any.
    last, best: the last and the best evaluation, of the model ("test") and of its moving average ("test_ema").
    Random numbers are not part of it: they follow from --seed and the place in the run (batch_stream.py).
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
    soft_labels: Tensor | None = None
    last: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def best_score(self) -> float:
        return self.best["test"][self.metric] if "test" in self.best else -1.0

    @property
    def n_parameters(self) -> int:
        """The number of weights that are trained."""
        return sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)

    @property
    def lr(self) -> float:
        return max(group["lr"] for group in self.optimizer.param_groups)

    def note(self, results: dict[str, dict[str, Any]], **when: int) -> bool:
        """Keep an evaluation, and `when` it was made (epoch=7). Returns whether the model itself is the best so far."""
        self.last = results
        improved = results["test"][self.metric] > self.best_score
        for name, result in results.items():
            if name not in self.best or result[self.metric] > self.best[name][self.metric]:
                self.best[name] = {**result, **when}
        return improved

    def next_epoch(self) -> None:
        self.epoch, self.update, self.losses = self.epoch + 1, 0, []

    def averaged_model(self, device: torch.device) -> nn.Module:
        """Return the moving average, copied to the device if it is kept elsewhere."""
        averaged = self.model_ema.module
        return averaged if self.model_ema.device is None else deepcopy(averaged).to(device)

    def checkpoint(self, args: argparse.Namespace, run: dict[str, Any]) -> dict[str, Any]:
        """Return a copy in main memory, of plain tensors and values. "epoch" is the last completed one.

        run: everything that the run's numbers depend on, compared when it is resumed.
        """
        return in_main_memory({
            "model": self.model.state_dict(),
            "lr_scheduler": self._schedule(),
            "epoch": self.epoch - 1,
            "update": self.update,
            "losses": self.losses,
            "soft_labels": self.soft_labels,
            "model_ema": self.model_ema.module.state_dict() if self.model_ema else None,
            "scaler": self.scaler.state_dict(),
            "last": self.last,
            "best": self.best,
            "args": vars(args),
            "run": run,
        }) | {"optimizer": in_main_memory(self.optimizer.state_dict(), tuple)}  # fmt: skip

    def resume(self, checkpoint: dict[str, Any], source: str, run: dict[str, Any]) -> None:
        """Load `checkpoint`, except the schedule, which may be longer now: the caller steps it to its place.

        Raises InputError, with the difference, unless it was saved by the same run or a shorter one.
        """
        changed = differences(checkpoint["run"] or _run_of_old(checkpoint["args"]), run)
        if changed:
            advice = "choose another --output_dir, or the options of that run (only its length may grow)"
            raise InputError(f"checkpoint {source} is from another run: {'; '.join(changed)}: {advice}")
        try:
            check_finite(checkpoint["model"], source)
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            if "plateau" in checkpoint["lr_scheduler"]:  # the only schedule not determined by the place in the run
                self.lr_scheduler.lr_scheduler.load_state_dict(checkpoint["lr_scheduler"]["plateau"])
                self.lr_scheduler.restore_lr = checkpoint["lr_scheduler"]["restore_lr"]
            if checkpoint.get("scaler") and self.scaler.is_enabled():
                self.scaler.load_state_dict(checkpoint["scaler"])
            if self.model_ema:
                self.model_ema.module.load_state_dict(checkpoint.get("model_ema") or checkpoint["model"])
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"checkpoint {source} is damaged, or has another model or optimizer: {reason}") from None
        self.last, self.best, self.losses = checkpoint["last"], checkpoint["best"], checkpoint["losses"]
        self.epoch, self.update = checkpoint["epoch"] + 1, checkpoint["update"]
        self.soft_labels = checkpoint.get("soft_labels")

    def _schedule(self) -> dict[str, Any]:
        state = self.lr_scheduler.state_dict()
        plateau = getattr(self.lr_scheduler, "lr_scheduler", None)  # torch's, which timm saves only in part
        if plateau is not None:
            state |= {"plateau": plateau.state_dict(), "restore_lr": self.lr_scheduler.restore_lr}
        return state


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List what differs between two runs, of what both record, as "lr was 0.01, is 0.1"; a run's length may grow."""
    now = in_main_memory(now)  # lists for tuples, as in a checkpoint
    return [
        f"{name} was {before[name]}, is {now[name]}"
        for name in now
        if name in before and before[name] != now[name] and not (name in LENGTHS and before[name] < now[name])
    ]


def _run_of_old(args: dict[str, Any]) -> dict[str, Any]:
    """Return what the options in a checkpoint of the published code, which does not record its run, say about it."""
    return {name: str(args[name]).lower() for name in ("opt", "model") if name in args}


def in_main_memory(tree: Any, tuples: type = list) -> Any:
    """Copy nested dictionaries, lists and tuples of tensors and plain values, so that later updates do not change them.

    tuples: what they become; an optimiser may need those in its state.
    """
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: in_main_memory(value, tuples) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return (tuples if isinstance(tree, tuple) else list)(in_main_memory(value, tuples) for value in tree)
    return tree


@dataclass(frozen=True)
class Recipe:
    """What stays the same for a whole run.

    loss(model, images, targets): the mean over the images, a scalar. seed: for the random draws of loss and model.
    output_dir: where weights and batch are saved if the loss is not finite; nowhere if empty.
    """

    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    plan: EpochPlan
    seed: int
    clip_grad: float | None = None
    amp_dtype: torch.dtype | None = None
    output_dir: str = ""


def update_weights(
    model: nn.Module,
    batches: Iterator[Batch],
    recipe: Recipe,
    state: TrainingState,
    processes: Processes,
    interruption: Interruption,
) -> bool:
    """Make update `state.update` of epoch `state.epoch`, and count it.

    batches: the run's micro-batches, images (b, 3, h, w) and targets. `model` may be wrapped for several processes.
    Returns: whether the run is to stop, the same in all processes.
    Raises: InputError, in every process, if the loss is not finite.
    """
    state.optimizer.zero_grad()
    sizes = recipe.plan.micro_batches(state.update)
    loss = torch.zeros((), device=processes.device)
    for number, size in enumerate(sizes, start=1):
        images, targets = to_network(next(batches), processes.device, state.model)
        # Draws from here on (mixup, stochastic depth) depend on this place only, not on how the batch was loaded.
        seed_everything(recipe.seed, state.epoch, state.update, number, processes.rank)
        with gradients_stay(model, until_last=number < len(sizes)):
            with autocast(processes.device, recipe.amp_dtype):
                share = recipe.loss(model, images, targets) * (size / sum(sizes))
            state.scaler.scale(share).backward()
        loss += share.detach()
    mean_loss, stop = agree(loss, interruption.requested, processes)
    if not math.isfinite(mean_loss):
        give_up(mean_loss, loss, (images, targets), recipe, state, processes)

    if recipe.clip_grad is not None:
        state.scaler.unscale_(state.optimizer)
        dispatch_clip_grad(model.parameters(), recipe.clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.model_ema is not None:
        made = state.epoch * recipe.plan.updates + state.update + 1
        state.model_ema.update(state.model, step=made if state.model_ema.use_warmup else None)
    state.update += 1
    state.losses.append(mean_loss)
    return stop


def to_network(batch: Batch, device: torch.device, model: nn.Module | None = None) -> Batch:
    """Move the batch to the device; byte images become floats, normalised as the model expects, else by ImageNet."""
    images, targets = (part.to(device, non_blocking=True) for part in batch)
    if images.dtype == torch.uint8:
        images = normalised(images, *getattr(model, "statistics", (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)))
    return images, targets


def agree(loss: Tensor, stop: bool, processes: Processes) -> tuple[float, bool]:
    """Return the mean loss, and whether any process was asked to stop: the same in all processes."""
    both = torch.stack([loss.float(), torch.tensor(float(stop), device=loss.device)])
    processes.sum(both)
    return both[0].item() / processes.size, both[1].item() > 0


def give_up(
    mean_loss: float, own_loss: Tensor, batch: Batch, recipe: Recipe, state: TrainingState, processes: Processes
) -> NoReturn:
    """Raise InputError for a loss that is not finite; the process where it arose saves its weights and batch first."""
    place = {"epoch": state.epoch, "update": state.update, "lr": state.lr}
    if recipe.output_dir and not own_loss.isfinite():
        evidence = {"loss": own_loss.item(), "model": state.model.state_dict(), "images": batch[0], "targets": batch[1]}
        write_checkpoint(Path(recipe.output_dir) / f"nonfinite_{processes.rank}.pth", place | evidence)
    processes.barrier()
    where = "epoch {epoch}, update {update}, lr {lr:g}".format(**place)
    saved = f"; the weights and the last batch are in {recipe.output_dir}/nonfinite_*.pth"
    advice = "lower --lr or --clip-grad" + saved * bool(recipe.output_dir)
    raise InputError(f"the loss is {mean_loss} at {where}: {advice}")
