"""Commands that run several at a time, each once: what is finished is skipped, what was stopped is resumed.

Starting Python with torch and timm takes seconds, more than many of the commands themselves. So a fork server imports
them once, and forks a process for each command; not by concurrent.futures, which can neither tell a running command to
save and end, nor say with what exit code it has ended.
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

# What the commands import, as far as nothing of it touches a GPU or starts a thread.
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
SECONDS_TO_SAVE = 120  # that a stopped command has before it is killed


@dataclass(frozen=True)
class Job:
    """One command of the project, run in a folder of its own for what it writes."""

    name: str
    script: str  # relative to the project's folder, run from its first folder as the README says; has a `main(argv)`
    options: str  # as typed
    folder: Path  # its own, with its log
    result: Path  # the file it ends with
    needs: tuple["Job", ...] = ()  # the jobs whose results it reads
    discarded: str | None = None  # a pattern of files in `folder` that only an unfinished command needs, to be resumed

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
        """How far it has come: {"commands": [...], "version": ..., "seconds": null until it is finished}."""
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
    """Whether what a record tells of was made by these very commands, of this version of the project."""
    return (record.get("commands"), record.get("version")) == (commands, VERSION)


def is_finished(job: Job) -> bool:
    record = recorded(job)
    return is_current(record, job.commands) and record["seconds"] is not None and job.result.exists()


def prepare(job: Job) -> None:
    """Make the job's folder ready: files of the same commands stay, to be resumed; those of others are removed.

    Raises InputError when the folder holds files that no job has written.
    """
    if not is_current(recorded(job), job.commands):
        if job.record.is_file():
            shutil.rmtree(job.folder)
        if any(make_output_dir(job.folder).iterdir()):
            raise InputError(f"{job.folder} holds files of something else: remove it, or give another --output_dir")
    write_record(job, None)


def write_record(job: Job, seconds: float | None) -> None:
    write_json(job.record, {"commands": job.commands, "version": VERSION, "seconds": seconds}, indent=2)


def run_jobs(targets: Iterable[Job], slots: Sequence[Mapping[str, str]], describe: Callable[[Job], str]) -> None:
    """Run the jobs and those they need, where not finished: each when its needs are there, one at a time in each slot.

    slots: environment variables, such as the GPU to see; the number of threads is that of the first. describe: called
    with each job that has finished, for what to print of it. Raises InputError, with the end of its log, when a job
    fails; the others are then stopped as by Ctrl-C, and are resumed the next time.
    """
    jobs = with_needs(targets)
    finished = {job for job in jobs if is_finished(job)}
    waiting = [job for job in jobs if job not in finished]
    stale = sum(job.record.is_file() and not is_current(recorded(job), job.commands) for job in waiting)
    again = f", {stale} of them again, made with other options or by another version" if stale else ""
    print(f"{len(jobs)} commands: {len(finished)} finished, {len(waiting)} to run{again}", flush=True)
    context, free = start_fork_server(slots[0].get(THREADS)) if waiting else None, list(slots)
    running: dict[int, tuple[Job, BaseProcess, Mapping[str, str]]] = {}  # by what becomes ready when the process ends
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
    """What went wrong with a command, by its process's exit code, which is negative when it was killed."""
    if code == -signal.SIGKILL:
        return f"{job.name} was killed, perhaps out of memory: try a smaller --jobs"
    log = job.log.read_text(errors="replace") if job.log.is_file() else ""
    said = [line.strip() for line in log.splitlines() if line.strip()] or ["nothing"]
    return f"{job.name} ended with exit code {code}: {said[-1]}; the command and all it said are in {job.log}"


def start_fork_server(threads: str | None) -> BaseContext:
    """Returns: what makes processes that are forked from it, of so many threads."""
    if threads:
        os.environ[THREADS] = threads  # libraries read it when they are loaded
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *PRELOADED])
    # Inherited by all: Ctrl-C is for the driver, which then asks its commands to save.
    before, here = signal.signal(signal.SIGINT, signal.SIG_IGN), Path.cwd()
    os.chdir(ROOT)  # from where it imports
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
    """In a new process: run the script's `main` as `python script options` would, its output appended to the log.

    Exits with the script's exit code. When all went well, the record is completed and what is to be discarded removed.
    """
    from common.image_loader import kill_workers  # with torch, which is loaded here

    started = time.monotonic()
    gc.freeze()  # garbage collection would touch, and so copy, all the memory that is shared with the fork server
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # in an orderly way, where nobody saves
    threading.Thread(target=end_with_driver, daemon=True).start()
    os.environ.update(environment)
    with job.log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout.reconfigure(line_buffering=True)  # in order with the errors
    print(f"$ {job.command}")
    folder, _, script = job.script.partition("/")
    os.chdir(ROOT / folder)
    sys.argv = [script, *shlex.split(job.options)]  # what a subset's provenance calls its command
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
    kill_workers()  # those that an error has left; multiprocessing waits for them on exit
    sys.exit(code)


def end_with_driver() -> None:
    """End this command when the driver has been killed; a finetuning saves first.

    A command that went on unseen would write into the folders of the next driver.
    """
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_SAVE)
    os.kill(os.getpid(), signal.SIGKILL)
