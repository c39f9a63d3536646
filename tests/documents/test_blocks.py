import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.corpus.execute import Execute, run_on_ray, run_serially
from lspm_ray.documents.blocks import Marks, make_blocks, unigram_loss
from lspm_ray.documents.blocks_config import BlocksConfig
from lspm_ray.errors import ArtifactError, ConfigError
from lspm_ray.models.directory import load_tokenizer
from lspm_ray.training.sampler import Blocks
from tests.documents.conftest import KilledError, Make, backwards, killed_after
from tests.toys import toy_tokenizer

MakeBlocks = Callable[..., Artifact]


@pytest.fixture
def documents(prose: Path, make_documents: Make) -> Artifact:
    return make_documents({"source": str(prose), "validation": 0.1})


@pytest.fixture
def tokenizer(store: ArtifactStore) -> Artifact:
    def build(draft: Draft) -> None:
        toy_tokenizer().save_pretrained(draft.path)

    return store.make("tokenizer", {}, {}, build)


@pytest.fixture
def make(documents: Artifact, tokenizer: Artifact, store: ArtifactStore) -> MakeBlocks:
    def run(execute: Execute = run_serially, into: ArtifactStore = store, **config: Any) -> Artifact:
        settings = BlocksConfig.parse({"length": 32, **config})
        return make_blocks(settings, documents, tokenizer, into, lambda line: None, execute=execute)

    return run


def rows(blocks: Artifact, split: str = "train") -> tuple[list[list[int]], list[list[int]]]:
    names = list(blocks.read_json("index.json")["names"][split])
    tables = [pq.read_table(blocks.path(name)) for name in names]
    return (
        [row for table in tables for row in table["input_ids"].to_pylist()],
        [row for table in tables for row in table["segments"].to_pylist()],
    )


def encoded(documents: Artifact, split: str = "train") -> list[list[int]]:
    tokenizer = toy_tokenizer()
    names = sorted(name for name in documents.manifest.files if name.startswith(f"{split}/"))
    texts = [text for name in names for text in pq.read_table(documents.path(name))["text"].to_pylist()]
    return [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id] for text in texts]


def multiset(pieces: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    return sorted(tuple(piece) for piece in pieces)


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_every_token_of_every_document_is_in_a_block(make: MakeBlocks, documents: Artifact, packing: str) -> None:
    made = make(packing=packing)
    for split in ("train", "validation"):
        ids, segments = rows(made, split)
        wanted = encoded(documents, split)
        assert all(len(row) == 32 and row[0] == toy_tokenizer().cls_token_id for row in ids)
        tokens = [token for row, parts in zip(ids, segments, strict=True) for token in row[1 : sum(parts)]]
        assert sorted(tokens) == sorted(token for document in wanted for token in document)
        found = made.manifest.summary["splits"][split]
        assert found["tokens"] == sum(map(len, wanted))
        assert found["documents"] == len(wanted)
        assert found["blocks"] == len(ids)


def test_short_documents_stay_whole_when_best_fitted(make: MakeBlocks, documents: Artifact) -> None:
    ids, segments = rows(make(packing="best_fit", length=256))
    pieces = []
    for row, parts in zip(ids, segments, strict=True):
        at = 0
        for number, size in enumerate(parts):
            pieces.append(row[at + (number == 0) : at + size])
            at += size
    assert multiset(pieces) == multiset(encoded(documents))


def test_the_blocks_are_what_training_reads(make: MakeBlocks) -> None:
    made = make()
    reader = Blocks(made, "train")
    got = reader.take(reader.order(0, 0), 0, sum(reader.rows_per_shard))
    ids, segments = rows(made)
    assert multiset(got.input_ids.tolist()) == multiset(ids)
    assert sum(got.tokens) == sum(map(sum, segments))


@pytest.mark.parametrize("steps", [1, 4, 9, 13])
def test_a_killed_run_goes_on_and_gives_the_same(make: MakeBlocks, tmp_path: Path, steps: int) -> None:
    into = ArtifactStore(str(tmp_path / "other"))
    with pytest.raises(KilledError):
        make(killed_after(steps), into)
    assert make(into=into).digest == make().digest


def test_order_and_repetition_of_the_work_do_not_matter(make: MakeBlocks, tmp_path: Path) -> None:
    assert make(backwards, ArtifactStore(str(tmp_path / "other"))).digest == make().digest


def test_a_remote_store_gives_what_a_local_one_gives(make: MakeBlocks, memory: str) -> None:
    made = make(into=ArtifactStore(f"{memory}/store"))
    assert made.uri.startswith(memory)
    assert made.digest == make().digest
    made.verify()


@pytest.mark.ray
def test_a_cluster_gives_what_one_process_gives(ray_cluster: None, make: MakeBlocks, tmp_path: Path) -> None:
    assert make(run_on_ray, ArtifactStore(str(tmp_path / "other"))).digest == make().digest


def test_without_a_start_the_blocks_begin_with_text(make: MakeBlocks) -> None:
    ids, _ = rows(make(start=False))
    assert all(toy_tokenizer().cls_token_id not in row for row in ids)


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_the_share_of_padding_is_what_is_left_over(make: MakeBlocks, packing: str, start: bool) -> None:
    made = make(packing=packing, start=start)
    _, segments = rows(made, "train")
    empty = sum(32 - sum(parts) for parts in segments)
    assert made.manifest.summary["padding_share"] == pytest.approx(empty / (32 * len(segments)), abs=1e-6)


def test_statistics_describe_the_blocks(make: MakeBlocks, documents: Artifact) -> None:
    found = make().manifest.summary
    wanted = encoded(documents)
    ordinary = [token for document in wanted for token in document[:-1]]
    assert found["bytes_per_token"] == pytest.approx(found["splits"]["train"]["bytes"] / len(ordinary), abs=1e-3)
    unknown = sum(token == toy_tokenizer().unk_token_id for token in ordinary)
    assert found["unknown_share"] == pytest.approx(unknown / sum(map(len, wanted)), abs=1e-6)
    assert 0 < found["unigram_loss"] < math.log(found["vocabulary"])
    table = pq.read_table(make().path("tokens.parquet"))
    assert (
        table["count"].to_pylist()
        == np.bincount([token for document in wanted for token in document], minlength=len(toy_tokenizer())).tolist()
    )


def test_ids_of_a_tokenizer_may_have_gaps(documents: Artifact, tmp_path: Path) -> None:
    made = []
    for step in (1, 2):
        folder = tmp_path / f"every-{step}"
        toy_tokenizer().save_pretrained(folder)
        raw = json.loads((folder / "tokenizer.json").read_text())
        raw["model"]["vocab"] = {token: step * number for token, number in raw["model"]["vocab"].items()}
        for entry in raw["added_tokens"]:
            entry["id"] *= step
        (folder / "tokenizer.json").write_text(json.dumps(raw))
        store = ArtifactStore(str(tmp_path / f"store-{step}"))

        def build(draft: Draft, folder: Path = folder) -> None:
            shutil.copytree(folder, draft.path, dirs_exist_ok=True)

        taken = store.make("tokenizer", {}, {}, build)
        settings = BlocksConfig.parse({"length": 32})
        made.append(make_blocks(settings, documents, taken, store, lambda line: None, execute=run_serially))
    dense, gaps = made
    assert gaps.manifest.summary == dense.manifest.summary
    assert rows(gaps)[0] == [[2 * token for token in row] for row in rows(dense)[0]]
    expected, found = (pq.read_table(blocks.path("tokens.parquet")) for blocks in (dense, gaps))
    assert found["id"].to_pylist() == list(range(2 * len(toy_tokenizer()) - 1))
    assert found["token"].to_pylist()[::2] == expected["token"].to_pylist()
    assert found["count"].to_pylist()[::2] == expected["count"].to_pylist()
    assert set(found["token"].to_pylist()[1::2]) == {None}
    assert set(found["count"].to_pylist()[1::2]) == {0}


def test_unigram_loss_is_the_entropy_when_the_counts_agree() -> None:
    counts = np.array([1000, 3000]) * 1000
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert unigram_loss(counts, counts) == pytest.approx(expected, abs=1e-5)


def test_a_damaged_shard_is_refused(make: MakeBlocks, documents: Artifact) -> None:
    file = Path(documents.path(next(name for name in documents.manifest.files if name.startswith("train/"))))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=file.name):
        make()


def test_a_tokenizer_that_cannot_end_a_document_is_refused(tokenizer: Artifact) -> None:
    loaded = load_tokenizer(tokenizer.local())
    loaded.sep_token = None
    with pytest.raises(ConfigError, match="ends a document"):
        Marks(loaded, None)
    loaded = load_tokenizer(tokenizer.local())
    loaded.cls_token = None
    with pytest.raises(ConfigError, match="start a block"):
        Marks(loaded, True)
    assert Marks(loaded, None).start is None


def test_names_of_special_tokens_in_a_text_are_text(
    make_documents: Make, tokenizer: Artifact, store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"it is [SEP] good {n} [MASK]" for n in range(20)))
    documents = make_documents({"source": str(tmp_path / "a.txt"), "validation": 0.3, "near_duplicates": False})
    made = make_blocks(BlocksConfig(length=32), documents, tokenizer, store, lambda line: None, execute=run_serially)
    ids = [token for split in ("train", "validation") for row in rows(made, split)[0] for token in row]
    assert ids.count(toy_tokenizer().sep_token_id) == 20
    assert toy_tokenizer().mask_token_id not in ids
