"""How commands behave on a machine, or in a container, that they share."""

import os

import pytest

from common.cpus import SPINS, _quotas, share_processors


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),  # a container of version 2
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/job/step", {"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"}, 3),  # a group around it
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        # Docker with version 1 names a group of the host, and mounts it as the root.
        ("4:cpu:/docker/ab", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("3:memory:/", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_cpu_quota_of_a_container_is_read_from_both_versions_of_cgroups(membership, files, quota, tmp_path):
    (tmp_path / "cgroup").write_text(membership + "\n")
    for name, content in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert min(_quotas(tmp_path / "cgroup", tmp_path / "fs"), default=None) == quota


@pytest.mark.parametrize("policy", [None, "active"])
def test_waiting_threads_spin_for_a_moment_unless_the_user_says_otherwise(policy, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    share_processors()
    spins = os.environ.get("GOMP_SPINCOUNT")
    assert (os.environ["OMP_WAIT_POLICY"], spins) == (policy or "passive", None if policy else SPINS)
