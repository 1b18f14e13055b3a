"""What a selection will cost, said before it starts: memory by counting, time by trying a little of the work."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from data_selection.activeft.assignment import NearestPrototypes
from data_selection.activeft.matching import CANDIDATES, most_similar_free
from data_selection.activeft.objective import repulsion_of

TRIED_SAMPLES = 2048
TRIED_PROTOTYPES = 256
COPIES_OF_PROTOTYPES = (
    10  # theta, its gradient, two moments of Adam, c, what is attracted and repelled, and temporaries
)
BYTES_PER_SAMPLE = 600  # bounds, candidates and their similarities, order
WORKING_BYTES = 100 << 20  # chunks of similarities, libraries' buffers


def memory_bytes(rows: int, batch_rows: int, d: int, k: int) -> int:
    """Memory of a process that holds `rows` of the pool and uses `batch_rows` of them for an iteration."""
    copied = batch_rows if batch_rows < rows else 0
    return 4 * d * (rows + copied + COPIES_OF_PROTOTYPES * k) + BYTES_PER_SAMPLE * batch_rows + WORKING_BYTES


def seconds_at_most(
    pool: Tensor, centres: Tensor, tau: float, batch_rows: int, iterations: int, world_size: int
) -> tuple[float, float]:
    """Seconds per iteration and in all, if every sample were compared with all prototypes every time."""
    samples, prototypes = pool[:TRIED_SAMPLES], centres[:TRIED_PROTOTYPES]
    taken = torch.zeros(len(samples), dtype=torch.bool, device=pool.device)
    assigning = seconds(lambda: NearestPrototypes(samples)(centres), pool.device) / len(samples)
    repelling = seconds(lambda: repulsion_of(prototypes, centres, tau), pool.device) / len(prototypes)
    m = min(CANDIDATES, len(samples))
    matching = seconds(lambda: most_similar_free(samples, centres, taken, m), pool.device) / len(samples)
    per_iteration = batch_rows * assigning + len(centres) / world_size * repelling
    return per_iteration, iterations * per_iteration + len(pool) * matching


def seconds(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(2):  # the first is slower: libraries prepare themselves
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def in_words(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.0f} min"
