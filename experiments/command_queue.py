"""Commands that run several at a time, each once: what is finished is skipped, what was stopped is resumed.

Starting Python with torch and timm takes seconds, more than many of the commands themselves. So a fork server imports
them once, and each process that it forks runs one command after the other.
"""

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from tqdm import tqdm

from common import VERSION
from common.command_line import run
from common.errors import InputError
from common.files import make_output_dir, read_json, write_json
from common.progress import progress_bar

ROOT = Path(__file__).resolve().parents[1]
# What the scripts import; nothing of it touches a GPU.
PRELOADED = ["torch", "timm", "torchvision", "sklearn.cluster", "scipy.stats", "matplotlib.pyplot"]
SECONDS_TO_SAVE = 120  # that a stopped command has before it is killed
BUSY = threading.Lock()  # held while a process runs a command


@dataclass(frozen=True)
class Job:
    """One command of the project, run in a folder of its own for what it writes.

    script: relative to the project's folder, run from the first folder of it as the README says; it has a `main(argv)`.
    options: as typed. folder: its own, with its log. result: the file it ends with. needs: the jobs whose results it
    reads. discarded: a pattern of files in `folder` that are needed to resume it, and not once it is finished.
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


def is_of(job: Job) -> bool:
    """Whether what is in the job's folder was made by these very commands, of this version of the project."""
    before = recorded(job)
    return (before.get("commands"), before.get("version")) == (job.commands, VERSION)


def is_finished(job: Job) -> bool:
    return is_of(job) and recorded(job)["seconds"] is not None and job.result.exists()


def prepare(job: Job) -> None:
    """Make the job's folder ready: files of the same commands stay, to be resumed; those of others are removed.

    Raises InputError when the folder holds files that no job has written.
    """
    if not is_of(job):
        if job.record.is_file():
            shutil.rmtree(job.folder)
        if any(make_output_dir(job.folder).iterdir()):
            raise InputError(f"{job.folder} holds files of something else: remove it, or give another --output_dir")
    note(job, None)


def note(job: Job, seconds: float | None) -> None:
    write_json(job.record, {"commands": job.commands, "version": VERSION, "seconds": seconds}, indent=2)


def run_jobs(targets: Iterable[Job], slots: Sequence[Mapping[str, str]], describe: Callable[[Job], str]) -> None:
    """Run the jobs and those they need, where not finished: each when its needs are there, one at a time in each slot.

    slots: environment variables, such as the GPU to see. describe: called with each job that has finished, for what to
    print of it. Raises InputError, with the end of its log, when a job fails; the others are then stopped as by Ctrl-C,
    and are resumed the next time.
    """
    jobs = with_needs(targets)
    finished = {job for job in jobs if is_finished(job)}
    waiting = [job for job in jobs if job not in finished]
    stale = sum(job.record.is_file() and not is_of(job) for job in waiting)
    again = f", {stale} of them again, made with other options or by another version" if stale else ""
    print(f"{len(jobs)} commands: {len(finished)} finished, {len(waiting)} to run{again}", flush=True)
    running: dict[Future, tuple[Job, ProcessPoolExecutor]] = {}
    bar = progress_bar(total=len(jobs), initial=len(finished), desc="commands", unit="cmd", smoothing=0)
    with bar, workers(slots, running) as free:
        while waiting or running:
            while free and (job := next_of(waiting, finished)):
                waiting.remove(job)
                prepare(job)
                tqdm.write(job.command)
                slot = free.pop(0)
                running[slot.submit(run_command, job.script, job.options, str(job.log))] = job, slot
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, slot = running.pop(future)
                seconds = seconds_of(job, future)
                note(job, seconds)
                for file in job.folder.glob(job.discarded) if job.discarded else ():
                    file.unlink()
                free.append(slot)
                finished.add(job)
                bar.update()
                tqdm.write(f"    {job.name}: {describe(job)} ({seconds} s)")


def next_of(waiting: Sequence[Job], finished: set[Job]) -> Job | None:
    return next((job for job in waiting if finished.issuperset(job.needs)), None)


def seconds_of(job: Job, future: Future) -> float:
    """How long a command took that is over. Raises InputError when it failed."""
    try:
        code, seconds = future.result()
    except BrokenProcessPool:
        raise InputError(f"{job.name} was killed, for want of memory perhaps: try a smaller --jobs") from None
    if code or not job.result.exists():
        said = [line.strip() for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
        raise InputError(
            f"{job.name} ended with exit code {code}: {said[-1]}; the command and all it said are in {job.log}"
        )
    return seconds


@contextmanager
def workers(slots: Sequence[Mapping[str, str]], running: Mapping[Future, tuple]) -> Iterator[list[ProcessPoolExecutor]]:
    """A pool of one process for each slot. On an error or Ctrl-C the running commands are told to save and stop.

    (One pool of several would not notice the death of a process that it started after the first.)
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *PRELOADED])
    driver_is_gone, driver = context.Pipe(duplex=False)
    pools = [ProcessPoolExecutor(1, context, start_worker, (dict(slot), driver_is_gone)) for slot in slots]
    try:
        yield [*pools]
    except BaseException:
        driver.close()
        if running:
            names = "; ".join(job.name for job, _ in running.values())
            tqdm.write(f"stopping {names}: the same command resumes from here", file=sys.stderr)
        raise
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)
        driver.close()
        driver_is_gone.close()


def start_worker(environment: dict[str, str], driver_is_gone: Connection) -> None:
    """In a new process: be ready for commands, and watch the driver."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which then asks its commands to save
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # in an orderly way, where nobody saves
    os.environ.update(environment)
    threading.Thread(target=end_with_driver, args=(driver_is_gone,), daemon=True).start()


def end_with_driver(driver_is_gone: Connection) -> None:
    """End this process when the driver closes its end of the pipe, by intent or because it was killed.

    A finetuning saves first. A command that went on unseen would write into the folders of the next driver.
    """
    driver_is_gone.poll(None)
    os.kill(os.getpid(), signal.SIGTERM)  # the command
    BUSY.acquire(timeout=SECONDS_TO_SAVE)
    os.kill(os.getpid(), signal.SIGTERM)  # the process
    time.sleep(10)
    os.kill(os.getpid(), signal.SIGKILL)


def run_command(script: str, options: str, log: str) -> tuple[object, float]:
    """In such a process: run the script's `main` as `python script options` would, its output appended to a log.

    Returns: the exit code and the seconds.
    """
    started = time.monotonic()
    start, _, name = script.partition("/")
    with BUSY, Path(log).open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        os.chdir(ROOT / start)
        print(f"$ (cd {start} && python {name} {options})", flush=True)
        try:
            module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
            run(partial(module.main, shlex.split(options)))
        except SystemExit as ending:
            code = ending.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        return code, round(time.monotonic() - started, 1)
