"""How much CPU time the control groups of this process allow: what `docker run --cpus=2` sets, and affinity hides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MEMBERSHIP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def cpu_quota(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> float | None:
    """CPUs that the process may keep busy at a time, or None without a limit: the least of its group and those above.

    Args:
        membership: file with a line `id:controllers:path` per hierarchy; version 2 names no controllers.
        root: where the hierarchies are mounted.
    """
    quotas: list[float] = []
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount, read = (root / "cpu", _version_1) if controllers else (root, _version_2)
        found = (read(directory) for directory in _from_root(mount, path))
        quotas += [quota for quota in found if quota is not None]
    return min(quotas, default=None)


def _from_root(mount: Path, path: str) -> Iterator[Path]:
    yield mount
    for part in PurePosixPath(path).parts[1:]:
        if part == "..":  # outside of the namespace that this process can see
            return
        mount = mount / part
        yield mount


def _version_2(directory: Path) -> float | None:
    quota, _, period = _text(directory / "cpu.max").partition(" ")
    return _cpus(quota, period)


def _version_1(directory: Path) -> float | None:
    return _cpus(_text(directory / "cpu.cfs_quota_us"), _text(directory / "cpu.cfs_period_us"))


def _cpus(quota_us: str, period_us: str) -> float | None:
    """None for `max`, -1 and what could not be read."""
    if not (quota_us.isdigit() and period_us.isdigit() and int(period_us)):
        return None
    return int(quota_us) / int(period_us)


def _text(file: Path) -> str:
    """Empty if there is no such file: inside a container the path can be the host's, and only the mount has a limit."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
