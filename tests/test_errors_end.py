"""Whatever goes wrong, every process of a run ends within seconds, and what the user has done wrong is one line."""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY_VIT_OPTIONS, launch_two, write_pool
from torch.utils.data import TensorDataset

from common import image_loader
from common.command_line import run
from common.errors import InputError
from common.files import locked
from common.image_loader import ImageLoader, KeptBatches
from common.processes import Processes
from common.run_folder import RunFolder
from deit.main import main

SECONDS = 120  # until a run that hangs is given up; an error takes a few


def options(pool: Path, backbone: Path, *extra: object) -> list[str]:
    given = ["--data-set", "IMNET", "--data-path", pool, "--resume", backbone, "--device", "cpu", "--epochs", 2,
             "--batch-size", 2, "--warmup-epochs", 0, "--num_workers", 2]  # fmt: skip
    return [*map(str, [*given, *extra]), "--model", "vit_tiny_patch16_224", *TINY_VIT_OPTIONS]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A pool whose last evaluation image is truncated."""
    pool = write_pool(tmp_path / "damaged", 4, 3)
    bad = pool / "val" / "cat" / "002.png"
    bad.write_bytes(bad.read_bytes()[:100])
    return pool


def run_in_a_session(command: list[str], **limits: int) -> tuple[int, str]:
    """Run a command to its end. Returns its exit code and what it wrote on stderr; none of its processes is left."""

    def limit() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))

    # No bytecode: a limit on the size of files would cut it short, for whoever imports it next.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.Popen(
        command, cwd=ROOT / "deit", env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=limit,
    )  # fmt: skip
    try:
        _, errors = run.communicate(timeout=SECONDS)
        time.sleep(0.5)  # for workers that the kernel ends after their parent
        assert not processes_of(run.pid)
        return run.returncode, errors
    finally:
        for left in processes_of(run.pid):
            os.kill(left, 9)


def processes_of(session: int) -> list[int]:
    """The living processes of a session. (Those that have ended and wait to be counted do not live.)"""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of_session) == session and state != "Z":
            found.append(int(folder.name))
    return found


def test_an_image_that_cannot_be_read_ends_the_run_and_its_workers_with_one_line(damaged, backbone):
    code, errors = run_in_a_session([sys.executable, "main.py", *options(damaged, backbone)])
    assert code == 2
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: cannot read the image") and "cat/002.png" in last and "Traceback" not in errors


def test_an_exception_that_nobody_foresaw_ends_the_run_and_its_workers(pool, backbone):
    broken = (
        "import sys; sys.path.insert(0, '..'); import deit.main as m, deit.finetuning as f; "
        "f.end_epoch = None; m.run(m.main)"
    )
    code, errors = run_in_a_session([sys.executable, "-c", broken, *options(pool, backbone)])
    assert code == 1 and "TypeError: 'NoneType' object is not callable" in errors


def test_an_error_in_one_of_two_processes_ends_both_and_all_workers(damaged, backbone, tmp_path):
    """Of the evaluation images that each process has to itself, only the first one's are damaged."""
    launched, given = [sys.executable, *launch_two(29571)], options(damaged, backbone, "--dist-eval")
    code, errors = run_in_a_session([*launched, "main.py", *given])
    assert code == 1
    assert errors.count("error: cannot read the image") == 2
    unread = tmp_path / "unread.py"  # the images are not looked at before the training
    unread.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import deit.main as m, deit.finetuning as f\n"
        "f.read_all = lambda *_: None; m.run(m.main)"
    )
    code, errors = run_in_a_session([*launched, str(unread), *given])
    assert code == 1
    assert "error: cannot read the image" in errors
    assert "error: another process of this run has ended" in errors


def test_a_damaged_evaluation_image_is_told_before_the_training(damaged, backbone, tmp_path):
    with pytest.raises(InputError, match="cannot read the image .*002.png"):
        main(options(damaged, backbone, "--eval_interval", 50, "--output_dir", tmp_path / "out"))
    assert not (tmp_path / "out" / "log.txt").exists()


@pytest.mark.parametrize("what", ["the log", "a checkpoint"])
def test_an_error_in_the_thread_that_writes_ends_the_run_with_the_file_and_the_reason(what, pool, backbone, tmp_path):
    """A limit on the size of files stands in for a full disk: the system refuses to write in the same way."""
    small = {"the log": 3000, "a checkpoint": 20_000}[what]
    given = options(pool, backbone, "--num_workers", 0, "--output_dir", tmp_path / "out")
    if what == "the log":  # it comes to that size before a checkpoint is due
        given += ["--epochs", "60", "--eval_interval", "60", "--save-interval", "60", "--batch-size", "90"]
    code, errors = run_in_a_session([sys.executable, "main.py", *given], RLIMIT_FSIZE=small)
    file = {"the log": "log.txt", "a checkpoint": "best_checkpoint.pth"}[what]
    assert code == 2
    assert errors.strip().splitlines()[-1] == f"error: cannot write {tmp_path}/out/{file}: File too large"
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_no_space_left_is_said_with_the_file(pool, backbone, tmp_path, monkeypatch):
    def full(content, file):
        try:
            raise OSError(28, os.strerror(28))
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")  # as torch does

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="^cannot write .*/best_checkpoint.pth: No space left on device$"):
        main(options(pool, backbone, "--num_workers", 0, "--output_dir", tmp_path))


def test_an_unforeseen_error_of_the_writer_is_raised_where_the_run_is(tmp_path):
    args, state = Namespace(output_dir=str(tmp_path)), SimpleNamespace(checkpoint=lambda args, run: {})
    folder = RunFolder(args, {}, state, Processes(), "epoch", 0, resumed=None)
    folder.append_to_log({"epoch": object()})
    with pytest.raises(TypeError):
        folder.save()


HOLDER = """
import sys, time
from pathlib import Path
from common.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_in_one_output_folder_is_refused_until_the_first_has_ended(pool, backbone, tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        owner = f"process {first.pid} on {socket.gethostname()}"
        with pytest.raises(InputError, match=f"{tmp_path} is in use by {owner}: wait for it, or choose another"):
            main(options(pool, backbone, "--num_workers", 0, "--output_dir", tmp_path))
        assert not (tmp_path / "log.txt").exists()
    finally:
        first.kill()
        first.communicate()
    with locked(tmp_path):  # a lock goes with its process, however that ends
        pass


def numbers(count: int, size: int = 1000) -> TensorDataset:
    return TensorDataset(torch.arange(count * size).reshape(count, size).float(), torch.arange(count))


@pytest.mark.parametrize("free", [0, 64_000, 64_000_000])
def test_batches_come_through_pipes_where_shared_memory_is_too_small_for_them(free, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))
    monkeypatch.setattr(image_loader, "worker_count", lambda wanted: wanted)
    batches = [range(start, start + 20) for start in range(0, 100, 20)]
    through = list(ImageLoader(numbers(100), batches, 20, workers=2, pin_memory=False))
    assert all(part.is_shared() == (free > 1_000_000) for batch in through for part in batch)
    for batch, expected in zip(through, ImageLoader(numbers(100), batches, 20, 0, False), strict=True):
        assert all(torch.equal(part, other) for part, other in zip(batch, expected, strict=True))


@pytest.mark.parametrize(
    "refused",
    [
        OSError(28, "No space left on device"),  # semaphores need a page of shared memory each
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's ..."),
        RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"),
        RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)"),
    ],
)
def test_shared_memory_that_cannot_be_had_at_all_is_one_line_with_the_way_out(refused, monkeypatch):
    loader = ImageLoader(numbers(10), [range(10)], 10, workers=0, pin_memory=False)

    class Refusing:
        def __iter__(self):
            raise refused

    loader.loader = Refusing()
    with pytest.raises(InputError, match="try --num_workers 0, or more shared memory .*--shm-size") as caught:
        list(loader)
    assert "\n" not in str(caught.value)


def test_evaluation_batches_are_kept_in_ordinary_memory_and_hold_no_files_open():
    batches = [[index] for index in range(300)]
    kept = KeptBatches(ImageLoader(numbers(300, 10), batches, 1, workers=2, pin_memory=False), 2**20)
    before = len(list(Path("/proc/self/fd").iterdir()))
    first = [[part.clone() for part in batch] for batch in kept]
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 50
    again = list(kept)
    assert not any(part.is_shared() for batch in again for part in batch)
    for batch, same in zip(first, again, strict=True):
        assert all(torch.equal(part, other) for part, other in zip(batch, same, strict=True))


def test_where_output_is_no_terminal_progress_is_lines_and_few(pool, backbone, capfd, monkeypatch):
    main(options(pool, backbone, "--epochs", 10, "--num_workers", 0))
    errors = capfd.readouterr().err
    assert "\r" not in errors and len(errors.splitlines()) < 5
    monkeypatch.setattr("common.progress.SECONDS_BETWEEN_LINES", 0.1)
    main(options(pool, backbone, "--epochs", 10, "--num_workers", 0))
    lines = capfd.readouterr().err.splitlines()
    assert any(re.match(r"finetuning: \d+%, \d+/\d+ \[.*update.*acc1=", line) for line in lines)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_too_little_memory_is_one_line(error, capsys):
    def work():
        raise error

    with pytest.raises(SystemExit, match="2"):
        run(work)
    assert capsys.readouterr().err.startswith("error: out of memory, use smaller batches")
