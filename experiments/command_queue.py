"""Run commands several at a time, each once: finished ones are skipped, stopped ones are resumed.

Starting Python with torch and timm takes seconds, more than many of the commands themselves. So a fork server imports
them once and forks a process for each command. concurrent.futures would not do: it can neither tell a running command
to save and end, nor report its exit code.
"""

import gc
import importlib
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common import VERSION
from common.command_line import run
from common.errors import InputError
from common.files import make_output_dir, read_json, write_json
from common.progress import progress_bar
from experiments import ROOT

# Modules that the commands import, except those that touch a GPU or start a thread when imported.
PRELOADED = [
    "deit.finetuning",
    "segmenter.finetuning",
    "data_selection.extraction",
    "data_selection.sample_tools.baseline",
    "sklearn.cluster",
    "scipy.stats",
    "matplotlib.figure",
]
THREADS = "OMP_NUM_THREADS"
SECONDS_TO_SAVE = 120  # granted to a stopped command before it is killed


@dataclass(frozen=True)
class Job:
    """One command of the project, with a folder of its own for what it writes."""

    name: str
    script: str  # path in the project, with a `main(argv)`; run from the path's first folder, as in the README
    options: str  # as typed
    folder: Path  # its own, log included
    result: Path  # the file or folder that it writes last
    needs: tuple["Job", ...] = ()  # the jobs whose results it reads
    discarded: str | None = None  # pattern of files in `folder` needed only to resume; removed once finished

    @property
    def command(self) -> str:
        start, _, script = self.script.partition("/")
        return f"(cd {start} && python {script} {self.options})"

    @property
    def commands(self) -> list[str]:
        """All commands that lead to the result, this one last."""
        return [job.command for job in with_needs([self])]

    @property
    def log(self) -> Path:
        return self.folder / "command.log"

    @property
    def record(self) -> Path:
        """The file of its progress: {"commands": [...], "version": ..., "seconds": null until it is finished}."""
        return self.folder / "command.json"


def with_needs(jobs: Iterable[Job]) -> list[Job]:
    """Each job once, after those it needs."""
    ordered: dict[Job, None] = {}
    for job in jobs:
        ordered |= dict.fromkeys([*with_needs(job.needs), job])
    return list(ordered)


def recorded(job: Job) -> dict:
    return read_json(job.record, "record of a command") if job.record.is_file() else {}


def is_current(record: Mapping[str, Any], commands: Sequence[str]) -> bool:
    """Return whether a record is of exactly these commands and of this version of the project."""
    return (record.get("commands"), record.get("version")) == (commands, VERSION)


def is_finished(job: Job) -> bool:
    record = recorded(job)
    return is_current(record, job.commands) and record["seconds"] is not None and job.result.exists()


def prepare(job: Job) -> None:
    """Make the job's folder ready: keep files of the same commands, to resume from, and remove those of others.

    Raises InputError if the folder holds files that no job has written.
    """
    if not is_current(recorded(job), job.commands):
        if job.record.is_file():
            shutil.rmtree(job.folder)
        if any(make_output_dir(job.folder).iterdir()):
            raise InputError(f"{job.folder} holds unrelated files: remove it, or give another --output_dir")
    write_record(job, None)


def write_record(job: Job, seconds: float | None) -> None:
    write_json(job.record, {"commands": job.commands, "version": VERSION, "seconds": seconds}, indent=2)


def run_jobs(targets: Iterable[Job], slots: Sequence[Mapping[str, str]], describe: Callable[[Job], str]) -> None:
    """Run the unfinished jobs and those they need: each once its needs are finished, one at a time per slot.

    slots: environment variables, such as the GPU to see; the first slot sets the number of threads for all. describe:
    called with each job that has finished; returns what to print about it. Raises InputError, with the end of its log,
    if a job fails; the others are then stopped as by Ctrl-C, and resume the next time.
    """
    jobs = with_needs(targets)
    finished = {job for job in jobs if is_finished(job)}
    waiting = [job for job in jobs if job not in finished]
    stale = sum(job.record.is_file() and not is_current(recorded(job), job.commands) for job in waiting)
    again = f", {stale} of them again, because the options or the version changed" if stale else ""
    print(f"{len(jobs)} commands: {len(finished)} finished, {len(waiting)} to run{again}", flush=True)
    context, free = start_fork_server(slots[0].get(THREADS)) if waiting else None, list(slots)
    running: dict[int, tuple[Job, BaseProcess, Mapping[str, str]]] = {}  # by sentinel, ready when the process ends
    with progress_bar(total=len(jobs), initial=len(finished), desc="commands", unit="cmd", smoothing=0) as bar:
        try:
            while waiting or running:
                while free and (job := next_of(waiting, finished)):
                    waiting.remove(job)
                    prepare(job)
                    tqdm.write(job.command)
                    slot = free.pop(0)
                    process = context.Process(target=run_command, args=(job, slot))
                    process.start()
                    running[process.sentinel] = job, process, slot
                for sentinel in wait([*running]):
                    job, process, slot = running.pop(sentinel)
                    process.join()
                    if not is_finished(job):
                        raise InputError(failure(job, process.exitcode))
                    free.append(slot)
                    finished.add(job)
                    bar.update()
                    tqdm.write(f"    {job.name}: {describe(job)} ({recorded(job)['seconds']} s)")
        finally:
            if running:
                names = "; ".join(job.name for job, _, _ in running.values())
                tqdm.write(f"stopping {names}: the same command resumes from here", file=sys.stderr)
                stop([process for _, process, _ in running.values()])


def next_of(waiting: Sequence[Job], finished: set[Job]) -> Job | None:
    return next((job for job in waiting if finished.issuperset(job.needs)), None)


def failure(job: Job, code: int) -> str:
    """Say what went wrong with a command, given its process's exit code, which is negative if it was killed."""
    if code == -signal.SIGKILL:
        return f"{job.name} was killed, perhaps out of memory: try a smaller --jobs"
    log = job.log.read_text(errors="replace") if job.log.is_file() else ""
    said = [line.strip() for line in log.splitlines() if line.strip()] or ["no output"]
    return f"{job.name} ended with exit code {code}: {said[-1]}; the command and its output are in {job.log}"


def start_fork_server(threads: str | None) -> BaseContext:
    """Start it with this many threads. Returns: the context that forks processes from it."""
    if threads:
        os.environ[THREADS] = threads  # libraries read it when they are loaded
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *PRELOADED])
    # All commands inherit this: Ctrl-C is for the driver alone, which then asks its commands to save.
    before, here = signal.signal(signal.SIGINT, signal.SIG_IGN), Path.cwd()
    os.chdir(ROOT)  # it imports from there
    ensure_running()
    os.chdir(here)
    signal.signal(signal.SIGINT, before)
    return context


def stop(processes: Sequence[BaseProcess]) -> None:
    """Tell commands to save and end, and wait until they have; those that take too long are killed."""
    deadline = time.monotonic() + SECONDS_TO_SAVE
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        process.kill()
        process.join()


def run_command(job: Job, environment: Mapping[str, str]) -> None:
    """In a new process, run the script's `main` as `python script options` would; append its output to the log.

    Exits with the script's exit code. On success, completes the record and removes the files to be discarded.
    """
    from common.image_loader import kill_workers  # imports torch, which is loaded in this process anyway

    started = time.monotonic()
    gc.freeze()  # garbage collection would touch, and so copy, all memory shared with the fork server
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # an orderly exit where no trainer saves
    threading.Thread(target=end_with_driver, daemon=True).start()
    os.environ.update(environment)
    with job.log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout.reconfigure(line_buffering=True)  # keeps output and errors in order
    print(f"$ {job.command}")
    folder, _, script = job.script.partition("/")
    os.chdir(ROOT / folder)
    sys.argv = [script, *shlex.split(job.options)]  # a subset's provenance records it as the command
    try:
        module = importlib.import_module(job.script.removesuffix(".py").replace("/", "."))
        run(partial(module.main, sys.argv[1:]))
    except SystemExit as ending:
        code = ending.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if not code and job.result.exists():
        write_record(job, round(time.monotonic() - started, 1))
        for file in job.folder.glob(job.discarded) if job.discarded else ():
            file.unlink()
    kill_workers()  # any that an error has left: multiprocessing would wait for them on exit
    sys.exit(code)


def end_with_driver() -> None:
    """End this command if the driver is killed; a finetuning saves first.

    A command that went on unseen would write into the folders of the next driver.
    """
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_SAVE)
    os.kill(os.getpid(), signal.SIGKILL)
