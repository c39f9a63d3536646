from collections.abc import Iterator
from typing import Any

import pytest

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.errors import ResourceError
from lspm_ray.serving.bundle import load_bundle
from lspm_ray.serving.config import ServeConfig
from lspm_ray.serving.deploy import DeployError, check_resources, describe, failure, url, wait_until_running
from tests.toys import toy_plan

TRACEBACK = """\
The deployment failed to start 2 times in a row. Last error:
Traceback (most recent call last):
  File "app.py", line 3, in __init__
    raise ArtifactError("content does not match")
lspm_ray.errors.ArtifactError: /m/model.safetensors: content does not match the manifest

During handling of the above exception, another exception occurred:
  more text
"""


def status(state: str, message: str = "", **deployments: str) -> dict[str, Any]:
    found = {name: {"status": value, "message": "", "replicas": {}} for name, value in deployments.items()}
    return {"status": state, "message": message, "deployments": found}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def wait(states: list[dict[str, Any]], timeout_s: float = 10.0) -> tuple[list[str], Clock]:
    """The last state lasts for ever."""
    clock, seen = Clock(), list[str]()

    def following() -> Iterator[dict[str, Any]]:
        yield from states
        while True:
            yield states[-1]

    sequence = following()
    wait_until_running(
        lambda: next(sequence), timeout_s=timeout_s, progress=seen.append, clock=clock, sleep=clock.sleep
    )
    return seen, clock


def test_each_change_is_reported_once_until_it_runs() -> None:
    seen, _ = wait(
        [
            status("NOT_STARTED"),
            status("DEPLOYING", ingress="UPDATING"),
            status("DEPLOYING", ingress="UPDATING"),
            status("RUNNING", ingress="HEALTHY"),
        ]
    )
    assert seen == ["not_started", "deploying: ingress updating", "running: ingress healthy"]


def test_a_failure_is_one_sentence() -> None:
    failed = status("DEPLOY_FAILED", "one deployment failed", full="DEPLOY_FAILED")
    failed["deployments"]["full"]["message"] = TRACEBACK
    with pytest.raises(DeployError, match=r"did not start: .*model\.safetensors: content does not match the manifest$"):
        wait([failed])


def test_a_failure_without_a_traceback_is_shown_as_it_is() -> None:
    assert failure(status("DEPLOY_FAILED", "something\nelse\nhappened\nhere")) == "else happened here"


def test_no_progress_is_an_error_that_says_what_to_lower() -> None:
    stuck = status("DEPLOYING", full="UPDATING")
    with pytest.raises(ResourceError, match=r"no progress for 10 s: deploying: full updating.*serve\.variant\.cpus"):
        wait([stuck])


def test_slow_progress_is_progress() -> None:
    states = [status("DEPLOYING", **{f"m{n}": "UPDATING"}) for n in range(5) for _ in range(30)]
    _, clock = wait([*states, status("RUNNING")], timeout_s=10)
    assert clock.now > 10


def test_a_demand_that_the_cluster_can_never_meet_is_refused_before_anything_starts(toy_select: Artifact) -> None:
    plan = load_bundle(toy_select.uri).plan
    config = ServeConfig.parse({"variant": {"cpus": 1.0, "min_replicas": 2, "max_replicas": 2}})
    check_resources(plan, config, {"CPU": 2.1, "GPU": 0.0})
    with pytest.raises(ResourceError, match=r"serve\.variant\.cpus: the endpoint needs 2\.1 CPU.*has 2"):
        check_resources(plan, config, {"CPU": 2.0, "GPU": 0.0})
    with pytest.raises(ResourceError, match="needs 1 GPU"):
        check_resources(plan, ServeConfig.parse({"variant": {"gpus": 1.0}}), {"CPU": 2.0, "GPU": 0.0})


def test_the_default_endpoint_fits_one_cpu(toy_store: ArtifactStore) -> None:
    slow_first = toy_plan(toy_store, first_latency_ms=50.0)
    # Half a CPU, so that during an update old and new fit side by side.
    for select, cpus in ((slow_first, 0.6), (toy_plan(toy_store), 0.5)):
        check_resources(load_bundle(select.uri).plan, ServeConfig(), {"CPU": cpus, "GPU": 0.0})


def test_describe_sorts_the_deployments() -> None:
    assert describe(status("DEPLOYING", b="HEALTHY", a="UPDATING")) == "deploying: a updating, b healthy"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("10.0.0.5", "http://10.0.0.5:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_url(host: str, expected: str) -> None:
    assert url(ServeConfig(host=host)) == expected
