from pathlib import Path

import pytest

from lspm_ray import artifact
from lspm_ray.artifact import cpu_count
from lspm_ray.cgroup import cpu_quota


def quota(root: Path, membership: str, files: dict[str, str]) -> float | None:
    for name, text in files.items():
        file = root / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    (root / "membership").write_text(f"{membership}\n")
    return cpu_quota(root / "membership", root / "sys")


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {}, None),
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "400000 100000"}, 1.5),
        ("0::/a/b", {"a/cpu.max": "max 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/../other", {"cpu.max": "300000 100000", "other/cpu.max": "100000 100000"}, 3.0),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "0"}, None),
        (
            "3:cpu,cpuacct:/docker/of-the-host\n2:cpuset:/\n0::/",
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            2.0,
        ),
        ("2:cpuset:/", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_least_quota_of_the_group_and_those_above(tmp_path, membership, files, expected):
    assert quota(tmp_path, membership, files) == expected


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert cpu_quota(tmp_path / "nothing", tmp_path) is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (64.0, 8), (2.0, 2), (1.5, 2), (0.1, 1)])
def test_a_quota_lowers_the_cpus_that_affinity_gives(monkeypatch, quota, expected):
    monkeypatch.setattr(artifact.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(artifact, "cpu_quota", lambda: quota)
    assert cpu_count() == expected
