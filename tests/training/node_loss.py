"""Pretrain on a small cluster of real nodes and kill one of them on the way; run by `test_node_loss.py`.

python -m tests.training.node_loss FOLDER replaced|fewer
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from lspm_ray.artifact import ArtifactStore, Draft
from lspm_ray.cluster import TRAIN_START_TIMEOUT, ClusterConfig, configure_data, prepare_environment
from lspm_ray.training.pretrain_config import PretrainConfig

FAST_DETECTION = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}
CONFIG: dict[str, Any] = {
    "steps": 200,
    "batch_size": 8,
    "micro_batch_size": 4,
    "model": {"size": "toy", "config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}},
    "learning_rate": 1e-3,
    "validation_blocks": 16,
    "validate_every_steps": 50,
    "checkpoint_every_steps": 20,
    "log_every_steps": 1,
    "precision": "fp32",
}


def main(folder: Path, scenario: str) -> None:
    os.environ[TRAIN_START_TIMEOUT] = "30"
    prepare_environment(ClusterConfig(address="auto"))
    import ray
    from ray.cluster_utils import Cluster

    from lspm_ray.training.pretrain import pretrain
    from tests.toy_blocks import toy_blocks
    from tests.toys import toy_tokenizer

    store = ArtifactStore(str(folder / scenario))

    def build(draft: Draft) -> None:
        toy_tokenizer().save_pretrained(draft.path)

    tokenizer = store.make("tokenizer", {}, {}, build)
    rows = {"train": [150, 90], "validation": [40]}
    blocks = toy_blocks(store, rows, length=16, vocabulary=len(toy_tokenizer()), counting=True)
    # The head has no room for a worker, and each of the others for one.
    head = {"num_cpus": 0, "_system_config": FAST_DETECTION, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 << 20, resources={"trainer": 1}) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    configure_data()
    lost = threading.Event()
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if line.startswith("step ") and int(line.split()[1].split("/")[0].replace(",", "")) >= 50:
            lost.set()

    workers = {"num_workers": 2, "threads": 1, "cpus_per_worker": 0.75, "max_failures": 3}
    if scenario == "fewer":
        workers["min_workers"] = 1
    config = PretrainConfig.parse(CONFIG | {"workers": workers})
    result: dict[str, Any] = {}

    def train() -> None:
        made = pretrain(config, blocks, tokenizer, None, store, report)
        result["history"] = made.read_json("history.json")

    thread = threading.Thread(target=train)
    thread.start()
    if scenario != "whole":
        lost.wait(180)
        cluster.remove_node(nodes[1], allow_graceful=False)
        result["killed"] = lost.is_set()
        if scenario == "replaced":
            # Only the main thread may start nodes.
            cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    thread.join(300)
    result["notes"] = [line for line in lines if line.startswith("resumed")]
    (folder / f"{scenario}.json").write_text(json.dumps(result))
    os._exit(0 if "history" in result else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
