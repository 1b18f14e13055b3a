"""One process or many: started by torchrun, torch.distributed.launch --use_env or SLURM, or directly."""

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from common.errors import InputError

Result = TypeVar("Result")
CPU_PASS = 16  # images per forward pass on a CPU: the activations of more overflow its caches
SECONDS_TO_RELEASE = 0.1


@dataclass(frozen=True)
class Processes:
    """This process, one of `size` that share the work; by default the only one.

    `device` is its own: cuda:<local rank> if several share a machine's GPUs.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def part(self, n: int) -> slice:
        """Return this process's share of n things: a consecutive slice, of equal length in all to within one."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes, the same in all of them."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the main process's."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor, src=0)

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, which have one shape, stacked by rank (size, ...)."""
        if self.size == 1:
            return tensor[None]
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.stack(gathered)

    def together(self, work: Callable[[], Result]) -> Result:
        """Do this process's part of some work. An InputError in one process is raised in all, so that none waits."""
        error, result = None, None
        try:
            result = work()
        except InputError as raised:
            error = raised
        if self.size > 1:
            errors: list[str | None] = [None] * self.size
            dist.all_gather_object(errors, str(error) if error else None)
            error = error or next((InputError(message) for message in errors if message), None)
        if error:
            raise error
        return result

    def from_main(self, work: Callable[[], Result]) -> Result:
        """Run `work` in the main process; return its result in all. Its InputError is raised in all, too."""
        made = [self.together(lambda: work() if self.is_main else None)]
        if self.size > 1:
            dist.broadcast_object_list(made)
        return made[0]

    def report(self, message: str) -> None:
        """Print a line above the progress bars, in the main process only."""
        if self.is_main:
            tqdm.write(message)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the body (a download, say) in the main process before the others."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


ALONE = Processes()


class Interruption:
    """Record SIGTERM instead of dying from it, so that the current update is finished and the state saved."""

    EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: run again, with --auto-resume

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interruption":
        self.previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self.previous)


def pick_device(name: str) -> torch.device:
    """Return the device; `auto` is the first there of cuda, mps and cpu. Raises InputError if this machine lacks it."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0][:150]
        raise InputError(f"--device {name} cannot be used here (cpu can): {reason}") from None
    return device


def amp_dtype_of(amp: str, device: torch.device) -> torch.dtype | None:
    """Return the type that --amp names, None for off; auto is fp16 on CUDA, else off."""
    if amp == "auto":
        amp = "fp16" if device.type == "cuda" else "off"
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def passes(images: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Split a batch (b, ...) into the parts that are best run through a network in turn, without gradients."""
    return images.split(CPU_PASS if device.type == "cpu" else len(images))


def autocast(device: torch.device, amp_dtype: torch.dtype | None) -> AbstractContextManager:
    """Return a context that autocasts to this type on the device, or does nothing for None."""
    return torch.autocast(device.type, amp_dtype) if amp_dtype else nullcontext()


def in_parallel(model: nn.Module, processes: Processes, some_unused: bool = False) -> nn.Module:
    """Return the model to train: itself, or one that averages its gradients with the other processes.

    some_unused: some weights do not affect the loss.
    """
    if processes.size == 1:
        return model
    device_ids = [processes.device] if processes.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=some_unused)


def gradients_stay(model: nn.Module, until_last: bool) -> AbstractContextManager:
    """Keep gradients local until the last micro-batch, so that processes average them once per update."""
    return model.no_sync() if until_last and isinstance(model, DistributedDataParallel) else nullcontext()


def first_node(nodes: str) -> str:
    """Return the first node of SLURM's list, that of process 0: gpu-03 for "gpu-[03-05,9],login"."""
    first = re.match(r"([^,\[]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[([^-,\]]*)[^\]]*\]", r"\1", first)


@contextmanager
def launched(device_name: str = "auto", dist_url: str = "env://") -> Iterator[Processes]:
    """Join the other processes of this run, over nccl on CUDA and gloo elsewhere, and leave them at the end.

    Raises InputError if the device is missing, or a machine has fewer GPUs than processes.
    """
    device = pick_device(device_name)
    # Not SLURM_NTASKS: a batch script itself has it too, and runs plain commands as one process each.
    if all(os.environ.get(name, "1") == "1" for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")):
        yield Processes(device)
        return
    from timm.utils.distributed import init_distributed_device_so, world_info_from_env  # takes a second to import

    local_rank, _, _ = world_info_from_env()
    if device.type == "cuda" and local_rank >= torch.cuda.device_count():
        raise InputError(
            f"process {local_rank} of this machine has no GPU (there are {torch.cuda.device_count()}): "
            "lower --nproc_per_node, or run with --device cpu"
        )
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    os.environ.setdefault("MASTER_ADDR", first_node(os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")))
    os.environ.setdefault("MASTER_PORT", "29500")
    state = init_distributed_device_so(str(device), dist_url=dist_url)
    try:
        yield Processes(torch.device(state["device"]), state["global_rank"], state["world_size"])
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise InputError("another process of this run has ended; its own message says why") from None
        raise
    finally:
        if dist.is_initialized():
            # gloo's threads need the GIL to release their last tensors. Joining them holds it: if they are not done by
            # then, it hangs for ever (seen with torch 2.6).
            time.sleep(SECONDS_TO_RELEASE)
            dist.destroy_process_group()
