import os
import time

import pytest

from lspm_ray import cluster
from lspm_ray.cluster import (
    TRAIN_START_TIMEOUT,
    ClusterConfig,
    _check_reachable,
    preflight,
    prepare_environment,
    running_cluster,
)
from lspm_ray.errors import ResourceError
from lspm_ray.evaluation.outputs import placement


@pytest.fixture
def clean(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(TRAIN_START_TIMEOUT, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(cluster.Path, "home", lambda: tmp_path)


def test_a_cluster_of_our_own_asks_for_a_token(clean):
    prepare_environment(ClusterConfig())
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.access(os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"], os.X_OK)


def test_the_users_own_token_is_kept(clean, tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t")
    prepare_environment(ClusterConfig())
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_running_cluster_keeps_its_own_authentication(clean):
    prepare_environment(ClusterConfig(address="auto"))
    assert "RAY_AUTH_MODE" not in os.environ and "RAY_AUTH_TOKEN" not in os.environ


def test_what_the_user_set_wins(clean):
    os.environ["RAY_USAGE_STATS_ENABLED"] = "1"
    prepare_environment(ClusterConfig())
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


def test_a_submitted_job_joins_its_cluster_unless_another_is_named(clean):
    assert running_cluster(ClusterConfig()) is None
    os.environ["RAY_ADDRESS"] = "10.0.0.1:6379"
    assert running_cluster(ClusterConfig()) == "10.0.0.1:6379"
    assert running_cluster(ClusterConfig(address="auto")) == "auto"


@pytest.mark.parametrize(
    ("config", "wait", "timeout"),
    [
        ({}, None, "120"),
        ({"autoscales": True}, None, "120"),
        ({"address": "auto"}, None, "120"),
        ({"address": "auto", "autoscales": True}, 1200.0, "1200"),
        ({"address": "auto", "autoscales": True, "nodes_within_s": 60}, 60.0, "60"),
    ],
)
def test_only_a_running_cluster_that_autoscales_is_waited_for(clean, config, wait, timeout):
    cluster = ClusterConfig.parse(config)
    prepare_environment(cluster)
    assert cluster.wait_for_nodes_s == wait
    assert os.environ[TRAIN_START_TIMEOUT] == timeout


def test_preflight_says_what_is_asked_what_is_there_and_what_to_change():
    with pytest.raises(ResourceError) as caught:
        preflight("this", {"CPU": 3.0}, {"CPU": 2.0}, setting="a.b")
    assert str(caught.value) == "a.b: this needs 3 CPU at once, the cluster has 2. Lower a.b, or add nodes"
    preflight("this", {"CPU": 2.0}, {"CPU": 2.0}, setting="a.b")


@pytest.mark.parametrize(("cpus", "actors"), [(1, 1), (2, 1), (4, 1), (16, 3), (100, 24)])
def test_inference_leaves_room_for_reading(cpus, actors):
    place = placement({"CPU": float(cpus)})
    assert place.actors == actors
    assert place.actors * place.cpus <= cpus - 0.25


def test_inference_uses_every_gpu():
    place = placement({"CPU": 8.0, "GPU": 4.0})
    assert (place.actors, place.gpus) == (4, 1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1"])
def test_no_cluster_at_the_address_is_an_error_not_a_hang(address):
    with pytest.raises(ResourceError, match=r"cluster\.address: no cluster answers there"):
        _check_reachable(address)


@pytest.mark.ray
def test_turns_on_the_cluster_do_not_overlap_and_end_with_their_process(ray_cluster, tmp_path):
    import ray

    @ray.remote(num_cpus=0, max_retries=0, max_calls=1)
    def take(number, dies=False):
        with cluster.turn_on_cluster("s3://bucket/a", lambda: None), (tmp_path / "log").open("a") as log:
            print("begin", number, file=log, flush=True)
            if dies:
                os._exit(1)
            time.sleep(0.3)
            print("end", number, file=log, flush=True)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(take.remote(0, dies=True))
    ray.get([take.remote(number) for number in (1, 2, 3)], timeout=60)
    first, *lines = (tmp_path / "log").read_text().splitlines()
    assert first == "begin 0"
    assert sorted(lines[::2]) == ["begin 1", "begin 2", "begin 3"]
    assert [line.replace("begin", "end") for line in lines[::2]] == lines[1::2]
