"""The folder of a training run: checkpoints, log and pictures; nothing is lost, whenever the run is killed."""

import argparse
import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from common.checkpoints import is_own_checkpoint, read_checkpoint, write_checkpoint
from common.errors import InputError
from common.files import atomic_file, locked
from common.processes import Interruption, Processes, Result, launched
from common.training import TrainingState, differences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINTS = ("checkpoint.pth", "best_checkpoint.pth")
MOST_NAMED_CLASSES = 30  # in a picture


def run_trainer(finetune: Callable[[argparse.Namespace, Processes], Result], args: argparse.Namespace) -> Result:
    """Run a trainer, alone or among the processes of torchrun, with sole use of its --output_dir."""
    with launched(args.device, args.dist_url) as processes, ExitStack() as held:
        if args.output_dir and not args.eval:
            processes.from_main(lambda: held.enter_context(locked(Path(args.output_dir))))
        return finetune(args, processes)


def newest_checkpoint(
    folder: Path, run: dict[str, Any] | None = None, report: Callable[[str], None] = lambda message: None
) -> tuple[dict[str, Any], str] | None:
    """Return the trainer's own checkpoint in a folder that is furthest on, and its path; those of `run` come first.

    Raises: InputError if there are checkpoints and none can be read; if one can, the other is reported.
    """
    found, unreadable = [], []
    for path in (folder / name for name in CHECKPOINTS):
        try:
            if path.exists() and is_own_checkpoint(checkpoint := read_checkpoint(path)):
                same = not differences(checkpoint["run"], run or {})
                found.append((same, checkpoint["epoch"], checkpoint["update"], checkpoint, str(path)))
        except InputError as error:
            unreadable.append(str(error))
    if unreadable and not found:
        raise InputError(f"{unreadable[0]}; there is no other checkpoint in {folder}: to start over, remove it")
    for error in unreadable:
        report(f"warning: {error}")
    return max(found, key=lambda entry: entry[:3])[3:] if found else None


class RunFolder:
    """The output of a run in --output_dir, written in order by a separate thread, so that training goes on meanwhile.

    Without --output_dir, and in all processes but the main one, nothing is written, and `path` is None.
    counter: the key of a log line that says where in the run it was written ("epoch", "iteration"). start: lines from
    here on are dropped, as they will be written again. resumed: the checkpoint that the run goes on from, if any. If it
    is from elsewhere, so is the beginning of the log, and what is here is another run's.
    A log line is written before the checkpoint that follows it: a run that is killed in between and resumed trains
    that stretch again and writes the same line.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        run: dict[str, Any],
        state: TrainingState,
        processes: Processes,
        counter: str,
        start: int,
        resumed: str | None,
    ):
        self.args, self.run, self.state, self.processes, self.counter = args, run, state, processes, counter
        self.path = Path(args.output_dir) if args.output_dir and processes.is_main else None
        self.writer = ThreadPoolExecutor(1)
        self.pending: list[Future] = []
        self.tensorboard = None
        if self.path is None:
            return
        self.log_path = self.path / "log.txt"
        for unfinished in self.path.glob(".*.tmp"):  # left by a run that was killed while writing
            unfinished.unlink()
        before = Path(resumed).parent.resolve() / "log.txt" if resumed else None
        if before != self.path.resolve() / "log.txt":
            self._keep_previous(before)
        (self.path / "summary.json").unlink(missing_ok=True)  # the previous run's; this one writes its own at the end
        log = before.read_text(errors="replace") if before and before.is_file() else ""
        with atomic_file(self.log_path) as temporary:
            temporary.write_text("".join(line for line in log.splitlines(True) if _is_before(line, counter, start)))
        if getattr(args, "tensorboard", False):
            from torch.utils.tensorboard import SummaryWriter  # an optional package

            self.tensorboard = SummaryWriter(str(self.path), purge_step=start)

    def _keep_previous(self, before: Path | None) -> None:
        """Move the previous run's checkpoints to `previous`, with a copy of its log and summary.

        They wait in `.previous` until all are there: if this is killed in between, the next start finishes it.
        """
        kept = [self.path / name for name in CHECKPOINTS if (self.path / name).is_file()]
        previous, unfinished = self.path / "previous", self.path / ".previous"
        if not kept and not unfinished.is_dir():
            return
        if before and before.parent == previous.resolve():
            raise InputError(f"--resume is in {previous}, which is replaced by what is in {self.path}: move it first")
        unfinished.mkdir(exist_ok=True)
        for file in filter(Path.is_file, (self.log_path, self.path / "summary.json")):
            shutil.copy(file, unfinished)
        for checkpoint in kept:
            checkpoint.replace(unfinished / checkpoint.name)
        shutil.rmtree(previous, ignore_errors=True)
        unfinished.rename(previous)
        self.processes.report(f"checkpoints, log and summary of the previous run are in {previous}")

    def append_to_log(self, entry: dict[str, Any]) -> None:
        if self.path is None:
            return

        def append() -> None:
            try:
                with self.log_path.open("a") as log:
                    log.write(json.dumps(entry) + "\n")
            except OSError as error:
                raise InputError(f"cannot write {self.log_path}: {error.strerror}") from None
            for key, value in entry.items() if self.tensorboard else ():
                self.tensorboard.add_scalar(key.replace("_", "/", 1), value, entry[self.counter])

        self.pending.append(self.writer.submit(append))

    def save(self, best: bool = False, last: bool = True) -> None:
        """Save the current state as the best checkpoint, the last one, both or neither."""
        names = ["best_checkpoint.pth"] * best + ["checkpoint.pth"] * last
        if self.path is None or not names:
            return
        self.finish()  # at most one copy of the weights is in memory
        checkpoint = self.state.checkpoint(self.args, self.run)

        def save() -> None:
            for name in names:
                write_checkpoint(self.path / name, checkpoint)

        self.pending.append(self.writer.submit(save))

    def finish(self) -> None:
        """Wait until everything is written. Raises the writer's errors: for a full disk, InputError naming the file."""
        pending, self.pending = self.pending, []
        for written in pending:
            written.result()
        if self.tensorboard:
            self.tensorboard.flush()

    def log(self) -> list[dict[str, Any]]:
        self.finish()
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def stop(self, where: str) -> NoReturn:
        """Save the state of an interrupted run, report `where` it stopped, and exit with Interruption.EXIT_CODE."""
        kept = f"saved in {self.path}; continue with --auto-resume"
        saved = kept if self.path else "no --output_dir: nothing was saved"
        self.save()
        self.finish()
        self.processes.report(f"stopped by SIGTERM {where}; {saved}")
        self.processes.barrier()
        raise SystemExit(Interruption.EXIT_CODE)


def _is_before(line: str, counter: str, start: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)[counter] < start
    except (ValueError, KeyError, TypeError):  # a line that was being written when the run was killed
        return False


def plot_curves(
    log: list[dict[str, Any]], picture: Path, counter: str, scores: dict[str, str], score_name: str
) -> None:
    """Plot training loss and learning rate, and scores, against the epoch or iteration.

    counter: its key in the log. scores: {key in the log: name in the legend}, in percent. score_name: their axis label.
    """
    from matplotlib.figure import Figure  # slow to load

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    when = [entry[counter] for entry in log]
    left.plot(when, [entry["train_loss"] for entry in log], color="tab:blue")
    left.set(xlabel=counter, ylabel="training loss", ylim=(0, None))
    rate = left.twinx()
    rate.plot(when, [entry["train_lr"] for entry in log], color="tab:gray", linestyle=":")
    rate.set(ylabel="learning rate (dotted)", ylim=(0, None))
    for key, name in scores.items():
        points = [(entry[counter], entry[key]) for entry in log if key in entry]
        if points:
            right.plot(*zip(*points, strict=True), marker=".", label=f"{name}, last {points[-1][1]:.2f}%")
    right.set(xlabel=counter, ylabel=score_name)
    right.grid(alpha=0.3)
    if right.lines:
        right.legend()
    save_figure(figure, picture)


def plot_confusion_matrix(confusion: Tensor, classes: list[str], picture: Path) -> None:
    """Draw confusion (c, c), images of each true (row) and predicted (column) class, as shares of the true class."""
    from matplotlib.figure import Figure  # slow to load

    shares = (confusion / confusion.sum(dim=1, keepdim=True).clamp_min(1)).numpy()
    side = min(14, 3 + 0.35 * len(classes))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    figure.colorbar(axis.imshow(shares, vmin=0, vmax=1, cmap="Blues"), label="share of the true class")
    axis.set(xlabel="predicted", ylabel="true")
    if len(classes) <= MOST_NAMED_CLASSES:
        names = [name.encode(errors="replace").decode() for name in classes]  # names may be in any encoding
        axis.set_xticks(range(len(classes)), names, rotation=90, parse_math=False)
        axis.set_yticks(range(len(classes)), names, parse_math=False)
    save_figure(figure, picture)


def save_figure(figure: "Figure", picture: Path) -> None:
    with atomic_file(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
