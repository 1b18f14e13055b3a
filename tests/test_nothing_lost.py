"""A run that is killed and resumed ends with the bits of one that was never stopped."""

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY_VIT_OPTIONS, same

from common import training
from common.checkpoints import read_checkpoint
from common.errors import InputError
from common.processes import Interruption
from common.run_folder import newest_checkpoint
from deit.main import main

KILLS = 20


def options(pool: Path, backbone: Path, out: Path, *extra: object) -> list[str]:
    given = ["--data-set", "IMNET", "--data-path", pool, "--resume", backbone, "--output_dir", out, "--device", "cpu",
             "--epochs", 60, "--batch-size", 32, "--lr", 0.05, "--warmup-epochs", 2, "--num_workers", 0,
             "--auto-resume", "--model", "vit_tiny_patch16_224"]  # fmt: skip
    return [*map(str, [*given, *extra]), *TINY_VIT_OPTIONS]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("checkpoint.pth", "best_checkpoint.pth"):
        ended, expected = read_checkpoint(one / name), read_checkpoint(other / name)
        for checkpoint in (ended, expected):
            checkpoint["args"].pop("output_dir")
        assert same(ended, expected), name
    for name in ("log.txt", "summary.json"):
        assert (one / name).read_text() == (other / name).read_text(), name


# Everything is imported once, in a process without threads; each run is then a fork of it, which costs no import.
NURSERY = """
import json, os, sys
sys.path[:0] = json.loads(sys.stdin.readline())
import torch
torch.set_num_threads(1)
IMPORTS
for line in sys.stdin:
    child = os.fork()
    if child:
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        environment, arguments = json.loads(line)
        os.environ.update(environment)
        main(arguments)
        status = 0
    except SystemExit as ending:
        status = ending.code
    finally:
        os._exit(status)
"""


class Nursery:
    """Starts runs of main.py, or of another script whose imports are given, that can be killed, one at a time."""

    def __init__(self, imports: str = "import deit.finetuning; from deit.main import main"):
        self.program = NURSERY.replace("IMPORTS", imports)

    def __enter__(self) -> "Nursery":
        command = [sys.executable, "-c", self.program]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._say([str(ROOT)])
        return self

    def _say(self, what: object) -> None:
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def start(self, arguments: list[str], **environment: str) -> int:
        """Returns: the process id of the run."""
        self._say([environment, arguments])
        return int(self.process.stdout.readline())

    def exit_code(self) -> int:
        """Wait for the run to end. Returns: its exit code, negative when a signal ended it."""
        return int(self.process.stdout.readline())

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def test_a_run_killed_twenty_times_at_random_moments_ends_with_the_bits_of_an_undisturbed_one(pool, backbone, tmp_path):
    main(options(pool, backbone, tmp_path / "undisturbed"))
    killed = options(pool, backbone, tmp_path / "killed")
    moments = random.Random(0)
    kills = 0
    with Nursery() as nursery:
        while True:
            child = nursery.start(killed)
            if kills < KILLS:
                progress = progress_of(tmp_path / "killed")
                deadline = time.monotonic() + 60
                # every other kill comes at once, the rest wait for an epoch to be saved, so that the run gets on
                while kills % 2 and progress_of(tmp_path / "killed") == progress and time.monotonic() < deadline:
                    time.sleep(0.002)
                time.sleep(moments.uniform(0, 0.15))
                os.kill(child, signal.SIGKILL)
            code = nursery.exit_code()
            if code != -signal.SIGKILL:
                assert code == 0
                break
            kills += 1
    assert kills >= KILLS
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")


def test_two_processes_killed_together_end_with_the_bits_of_two_that_were_not(pool, backbone, tmp_path):
    with Nursery() as first, Nursery() as second:

        def start(out: Path) -> list[int]:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
            return [
                nursery.start(
                    options(pool, backbone, out, "--epochs", 24), RANK=str(rank), LOCAL_RANK=str(rank), **meeting
                )
                for rank, nursery in enumerate((first, second))
            ]

        start(tmp_path / "undisturbed")
        assert (first.exit_code(), second.exit_code()) == (0, 0)
        for kill in range(3):
            children = start(tmp_path / "killed")
            wait_for_log(tmp_path / "killed", 6 * (kill + 1))
            for child in children:
                os.kill(child, signal.SIGKILL)
            assert (first.exit_code(), second.exit_code()) == (-signal.SIGKILL, -signal.SIGKILL)
        start(tmp_path / "killed")
        assert (first.exit_code(), second.exit_code()) == (0, 0)
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")


def progress_of(out: Path) -> int:
    newest = newest_checkpoint(out)
    return newest[0]["epoch"] if newest else -1


def wait_for_log(out: Path, lines: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        log = out / "log.txt"
        if log.is_file() and log.read_text().count("\n") >= lines:
            return
        time.sleep(0.002)
    raise AssertionError(f"no {lines} epochs within a minute")


def test_sigterm_finishes_the_update_saves_and_exits_with_its_own_code(pool, backbone, tmp_path):
    main(options(pool, backbone, tmp_path / "undisturbed"))
    stopped = options(pool, backbone, tmp_path / "stopped")
    with Nursery() as nursery:
        for stop in range(4):
            child = nursery.start(stopped)
            wait_for_log(tmp_path / "stopped", 5 * (stop + 1))
            os.kill(child, signal.SIGTERM)
            assert nursery.exit_code() == Interruption.EXIT_CODE
    main(stopped)
    assert_same_run(tmp_path / "stopped", tmp_path / "undisturbed")


def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_with_its_next_update(pool, backbone, tmp_path, monkeypatch):
    main(options(pool, backbone, tmp_path / "undisturbed", "--epochs", 4))
    stopped = options(pool, backbone, tmp_path / "stopped", "--epochs", 4)
    calls, agree = itertools.count(1), training.agree
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(training, "agree", lambda loss, stop, processes: agree(loss, next(calls) == 5, processes))
        main(stopped)
    checkpoint = read_checkpoint(tmp_path / "stopped" / "checkpoint.pth")
    assert (checkpoint["epoch"], checkpoint["update"]) == (0, 2)  # three updates an epoch, and the fifth was the last
    main(stopped)
    assert_same_run(tmp_path / "stopped", tmp_path / "undisturbed")


def test_a_run_killed_after_its_last_epoch_is_finished_when_it_is_resumed(pool, backbone, tmp_path):
    finished = options(pool, backbone, tmp_path, "--epochs", 3)
    summary = main(finished)
    for name in ("summary.json", "curves.png"):
        (tmp_path / name).unlink()
    assert main(finished) == summary
    assert (tmp_path / "summary.json").is_file() and (tmp_path / "curves.png").is_file()


def test_epochs_of_a_single_update_stop_between_epochs(pool, backbone, tmp_path, monkeypatch):
    stopped = options(pool, backbone, tmp_path, "--epochs", 4, "--total-batch-size", 512)
    agree = training.agree
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(training, "agree", lambda loss, stop, processes: agree(loss, True, processes))
        main(stopped)
    checkpoint = read_checkpoint(tmp_path / "checkpoint.pth")
    assert (checkpoint["epoch"], checkpoint["update"]) == (0, 0)


def test_a_killed_save_leaves_the_checkpoint_before_it(pool, backbone, tmp_path):
    main(options(pool, backbone, tmp_path, "--epochs", 2))
    newest, source = newest_checkpoint(tmp_path)
    assert newest["epoch"] == 1 and source.endswith("checkpoint.pth")
    whole = (tmp_path / "checkpoint.pth").read_bytes()
    (tmp_path / ".checkpoint.pth.1.tmp").write_bytes(whole[:1000])  # what a kill while saving leaves behind
    assert newest_checkpoint(tmp_path)[0]["epoch"] == 1
    (tmp_path / "checkpoint.pth").write_bytes(whole[:1000])  # damaged by other means: the best one is taken
    assert newest_checkpoint(tmp_path)[1].endswith("best_checkpoint.pth")


def test_the_number_of_workers_and_the_memory_for_images_change_no_bit(pool, backbone, tmp_path):
    main(options(pool, backbone, tmp_path / "a", "--epochs", 3))
    main(options(pool, backbone, tmp_path / "b", "--epochs", 3, "--num_workers", 2, "--cache-mb", 0))
    ended = [read_checkpoint(tmp_path / name / "checkpoint.pth") for name in "ab"]
    assert same(ended[0]["model"], ended[1]["model"]) and same(ended[0]["model_ema"], ended[1]["model_ema"])


def test_a_save_interval_keeps_the_last_and_the_best(pool, backbone, tmp_path):
    main(options(pool, backbone, tmp_path, "--epochs", 5, "--save-interval", 100))
    assert read_checkpoint(tmp_path / "checkpoint.pth")["epoch"] == 4
    summary = main(options(pool, backbone, tmp_path / "again", "--epochs", 5, "--save-interval", 2))
    assert read_checkpoint(tmp_path / "best_checkpoint.pth")["epoch"] == summary["best"]["test"]["epoch"]


def test_a_loss_that_is_not_finite_leaves_its_weights_and_batch(pool, backbone, tmp_path):
    with pytest.raises(InputError, match="the weights and the last batch are in"):
        main(options(pool, backbone, tmp_path, "--lr", 1e30, "--warmup-epochs", 0))
    evidence = read_checkpoint(tmp_path / "nonfinite_0.pth")
    assert evidence["images"].shape[1:] == (3, 32, 32) and evidence["lr"] > 1e28
    assert {"model", "targets", "epoch", "update", "loss"} <= evidence.keys()
