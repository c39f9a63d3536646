import asyncio
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from lspm_ray.artifact import ArtifactStore
from lspm_ray.errors import ArtifactError
from lspm_ray.inference.runtimes.torch import TorchPredictor
from lspm_ray.serving.app import ingress_options, variant_options
from lspm_ray.serving.bundle import load_bundle
from lspm_ray.serving.cascade import Logits, QueueFull, StageDown
from lspm_ray.serving.config import ServeConfig
from lspm_ray.serving.deployments import Packed, RemoteStage, VariantReplica, pack, packed_rows, unpack
from tests.toys import toy_plan

ids = st.lists(st.integers(0, 30_000), min_size=1, max_size=9).map(lambda row: np.asarray(row, dtype=np.int64))


@given(st.lists(ids, min_size=1, max_size=6))
def test_unpack_is_the_inverse_of_pack(rows: list[np.ndarray[tuple[int], np.dtype[np.int64]]]) -> None:
    packed = pack(rows)
    assert packed_rows([packed, packed]) == 2 * len(rows)
    back = unpack(packed)
    assert [row.tolist() for row in back] == [row.tolist() for row in rows]
    assert {row.dtype for row in back} == {np.dtype(np.int64)}


class Method:
    """`handle.predict` with prepared outcomes; logits are the number of tokens of each row."""

    def __init__(self, *outcomes: Exception) -> None:
        self.outcomes = list(outcomes)
        self.rows: list[int] = []

    async def remote(self, packed: Packed) -> Logits:
        if self.outcomes:
            raise self.outcomes.pop(0)
        self.rows.append(len(packed[1]))
        return np.stack([packed[1], -packed[1]], axis=1).astype(np.float32)


class Handle:
    def __init__(self, *outcomes: Exception) -> None:
        self.predict = Method(*outcomes)
        self.ping = Method(*outcomes)


def ask(handle: Handle, lengths: list[int]) -> list[float]:
    stage = RemoteStage("full", handle, max_rows=2)
    logits = asyncio.run(stage([np.zeros(n, dtype=np.int64) for n in lengths]))
    return [float(row[0]) for row in logits]


def test_large_calls_are_cut_and_put_together_in_order() -> None:
    handle = Handle()
    assert ask(handle, [5, 4, 3, 2, 1]) == [5, 4, 3, 2, 1]
    assert sorted(handle.predict.rows) == [1, 2, 2]


def test_a_replica_that_dies_is_replaced_by_another_once() -> None:
    assert ask(Handle(RayActorError()), [3]) == [3]
    with pytest.raises(StageDown, match="full"):
        ask(Handle(RayActorError(), RayActorError()), [3])


def test_a_full_queue_is_told_apart_from_an_error() -> None:
    with pytest.raises(QueueFull, match="full: Request dropped"):
        ask(Handle(BackPressureError(8, 8)), [3])


def test_options_limit_every_queue() -> None:
    config = ServeConfig()
    for options in (variant_options("full", config), ingress_options(config)):
        assert options["max_queued_requests"] > 0
        assert options["backpressure_config"].status_code == 429
    assert ingress_options(config)["max_ongoing_requests"] > config.limits.max_requests


def test_equal_bounds_switch_autoscaling_off() -> None:
    fixed = variant_options("full", ServeConfig.parse({"variant": {"min_replicas": 2, "max_replicas": 2}}))
    assert fixed["num_replicas"] == 2
    assert "autoscaling_config" not in fixed
    scaled = variant_options("full", ServeConfig.parse({"variant": {"max_replicas": 3, "gpus": 1.0}}))
    assert scaled["autoscaling_config"]["max_replicas"] == 3
    assert scaled["ray_actor_options"] == {"num_cpus": 0.25, "num_gpus": 1.0}


def test_a_replica_refuses_a_model_with_a_flipped_byte(own_store: ArtifactStore) -> None:
    select = toy_plan(own_store)
    weights = Path(load_bundle(select.uri).models[1].uri) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        VariantReplica(select.uri, 1, ServeConfig().model_dump(mode="json"))


def test_rows_that_gain_nothing_together_are_answered_in_turn(
    own_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchPredictor, "joins_rows", False)
    replica = VariantReplica(toy_plan(own_store).uri, 1, ServeConfig().model_dump(mode="json"))
    runs: list[int] = []
    predict = TorchPredictor.predict
    monkeypatch.setattr(TorchPredictor, "predict", lambda self, rows: (runs.append(len(rows)), predict(self, rows))[1])
    rows = [np.arange(3, 3 + length, dtype=np.int64) for length in (4, 5, 6)]

    async def scenario() -> list[Logits]:
        return await asyncio.gather(replica.predict(pack(rows[:1])), replica.predict(pack(rows[1:])))

    first, second = asyncio.run(scenario())
    assert (first.shape, second.shape, runs) == ((1, 2), (2, 2), [1, 2])
