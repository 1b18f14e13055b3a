"""The folder of a training run: checkpoints and a log, kept so that nothing is lost, whenever the run is killed."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from common.checkpoints import read_checkpoint
from common.errors import InputError
from common.files import atomic_file
from common.training_state import is_own_checkpoint


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

    counter: the key of a log line that says where in the run it was written ("epoch", "iteration"); lines from `start`
    on are dropped, for they are going to be written again.
    The log's line is written before the checkpoint that follows it: a run that is killed in between, and resumed,
    trains the stretch again and writes the same.
    """

    def __init__(self, path: Path, start: int, tensorboard: bool = False, counter: str = "epoch"):
        self.path, self.log_path, self.counter = path, path / "log.txt", counter
        self.writer = ThreadPoolExecutor(1)
        self.pending: list[Future] = []
        lines = self.log_path.read_text().splitlines(keepends=True) if self.log_path.is_file() else []
        with atomic_file(self.log_path) as temporary:
            temporary.write_text("".join(line for line in lines if _is_before(line, counter, start)))
        self.tensorboard = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # an optional package

            self.tensorboard = SummaryWriter(str(path), purge_step=start)

    def append_to_log(self, entry: dict[str, Any]) -> None:
        def append() -> None:
            with self.log_path.open("a") as log:
                log.write(json.dumps(entry) + "\n")
            for key, value in entry.items() if self.tensorboard else ():
                self.tensorboard.add_scalar(key.replace("_", "/", 1), value, entry[self.counter])

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


def _is_before(line: str, counter: str, start: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)[counter] < start
    except (ValueError, KeyError, TypeError):  # a line that was being written when the run was killed
        return False
