"""One process or many: started by torchrun, torch.distributed.launch --use_env or SLURM, or by nobody at all."""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so, world_info_from_env

from common.command_line import InputError, pick_device


@dataclass(frozen=True)
class Processes:
    """This process among its equals. `device` is its own: cuda:<local rank> when several share a machine's GPUs."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the body (a download, say) before the others do."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


def autocast(device: torch.device, amp_dtype: torch.dtype | None) -> AbstractContextManager:
    """Mixed precision of this type on the device, or none at all."""
    return torch.autocast(device.type, amp_dtype) if amp_dtype else nullcontext()


@contextmanager
def launched(device_name: str = "auto", dist_url: str = "env://") -> Iterator[Processes]:
    """Join the other processes of this run, over nccl on CUDA and gloo elsewhere, and part from them at the end.

    Raises InputError when a device is not here, or a machine has fewer GPUs than processes.
    """
    device = pick_device(device_name)
    local_rank, _, world_size = world_info_from_env()
    if device.type == "cuda" and world_size > 1 and local_rank >= torch.cuda.device_count():
        raise InputError(
            f"process {local_rank} of this machine has no GPU (there are {torch.cuda.device_count()}): "
            "lower --nproc_per_node, or run with --device cpu"
        )
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    if world_size > 1:  # SLURM names its launching node in its own way, and no port
        os.environ.setdefault("MASTER_ADDR", os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        os.environ.setdefault("MASTER_PORT", "29500")
    state = init_distributed_device_so(str(device), dist_url=dist_url)
    try:
        yield Processes(torch.device(state["device"]), state["global_rank"], state["world_size"])
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
