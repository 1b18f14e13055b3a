"""The number of processors that this process may use, and how its threads share the machine with other work."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

SPINS = "2000"  # about a tenth of a millisecond


def usable_processors() -> int:
    """Count the processors this process may run on (affinity), or fewer if a container's quota (cgroup) is smaller."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = min(_quotas(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")), default=allowed)
    return min(allowed, max(1, math.ceil(quota)))


def worker_count(wanted: int) -> int:
    """Return the number of data loading processes or threads: `wanted`, or the usable processors if these are fewer."""
    return min(wanted, usable_processors())


def share_processors() -> None:
    """Make waiting threads sleep after a moment of spinning, and limit their number to the usable processors.

    A spinning thread takes time from other programs: beside one busy process, training a small network then takes a
    multiple of the time. A thread that sleeps at once is late at every small step: a selection on two idle cores takes
    half as long again. OpenMP reads these variables when torch is loaded; those the user has set are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # before sleeping, in GNU's OpenMP (torch's on Linux)
    usable = usable_processors()
    if usable < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(usable))


def _quotas(membership: Path, root: Path) -> Iterator[float]:
    """Yield the CPU quotas, in processors, of the process's control group (version 1 or 2) and of its parents.

    membership: /proc/self/cgroup, with lines such as "0::/group" (version 2) and "4:cpu,cpuacct:/group" (version 1).
    """
    for line in membership.read_text().splitlines() if membership.is_file() else ():
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        group = base / name.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    try:
        if (folder / "cpu.max").is_file():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit, period = (
                (folder / f"cpu.cfs_{name}_us").read_text().strip().replace("-1", "max") for name in ("quota", "period")
            )
        if limit != "max":
            yield int(limit) / int(period)
    except (OSError, ValueError):  # no quota in this group
        return
