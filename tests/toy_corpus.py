"""A small prepared corpus in which there is something to learn, made without Ray."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.corpus.build import LABELS_FILE
from lspm_ray.corpus.config import SPLITS
from lspm_ray.tasks import Task
from tests.toys import LABELS, toy_tokenizer

GOOD = ["good", "great", "lovely", "nice", "soft"]
BAD = ["bad", "poor", "terrible", "itchy", "returned"]
FILL = ["the", "dress", "shirt", "is", "very", "so", "and", "this", "fabric", "it"]
ROWS = {"train": 800, "validation": 60, "selection": 120, "calibration": 400, "test": 120}


def toy_rows(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Reviews whose sentiment words give the label, one in twelve contradicting it."""
    random = np.random.default_rng(seed)
    texts, labels = [], []
    for number in range(count):
        label = int(random.random() < 0.6)
        said = label if random.random() > 1 / 12 else 1 - label
        words = [*random.choice(FILL, random.integers(3, 12)), random.choice(GOOD if said else BAD), str(number)]
        texts.append(" ".join(random.permutation(words)))
        labels.append(label)
    return texts, labels


MAX_CHARACTERS = 500


def toy_corpus(store: ArtifactStore, rows: dict[str, int] | None = None) -> Artifact:
    """An artifact like that of `prepare`, with two shards per split."""
    task, tokenizer, counts = Task.make("text_classification"), toy_tokenizer(), {}
    rows = ROWS | (rows or {})

    def build(draft: Draft) -> None:
        for number, split in enumerate(SPLITS):
            texts, labels = toy_rows(rows[split], seed=number)
            table = pa.table(
                {
                    "id": [hashlib.sha256(f"{split} {t}".encode()).hexdigest() for t in texts],
                    "text": texts,
                    "label": pa.array(labels, pa.int64()),
                    "input_ids": pa.array([list(e) for e in task.encode(texts, tokenizer)], pa.list_(pa.int32())),
                }
            )
            (draft.path / split).mkdir()
            half = table.num_rows // 2
            pq.write_table(table.slice(0, half), draft.path / split / "part-00000.parquet")
            pq.write_table(table.slice(half), draft.path / split / "part-00001.parquet")
            counts[split] = [labels.count(0), labels.count(1)]
        (draft.path / LABELS_FILE).write_text(json.dumps(list(LABELS)))
        draft.summary["class_counts"] = counts

    return store.make("prepare", {"toy": rows, "data": {"max_characters": MAX_CHARACTERS}}, {}, build)
