"""Batches of images from worker processes that end with their run; decoded images can be kept in memory."""

import atexit
import ctypes
import math
import multiprocessing
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common.cpus import worker_count
from common.errors import InputError
from common.feature_file import FeatureFile
from common.images import NO_LABEL
from common.processes import Processes, passes
from common.progress import progress_bar

SHARED_MEMORY = Path("/dev/shm")
SEMAPHORES = 2**16  # bytes of shared memory that one worker's take, a generous estimate
DECODED_AT_ONCE = 64
PREFETCH = 2  # batches that each worker prepares ahead
WITHOUT = "try --num_workers 0, or more shared memory (docker run --shm-size=8g)"


class ImageLoader:
    """The batches of a data set in a given order, as lists of tensors: a DataLoader that works in small containers too.

    batches: the keys of each batch's images; may be the stream of a whole run. batch_size: that of the largest batch.
    workers: the number of worker processes, at most one per usable processor; 0 loads in this process.
    If half of the free shared memory cannot hold what the workers prepare, batches come through pipes, a little slower;
    if it cannot even hold their semaphores, there are no workers.
    Raises, while iterating: InputError if an image cannot be read or a worker is killed.
    """

    def __init__(self, images: Dataset, batches: Iterable[Sequence], batch_size: int, workers: int, pin_memory: bool):
        workers, free = worker_count(workers), free_shared_memory()
        if workers and free < SEMAPHORES * (workers + 1):
            tqdm.write(f"warning: {SHARED_MEMORY} is too small for workers, images load one by one", file=sys.stderr)
            workers = 0
        options: dict[str, Any] = {}
        if workers:
            options = {"prefetch_factor": PREFETCH, "worker_init_fn": end_with_parent}
            if 2 * bytes_of_first(images, batches) * batch_size * (workers * PREFETCH + 1) > free:
                options["collate_fn"] = collate_for_a_pipe
        self.loader = DataLoader(images, batch_sampler=batches, num_workers=workers, pin_memory=pin_memory, **options)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        try:
            for batch in self.loader:
                yield [torch.as_tensor(part) for part in batch]
        except (InputError, OSError, MemoryError, RuntimeError, ImportError) as error:
            raise one_line(error) from None


def one_line(error: Exception) -> Exception:
    """Turn a loading error into an InputError of one line; return any other error as it is."""
    last = str(error).strip().rpartition("\n")[2]  # a worker's error comes after its traceback
    if isinstance(error, InputError | OSError | MemoryError) and "worker process" in str(error):
        return InputError(last.split("Error: ", 1)[-1])
    if "DataLoader worker" in str(error) and "signal" in str(error):
        killed = last.split("It is possible")[0].strip()
        return InputError(f"{killed}: out of memory? {WITHOUT}")
    if isinstance(error, OSError | ImportError) or any(
        sign in str(error) for sign in ("shared memory", "ancdata", "Too many open files")
    ):
        return InputError(f"worker processes cannot hand over images ({last}): {WITHOUT}")
    return error


def free_shared_memory() -> float:
    """Return the free shared memory in bytes. Docker gives a container 64 MB, some sandboxes none."""
    if sys.platform != "linux":
        return math.inf
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0


def bytes_of_first(images: Dataset, batches: Iterable[Sequence]) -> int:
    """Return the size in bytes of the first image once prepared; the others are like it."""
    first = next(iter(batches), ())
    return sum(part.nbytes for key in first[:1] for part in images[key] if isinstance(part, Tensor))


def collate_for_a_pipe(samples: list[tuple]) -> list[np.ndarray]:
    """Collate into numpy arrays, which are sent as bytes; tensors would be put into shared memory."""
    return [np.stack([np.asarray(part) for part in parts]) for parts in zip(*samples, strict=True)]


def end_with_parent(worker: int) -> None:
    """Make a worker ignore SIGTERM: the training process handles it (Interruption), and needs workers a moment longer.

    On Linux the kernel kills the worker when its parent dies of anything; elsewhere torch notices within 5 seconds.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@atexit.register
def kill_workers() -> None:
    """Kill workers before multiprocessing's exit handler, which waits for ever for those that ignore its SIGTERM."""
    children = multiprocessing.active_children()
    if children:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise an error for each
    for child in children:
        child.kill()


class ImagesOrBlack(Dataset):
    """Images as bytes (3, size, size), labels, and whether the image can be read: if not, it is black, its label -1."""

    def __init__(self, images: Dataset, input_size: int):
        self.images, self.input_size = images, input_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, int, bool]:
        try:
            pixels, label = self.images[row]
        except InputError:
            return torch.zeros(3, self.input_size, self.input_size, dtype=torch.uint8), NO_LABEL, False
        return pixels, label, True


def reason_unreadable(pool: Dataset, row: int) -> str:
    """Say why an image of a pool cannot be used."""
    try:
        pool[row]
    except InputError as error:
        return str(error).removesuffix("; repair or remove it")
    return f"{image_name(pool, row)} could not be read before, but can be now"


def image_name(pool: Dataset, row: int) -> str:
    if hasattr(pool, "samples"):
        return pool.samples[row][0]
    return pool.names[row] if hasattr(pool, "names") else f"image {row} of the pool"


def missing_batches(
    images: Dataset, input_size: int, file: FeatureFile, processes: Processes, batch_size: int, workers: int, doing: str
) -> Iterator[tuple[Sequence[int], Iterator[Tensor], Tensor, Tensor]]:
    """Yield this process's share of the images whose rows a feature file lacks, in batches, with a progress bar.

    Batches are fixed blocks of rows, whichever process computes them and however often the run was interrupted, so the
    file is the same to the bit.
    images: as bytes (3, input_size, input_size), with labels. doing: the bar's title.
    Yields: rows; their images on the device, in parts (see `passes`) to be computed one after the other; labels (b,);
    and which of the images can be read (b,).
    """
    device, blocks = processes.device, file.missing_blocks(batch_size)
    processes.barrier()  # all have seen what is missing before anyone fills it in
    blocks = blocks[processes.part(len(blocks))]
    loader = ImageLoader(ImagesOrBlack(images, input_size), blocks, batch_size, workers, device.type == "cuda")
    with progress_bar(total=sum(map(len, blocks)), unit="img", desc=doing, disable=not processes.is_main) as bar:
        for rows, (pixels, labels, readable) in zip(blocks, loader, strict=True):
            yield rows, (part.to(device, non_blocking=True) for part in passes(pixels, device)), labels, readable
            bar.update(len(rows))
    file.table.flush()  # processes on other machines may read these rows


class DecodedImages(Dataset):
    """A data set of PIL images and labels (or masks) that keeps the first ones decoded, as many as fit the budget.

    Decoding happens in __init__, so that worker processes forked later share the arrays.
    """

    def __init__(self, images: Dataset, budget_bytes: int, threads: int, progress: bool):
        self.images = images
        self.kept: list[tuple] = []
        free = budget_bytes
        with (
            ThreadPoolExecutor(max(1, threads)) as pool,
            progress_bar(total=len(images), desc="decoding", unit="img", disable=not progress, leave=False) as bar,
        ):
            for start in range(0, len(images), DECODED_AT_ONCE):
                some = range(start, min(start + DECODED_AT_ONCE, len(images)))
                decoded = [tuple(map(_as_array, sample)) for sample in pool.map(images.__getitem__, some)]
                free -= sum(part.nbytes for sample in decoded for part in sample if isinstance(part, np.ndarray))
                if free < 0:
                    break
                self.kept += decoded
                bar.update(len(some))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        if index < len(self.kept):
            return tuple(Image.fromarray(part) if isinstance(part, np.ndarray) else part for part in self.kept[index])
        return self.images[index]


def _as_array(part: Any) -> Any:
    return np.asarray(part) if isinstance(part, Image.Image) else part


class KeptBatches:
    """A loader whose batches stay in memory after the first pass, if all of them fit the budget.

    They are kept in ordinary memory: in the workers' shared memory each would hold an open file.
    """

    def __init__(self, loader: ImageLoader, budget_bytes: int):
        self.loader, self.budget_bytes = loader, budget_bytes
        self.kept: list[list[Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        if self.kept is not None:
            yield from self.kept
            return
        batches, free = [], self.budget_bytes
        for batch in self.loader:
            free -= sum(part.nbytes for part in batch)
            if free >= 0:
                batches.append([part.clone() if part.is_shared() else part for part in batch])
            else:
                batches.clear()
            yield batch
        if free >= 0:
            self.kept = batches
