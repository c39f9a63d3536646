"""A small `blocks` artifact: fixed-length rows of token ids in Parquet row groups with page checksums."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lspm_ray.artifact import Artifact, ArtifactStore

SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "segments": pa.list_(pa.int32())})


def toy_blocks(
    store: ArtifactStore,
    rows: Mapping[str, Sequence[int]],
    *,
    length: int = 16,
    group_rows: int = 64,
    vocabulary: int = 1000,
    pad_id: int = 0,
    seed: int = 0,
    counting: bool = False,
    lowest: int = 8,
) -> Artifact:
    """Rows of random pieces of documents, every third one padded.

    Args:
        store: where it is written.
        rows: rows of each shard, by split.
        length: token ids per row.
        group_rows: rows per row group.
        vocabulary: token ids are below it, and not below `lowest` unless they are padding.
        pad_id: padding, at the end of rows only.
        seed: of the token ids.
        lowest: token id.
        counting: each token id is one more than that before it: there is something to learn.
    """
    names = {split: [f"{split}/part-{n:05d}.parquet" for n in range(len(counts))] for split, counts in rows.items()}
    config = {
        "length": length,
        "group_rows": group_rows,
        "names": names,
        "rows": {name: list(counts) for name, counts in rows.items()},
    }
    rng = np.random.default_rng(seed)
    with store.create("blocks", config | {"seed": seed, "counting": counting, "lowest": lowest}, {}) as draft:
        draft.summary |= {"length": length, "unigram_loss": math.log(vocabulary - lowest)}
        for split, counts in rows.items():
            (draft.path / split).mkdir()
            for number, count in enumerate(counts):
                table = _table(rng, count, length, vocabulary, pad_id, counting, lowest)
                _write(draft.path / split / f"part-{number:05d}.parquet", table, group_rows)
        (draft.path / "index.json").write_text(json.dumps(config), encoding="utf-8")
    return store.artifacts()[-1]


def _table(
    rng: np.random.Generator, count: int, length: int, vocabulary: int, pad_id: int, counting: bool, lowest: int
) -> pa.Table:
    ids, segments = rng.integers(lowest, vocabulary, size=(count, length)), []
    if counting:
        ids = lowest + (ids[:, :1] + np.arange(length)) % (vocabulary - lowest)
    for row in range(count):
        tokens = int(rng.integers(1, length + 1)) if row % 3 == 0 else length
        ids[row, tokens:] = pad_id
        cuts = np.unique(rng.integers(1, tokens + 1, size=2))
        segments.append(np.diff([0, *cuts[cuts < tokens], tokens]).tolist())
    return pa.table({"input_ids": ids.tolist(), "segments": segments}, schema=SCHEMA)


def _write(file: Path, table: pa.Table, group_rows: int) -> None:
    pq.write_table(table, file, row_group_size=group_rows, write_page_checksum=True, compression="zstd")
