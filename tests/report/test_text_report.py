"""The page about text and pretraining, from artifacts that the real stages made."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.commands.run import next_command
from lspm_ray.corpus.execute import run_serially
from lspm_ray.documents.blocks import make_blocks
from lspm_ray.documents.blocks_config import BlocksConfig
from lspm_ray.documents.collect import collect_documents
from lspm_ray.documents.config import DocumentsConfig
from lspm_ray.errors import ArtifactError
from lspm_ray.report.build import DATA_FILE, PAGE_FILE
from lspm_ray.report.figures.characters import joined_bins
from lspm_ray.report.figures.kept import waterfall
from lspm_ray.report.figures.pretraining import loss_curves, rates
from lspm_ray.report.text.build import build_pretraining_report, gather
from lspm_ray.report.text.findings import Pretraining, TextFindings
from lspm_ray.report.text.page import render
from lspm_ray.report.text.words import median, passes, share_of_time, verdict
from lspm_ray.training.pretrain import _export
from lspm_ray.training.pretrain_config import PretrainConfig
from lspm_ray.training.pretrain_loop import PretrainJob, PretrainWorker, pretrain_model
from tests.documents.conftest import FINE, sentences
from tests.report.pages import Node, check_figures, check_page, check_tables, parse
from tests.toys import toy_tokenizer

SCRIPT = '</script><script>alert(1)</script> & "quoted" \' text that came more than once'
HEBREW = "\u202eשלום עולם\u202c זה טקסט מימין לשמאל עם כמה מילים"
LONG_WORD = "x" * 10_000

Parts = tuple[Artifact, Artifact, Artifact]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def collect(store: ArtifactStore, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    def make(paragraphs: Sequence[str], **config: Any) -> Artifact:
        folder = tmp_path_factory.mktemp("text")
        (folder / "a.txt").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
        (folder / "b.txt").write_bytes(b"\xff\xfe\x00 is not text \xff")
        settings = DocumentsConfig.parse({"source": str(folder), "validation": 0.2, **config})
        return collect_documents(settings, store, lambda line: None, layout=FINE, execute=run_serially)

    return make


@pytest.fixture(scope="module")
def documents(collect: Callable[..., Artifact]) -> Artifact:
    hostile = [SCRIPT, SCRIPT, SCRIPT, HEBREW, f"one {LONG_WORD} " + f"{LONG_WORD} " * 59 + "word", "tiny"]
    long = " ".join(sentences(6, seed=3))
    near = [long, f"{long} more", f"{long} much"]
    rules = [{"rule": "length", "min_words": 2}]
    return collect([*sentences(150), *hostile, *near], rules=rules)


@pytest.fixture(scope="module")
def parts(documents: Artifact, store: ArtifactStore, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    def save(draft: Draft) -> None:
        toy_tokenizer().save_pretrained(draft.path)

    tokenizer = store.make("tokenizer", {}, {}, save)
    config = BlocksConfig.parse({"length": 32})
    blocks = make_blocks(config, documents, tokenizer, store, lambda line: None, execute=run_serially)
    work = tmp_path_factory.mktemp("work")
    settings = {
        "steps": 6, "batch_size": 8, "micro_batch_size": 4, "model": {"size": "toy"}, "validation_blocks": 8,
        "validate_every_steps": 2, "precision": "fp32",
    }  # fmt: skip
    job = PretrainJob(
        blocks_uri=blocks.uri, tokenizer_uri=tokenizer.uri, base_uri=None, config=PretrainConfig.parse(settings),
        work_uri=str(work / "work"), log_uri=str(work / "log"),
    )  # fmt: skip
    pretrain_model(job, PretrainWorker(0, 1, torch.device("cpu"), lambda tensor: None, lambda values: None))
    made = {"pretrain": settings}
    parents = {"blocks": blocks.digest}
    return documents, blocks, store.make("pretrain", made, parents, lambda d: _export(d, job, blocks, tokenizer, 9876))


@pytest.fixture(scope="module", params=["documents", "blocks", "pretrain"])
def report(request: pytest.FixtureRequest, parts: Parts, store: ArtifactStore) -> Artifact:
    """The report of a run that ends with each stage."""
    last = ["documents", "blocks", "pretrain"].index(request.param)
    kept = [part if place <= last else None for place, part in enumerate(parts)]
    return build_pretraining_report(parts[0], kept[1], kept[2], store)


@pytest.fixture(scope="module")
def found(parts: Parts) -> TextFindings:
    return gather(*parts)


@pytest.fixture(scope="module")
def run(found: TextFindings) -> Pretraining:
    assert found.pretraining is not None
    return found.pretraining


@pytest.fixture(scope="module")
def shown(found: TextFindings) -> Node:
    """The whole page of a run with all stages."""
    return page_of(found)


def page_of(findings: TextFindings) -> Node:
    return parse(render(findings))


def page(report: Artifact) -> Node:
    return parse(report.read_bytes(PAGE_FILE).decode())


def changed(run: Pretraining, losses: Sequence[float], unigram: float = 100.0) -> Pretraining:
    """The run with other validation losses."""
    points = [
        run.points[0].model_copy(update={"step": n + 1, "tokens": 1000 * (n + 1), "validation_loss": loss})
        for n, loss in enumerate(losses)
    ]
    best = min(range(len(losses)), key=lambda n: losses[n])
    update = {
        "points": points, "best": best, "perplexity": math.exp(losses[best]), "unigram_perplexity": unigram,
    }  # fmt: skip
    return run.model_copy(update=update)


def test_the_page_is_sound_whatever_the_text(report: Artifact) -> None:
    root = page(report)
    check_page(root)
    findings = TextFindings.parse(report.read_json(DATA_FILE))
    blocks, run = findings.blocks, findings.pretraining
    assert check_tables(root) == 7 + 3 * (blocks is not None) + 2 * (run is not None)
    assert check_figures(root) == 2 + 3 * (run is not None)
    sections = [section.attributes["id"] for section in root.all("section")]
    expected = ["documents", "lengths", "duplicates", "words", *["tokens"] * bool(blocks), *["pretraining"] * bool(run)]
    assert sections == [*expected, "lineage"]
    assert [link.attributes["href"] for link in next(root.all("nav")).all("a")] == [f"#{anchor}" for anchor in sections]


def test_the_page_follows_from_the_numbers_and_names_its_parents(report: Artifact, parts: Parts) -> None:
    findings = TextFindings.parse(report.read_json(DATA_FILE))
    assert render(findings).encode() == report.read_bytes(PAGE_FILE)
    expected = {part.manifest.stage: part.digest for part in parts}
    assert report.manifest.parents.items() <= expected.items()
    assert {source.digest for source in findings.lineage} == set(report.manifest.parents.values())
    assert findings.date == max(s.created_utc for s in findings.lineage if s.created_utc)


def test_hostile_text_is_shown_and_never_becomes_markup(report: Artifact) -> None:
    content = report.read_bytes(PAGE_FILE).decode()
    assert "<script" not in content.lower()
    assert "\u202e" not in content
    assert any(row[0].startswith("xxx") for row in page(report).by_id("t-words").rows())
    assert "x" * 300 not in content, "words of 10 kB are cut"
    assert page(report).by_id("t-exact").rows() == [["3", SCRIPT]]


def test_documents_add_up(found: TextFindings, shown: Node, parts: Parts) -> None:
    rows = {(row[0], row[1]): row[2] for row in shown.by_id("t-documents").rows()}
    assert rows["dropped", "exact duplicate"] == "2"
    assert rows["dropped", "near duplicate"] == "2"
    assert rows["dropped", "too short"] == "1"
    assert rows["read", "documents found in the sources"] == "159"
    assert sum(int(n) for (what, _), n in rows.items() if what in ("dropped", "kept")) == 159
    assert [n for (what, _), n in rows.items() if what == "could not be read"]
    kept = [name for name in parts[0].manifest.files if name.endswith(".parquet") and "/" in name]
    assert found.documents.kept == sum(pq.read_metadata(parts[0].path(name)).num_rows for name in kept)


def test_the_waterfall_ends_where_the_kept_documents_begin(found: TextFindings) -> None:
    bars = waterfall(found.documents)
    assert bars[0][1:3] == (0, found.documents.documents_read)
    dropped = bars[1 : 1 + len(found.documents.dropped)]
    ends = [begin + length for _, begin, length, _ in dropped]
    assert ends == [found.documents.documents_read, *(begin for _, begin, _, _ in dropped[:-1])]
    assert dropped[-1][1] == found.documents.kept == sum(length for label, _, length, _ in bars if "kept" in label)


def test_many_reasons_are_joined(found: TextFindings) -> None:
    many = found.documents.model_copy(update={"dropped": {f"reason {n}": 100 - n for n in range(30)}})
    bars = waterfall(many)
    assert len(bars) == 1 + 12 + 2
    assert bars[12][0] == "19 other reasons"
    assert sum(length for label, _, length, _ in bars if "reason" in label) == sum(many.dropped.values())


def test_the_bins_hold_every_document(found: TextFindings) -> None:
    assert sum(number for _, number in joined_bins(found.documents)) == found.documents.kept


def test_near_duplicates_and_words_are_listed(found: TextFindings, shown: Node) -> None:
    (group,) = shown.by_id("t-near").rows()
    assert group[0] == "3"
    words = shown.by_id("t-words").rows()
    assert len(words) == 20
    assert int(words[0][1].replace(",", "")) == found.documents.words.most_frequent[0][1]
    assert shown.by_id("t-coverage").rows()


def test_the_most_frequent_tokens_are_those_of_the_blocks(found: TextFindings, shown: Node, parts: Parts) -> None:
    assert found.blocks is not None
    table = pq.read_table(parts[1].path("tokens.parquet"))
    counts = sorted(table["count"].to_pylist(), reverse=True)
    assert [count for _, _, count in found.blocks.most_frequent] == counts[:20]
    assert found.blocks.rare == sum(count < 100 for count in counts)
    assert [int(row[2].replace(",", "")) for row in shown.by_id("t-tokens").rows()] == counts[:20]


def test_unknown_tokens_are_warned_of(found: TextFindings) -> None:
    assert found.blocks is not None
    for share, warned in ((0.2, True), (0.001, False)):
        blocks = found.blocks.model_copy(update={"unknown_share": share})
        text = page_of(found.model_copy(update={"blocks": blocks})).by_id("tokens").text()
        assert ("made for other text" in text) is warned


def test_the_run_is_the_history(found: TextFindings, shown: Node, run: Pretraining, parts: Parts) -> None:
    history = parts[2].read_json("history.json")
    assert [point.validation_loss for point in run.points] == [entry["validation_loss"] for entry in history]
    assert run.kept.validation_loss == min(entry["validation_loss"] for entry in history)
    assert [point.seconds for point in run.points] == [t["seconds"] for t in parts[2].manifest.summary["timings"]]
    rows = {row[0]: row[1] for row in shown.by_id("t-run").rows()}
    assert rows["parameters"] == "9,876"
    assert rows["tokens"] == f"{6 * 8 * 32:,}"
    blocks = parts[1].manifest.summary["splits"]["train"]["blocks"]
    assert passes(found) == pytest.approx(6 * 8 / blocks)
    curve = shown.by_id("t-curve").rows()
    assert [row[0].split()[0] for row in curve] == ["2", "4", "6"]
    assert sum("kept" in row[0] for row in curve) == 1


@pytest.mark.parametrize(
    ("losses", "unigram", "says", "good"),
    [
        ([5.0, 3.0, 2.0], 100.0, r"^Yes: .*between 7\.39 equally.*leaves 100\. It was best at the very end", True),
        ([5.0, 2.0, 2.5], 100.0, r"^Yes: .*best after 2,000 of 3,000 tokens; the loss then rose by 0\.500 nats", True),
        ([2.0], 100.0, r"^Yes: [^.]*\.39 [^.]*leaves 100\.$", True),
        ([6.0, 5.0], 100.0, r"^Not yet: .*between 148 equally", False),
    ],
)
def test_the_verdict_is_what_the_loss_says(
    run: Pretraining, losses: list[float], unigram: float, says: str, good: bool
) -> None:
    text, found = verdict(changed(run, losses, unigram))
    assert re.search(says, text), text
    assert found is good


def test_the_verdict_stands_at_the_top(found: TextFindings, shown: Node, run: Pretraining) -> None:
    top = next(shown.all("header"))
    assert verdict(run)[0] in top.text()
    without = next(page_of(found.model_copy(update={"pretraining": None})).all("header"))
    assert "learnt" not in without.text()
    assert "documents are kept" in without.text()


def test_a_curve_of_one_point_is_drawn(found: TextFindings, run: Pretraining) -> None:
    one = changed(run, [3.0])
    root = page_of(found.model_copy(update={"pretraining": one}))
    assert check_figures(root) == 5
    assert "Token frequencies alone: 4.605" in parse(loss_curves(one, anchor="c")).by_id("c-desc").text()


def test_long_curves_are_thinned_and_keep_the_best(run: Pretraining) -> None:
    losses = [10 - n / 1000 for n in range(3000)]
    losses[1234] = 1.0
    long = changed(run, losses)
    thinned = long.thinned(40)
    assert len(thinned) <= 42
    assert long.kept in thinned
    assert thinned[-1] == long.last
    assert len(loss_curves(long, anchor="c")) < 60_000


def test_a_gradient_that_is_not_finite_is_left_out(run: Pretraining) -> None:
    points = [point.model_copy(update={"gradient_norm": None}) for point in run.points]
    none = run.model_copy(update={"points": points})
    assert "gradient norm" not in parse(rates(none, anchor="r")).by_id("r-desc").text()


def test_shares_of_time_are_weighted_by_time(run: Pretraining) -> None:
    first = run.points[0].model_copy(update={"seconds": 1.0, "data_wait_share": 1.0, "mfu": 0.1})
    second = run.points[0].model_copy(update={"seconds": 5.0, "data_wait_share": 0.0, "mfu": 0.3})
    assert share_of_time([first, second], lambda point: point.data_wait_share) == pytest.approx(0.2)
    assert median([first, second], lambda point: point.mfu) == 0.3
    assert median([first], lambda point: point.mfu) == 0.1


def test_text_without_duplicates_and_with_few_words(collect: Callable[..., Artifact], store: ArtifactStore) -> None:
    few = collect([f"word {letter} {letter * 3}" for letter in "abcdefghijklmnop"], near_duplicates=False)
    root = page(build_pretraining_report(few, None, None, store))
    assert "No document came twice." in root.by_id("duplicates").text()
    assert check_tables(root) == 4


def test_a_damaged_input_is_refused(collect: Callable[..., Artifact], store: ArtifactStore) -> None:
    made = collect(sentences(60, seed=9))
    (Path(made.uri) / "stats.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match="does not match the manifest"):
        build_pretraining_report(made, None, None, store)


def test_the_numbers_are_plain_json(report: Artifact) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(report.read_bytes(DATA_FILE), parse_constant=refuse)["documents"]


@pytest.mark.parametrize(
    ("stages", "last", "expected"),
    [
        (("documents", "tokenizer", "blocks", "pretrain", "text_report"), "blocks", "pretrain"),
        (("documents", "tokenizer", "blocks", "pretrain", "text_report"), "pretrain", "run"),
        (("documents", "tokenizer", "blocks", "pretrain", "text_report"), "text_report", None),
        (("documents", "pretrain", "text_report", "prepare", "select", "report"), "pretrain", "prepare"),
        (("base", "prepare", "select", "report"), "select", "serve"),
        (("documents", "base", "blocks", "pretrain", "text_report"), "documents", "blocks"),
    ],
)
def test_the_next_command_is_one_that_there_is(stages: tuple[str, ...], last: str, expected: str | None) -> None:
    assert next_command(stages, last) == expected
