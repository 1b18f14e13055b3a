"""How a process finds the others that share its work."""

import subprocess
import sys

import pytest
from conftest import ROOT

from common.processes import first_node, launched


@pytest.fixture
def no_launcher(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def test_a_plain_command_in_a_batch_script_of_slurm_is_one_process(no_launcher, monkeypatch):
    for name, value in {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    with launched("cpu") as processes:
        assert processes.size == 1


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("gpu7", "gpu7"),
        ("gpu-[03-05,9],login", "gpu-03"),
        ("a,b[1-2]", "a"),
        ("rack[1-2]-node[10,12]", "rack1-node10"),
    ],
)
def test_processes_of_slurm_meet_at_the_first_node_of_their_step(nodes, first):
    assert first_node(nodes) == first


def test_the_tasks_of_a_step_of_slurm_share_the_work():
    program = (
        "import torch; from common.processes import launched\n"
        "with launched('cpu') as processes:\n"
        "    ones = torch.ones(1); processes.sum(ones); print(processes.rank, processes.size, int(ones))"
    )
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "MASTER_PORT": "29547", "PATH": "/usr/bin:/bin",
            "SLURM_STEP_NODELIST": "localhost", "OMP_NUM_THREADS": "1"}  # fmt: skip
    tasks = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                         env={**step, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)})
        for task in range(2)
    ]  # fmt: skip
    try:
        said = [task.communicate(timeout=60)[0].split() for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert said == [["0", "2", "2"], ["1", "2", "2"]]
