"""Fixtures for every test: no wall-clock deadlines, one small Ray cluster for those that need it."""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
if "PYTEST_XDIST_WORKER" in os.environ:
    # As many processes as CPUs: more threads would only get into each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("lspm", deadline=None)
settings.load_profile("lspm")


def pytest_collection_finish() -> None:
    """Keep garbage collection from looking at the imported libraries again and again: half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A real Ray cluster on this machine, with the settings that the product itself uses."""
    from lspm_ray.cluster import ClusterConfig, connect

    with connect(ClusterConfig(num_cpus=2, object_store_mb=256)):
        yield
