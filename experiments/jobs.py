"""Commands that are run several at a time, each once: what is finished is not run again, what was stopped goes on.

Starting Python with torch and timm takes seconds, more than many of the commands themselves. So a fork server imports
them once, and every command is a fresh process forked from it, as isolated as if it had been typed.
"""

import multiprocessing
import os
import runpy
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from tqdm import tqdm

from common.errors import InputError
from common.files import make_output_dir, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
# What the scripts import and the fork server imports for them; nothing of it touches a GPU.
PRELOADED = ["torch", "timm", "torchvision", "torch.utils.data", "sklearn.cluster", "sklearn.linear_model",
             "sklearn.neighbors", "sklearn.preprocessing", "scipy.stats", "matplotlib.pyplot"]  # fmt: skip
SECONDS_TO_SAVE = 120  # that a stopped command has before it is killed


@dataclass(frozen=True)
class Job:
    """One command of the project, run in a folder of its own for what it writes.

    script: relative to the project's folder, run from the first folder of it as the README says. options: as typed.
    folder: its own, with its log. result: the file it ends with. needs: the jobs whose results it reads.
    discarded: a pattern of files in `folder` that are needed to go on with it, and not once it is finished.
    """

    name: str
    script: str
    options: str
    folder: Path
    result: Path
    needs: tuple["Job", ...] = ()
    discarded: str | None = None

    @property
    def command(self) -> str:
        start, _, script = self.script.partition("/")
        return f"(cd {start} && python {script} {self.options})"

    @property
    def commands(self) -> list[str]:
        """All commands that lead to the result, this one last."""
        before = (command for need in self.needs for command in need.commands)
        return [*dict.fromkeys(before), self.command]

    @property
    def log(self) -> Path:
        return self.folder / "command.log"

    @property
    def record(self) -> Path:
        """How far it has come: {"commands": [...], "seconds": null until it is finished}."""
        return self.folder / "command.json"


def recorded(job: Job) -> dict:
    return read_json(job.record, "record of a command") if job.record.is_file() else {}


def is_finished(job: Job) -> bool:
    """Whether the result is there, and was made by these very commands."""
    before = recorded(job)
    return before.get("commands") == job.commands and before.get("seconds") is not None and job.result.exists()


def prepare(job: Job) -> None:
    """Make the job's folder ready: what the same commands left in it is gone on with, what others left is removed.

    Raises InputError when the folder holds files that no job has written.
    """
    if recorded(job).get("commands") != job.commands:
        if job.record.is_file():
            shutil.rmtree(job.folder)
        if any(make_output_dir(job.folder).iterdir()):
            raise InputError(f"{job.folder} holds files of something else: remove it, or give another --output_dir")
    note(job, None)


def note(job: Job, seconds: float | None) -> None:
    write_json(job.record, {"commands": job.commands, "seconds": seconds}, indent=2)


def run_jobs(jobs: Iterable[Job], slots: Sequence[Mapping[str, str]], describe: Callable[[Job], str]) -> None:
    """Run the jobs that are not finished, each as soon as what it needs is there, one at a time in each slot.

    slots: environment variables, such as the GPU to see. describe: what to say of a finished job.
    Raises InputError, with the end of its log, when a job fails; the others are then stopped, as they are by Ctrl-C,
    and go on the next time.
    """
    jobs, free = list(jobs), list(slots)
    finished = {job for job in jobs if is_finished(job)}
    waiting = [job for job in jobs if job not in finished]
    stale = sum(recorded(job).get("commands", job.commands) != job.commands for job in waiting)
    again = f", {stale} of them again, with other options" if stale else ""
    print(f"{len(jobs)} commands: {len(finished)} finished, {len(waiting)} to run{again}", flush=True)
    context = fork_server()
    with tqdm(total=len(jobs), initial=len(finished), unit="cmd", smoothing=0) as bar, processes() as running:
        while waiting or running:
            while free and (job := next((job for job in waiting if finished.issuperset(job.needs)), None)):
                waiting.remove(job)
                prepare(job)
                tqdm.write(job.command)
                slot = free.pop(0)
                process = context.Process(target=run_script, args=(job.script, job.options, str(job.log), dict(slot)))
                process.start()
                running[process.sentinel] = job, process, slot, time.monotonic()
            for sentinel in wait(list(running)):
                job, process, slot, started = running.pop(sentinel)
                process.join()
                if process.exitcode or not job.result.exists():
                    raise InputError(failure(job, process.exitcode))
                seconds = round(time.monotonic() - started, 1)
                note(job, seconds)
                for file in job.folder.glob(job.discarded) if job.discarded else ():
                    file.unlink()
                finished.add(job)
                free.append(slot)
                bar.update()
                tqdm.write(f"    {job.name}: {describe(job)} ({seconds} s)")


def failure(job: Job, code: int) -> str:
    log = job.log.read_text(errors="replace") if job.log.is_file() else ""
    said = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "it did not start")
    return f"{job.name} ended with exit code {code}: {said}; the command and all it said are in {job.log}"


@contextmanager
def processes() -> Iterator[dict[int, tuple[Job, BaseProcess, Mapping[str, str], float]]]:
    """The running processes, by what shows their end; those still running at the end are told to save and stop."""
    running = {}
    try:
        yield running
    finally:
        if running:
            names = "; ".join(job.name for job, *_ in running.values())
            tqdm.write(f"stopping {names}: the same command goes on from here", file=sys.stderr)
        for _, process, *_ in running.values():
            process.terminate()
        for _, process, *_ in running.values():
            process.join(SECONDS_TO_SAVE)
            process.kill()


def fork_server() -> multiprocessing.context.BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *PRELOADED])
    return context


def run_script(script: str, options: str, log: str, environment: dict[str, str]) -> None:
    """In a process of its own: run the script as `python script options` would, its output appended to the log."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C in the terminal is for the driver alone, which then asks its commands to save
    multiprocessing.set_start_method(None, force=True)  # for its own workers the default, not the fork server's
    threading.Thread(target=end_with_driver, daemon=True).start()
    start, _, name = script.partition("/")
    log_file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(log_file, f"$ (cd {start} && python {name} {options})\n".encode())
    os.dup2(log_file, 1)
    os.dup2(log_file, 2)
    os.environ.update(environment)
    os.chdir(ROOT / start)
    sys.argv = [name, *shlex.split(options)]
    sys.path[0] = str((ROOT / script).parent)
    status = None
    try:
        runpy.run_path(name, run_name="__main__")
    except SystemExit as ending:
        status = ending.code
    except BaseException:
        traceback.print_exc()
        status = 1
    # Only now, when what the script held is let go: data loading workers end with their loader, not before.
    sys.exit(status)


def end_with_driver() -> None:
    """A command whose driver was killed would go on unseen, and write into the folders of the next one."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
