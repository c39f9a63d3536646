"""Mistakes that are known before work starts."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lspm_ray.artifact import ArtifactStore
from lspm_ray.commands.predict import Request, predict
from lspm_ray.commands.preflight import check
from lspm_ray.documents.tokenizer import take_over
from lspm_ray.errors import ConfigError, DataError, ModelError, UserError
from lspm_ray.models.base import base
from lspm_ray.pipeline import Pipeline
from lspm_ray.settings import Settings
from tests.toys import toy_model_artifact, toy_model_dir, toy_tokenizer


@pytest.fixture
def raw(tmp_path):
    """A configuration in which nothing is wrong."""
    texts = [f"dress number {number}" for number in range(20)]
    pq.write_table(pa.table({"text": texts, "label": [n % 2 for n in range(20)]}), tmp_path / "data.parquet")
    return {
        "output": str(tmp_path / "run"),
        "model": {"name": str(toy_model_dir(tmp_path / "model"))},
        "data": {"source": str(tmp_path / "data.parquet"), "text": "text", "label": "label"},
        "task": {"task": "text_classification", "max_length": 64},
        "compress": {"variants": {"small": {"recipe": [{"method": "distill_layers", "layers": 2}, "prune"]}}},
        "cluster": {"num_cpus": 2, "num_gpus": 0},
    }


def test_what_fits_is_said(raw):
    assert any(
        line.startswith("model: ")
        and line.endswith("bert, 0 MB of weights, tokenizer loads, fits the task and the recipes")
        for line in check(Settings.parse(raw), Settings.parse(raw).stages)
    )


@pytest.mark.parametrize("made", [False, True], ids=["fresh", "model already in the store"])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"task": {"task": "text_classification", "max_length": 65}}, ConfigError, r"task\.max_length: .* 64 tokens"),
        (
            {"compress": {"variants": {"deep": {"recipe": [{"method": "distill_layers", "layers": 3}]}}}},
            ModelError,
            r"compress\.variants\.deep\.recipe\.0: `distill_layers` does not fit the model: .*has 2 layers \(got 3\)",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(raw, made, changes, error, message):
    settings = Settings.parse(raw | changes)
    if made:
        base(settings.start, ArtifactStore(settings.output))
    with pytest.raises(error, match=message):
        check(settings, settings.stages[1:] if made else settings.stages)


def test_texts_without_labels_are_looked_at(raw, tmp_path):
    (tmp_path / "more.jsonl").write_text('{"body": "a nice dress"}\n')
    more = {"source": str(tmp_path / "more.jsonl"), "text": "body"}
    settings = Settings.parse(raw | {"compress": raw["compress"] | {"unlabelled": more}})
    assert "compress: 1 file(s) of texts without labels" in check(settings, settings.stages)
    for change, message in (
        ({"text": "words"}, r"compress\.unlabelled\.text.*'words'.*body"),
        ({"source": str(tmp_path / "none.jsonl")}, r"compress\.unlabelled\.source: no such file"),
    ):
        settings = Settings.parse(raw | {"compress": raw["compress"] | {"unlabelled": more | change}})
        with pytest.raises(DataError, match=message):
            check(settings, settings.stages)


@pytest.fixture
def raw_fresh(raw):
    """A configuration that starts from fresh weights, in which nothing is wrong."""
    tokenizer = {"algorithm": "word", "vocab_size": 10_000}
    return raw | {"model": {"architecture": "lstm", "tokenizer": tokenizer}, "compress": {}}


def test_what_will_be_made_afresh_is_said(raw_fresh, raw):
    settings = Settings.parse(raw_fresh)
    assert settings.stages[:3] == ("base", "prepare", "finetune")
    said = "model: a fresh lstm with a word tokenizer of 10,000 tokens, trained on the training split; fits"
    assert any(line.startswith(said) for line in check(settings, settings.stages))
    settings = Settings.parse(
        raw_fresh | {"model": {"architecture": "bert", "size": "toy", "tokenizer": {"name": raw["model"]["name"]}}}
    )
    assert any("a fresh bert of size toy with the tokenizer " in line for line in check(settings, settings.stages))


@pytest.mark.parametrize(
    ("model", "more", "error", "message"),
    [
        ({"architecture": "elmo"}, {}, ConfigError, r"model\.architecture: .*'elmo'.*valid: lstm, bert"),
        ({"config": {"units": 3}}, {}, ConfigError, r"model\.config\.units: .*valid: .*hidden_size"),
        ({"tokenizer": {"name": "./nowhere"}}, {}, ModelError, r"model\.tokenizer\.name: .*nowhere"),
        (
            {"architecture": "bert", "config": {"max_position_embeddings": 32}},
            {},
            ConfigError,
            r"task\.max_length: the model takes 32 tokens",
        ),
        (
            {},
            {"compress": {"variants": {"small": {"recipe": ["prune"]}}}},
            ModelError,
            r"recipe\.0: `prune`.*lspm_lstm",
        ),
        ({"tokenizer": {"algorithm": "word", "sentinels": -1}}, {}, ConfigError, r"model\.tokenizer\.sentinels"),
        ({}, {"finetune": {"frozen_layers": 1}}, ConfigError, r"finetune\.frozen_layers: .*fresh"),
        ({}, {"data": None, "documents": {"source": "x"}}, ConfigError, "fresh `model` .* needs `data`"),
    ],
)
def test_mistakes_in_a_fresh_model_are_known_before_it_is_made(raw_fresh, model, more, error, message):
    with pytest.raises(error, match=message):
        settings = Settings.parse(raw_fresh | {"model": raw_fresh["model"] | model} | more)
        check(settings, settings.stages)


@pytest.mark.parametrize("missing", [("base", "prepare", "finetune"), ("finetune",)], ids=len)
def test_more_frozen_layers_than_there_are_is_known_before(raw, missing):
    settings = Settings.parse(raw | {"finetune": {"frozen_layers": 2}})
    base(settings.start, ArtifactStore(settings.output))
    check(settings, missing)
    settings = Settings.parse(raw | {"finetune": {"frozen_layers": 3}})
    with pytest.raises(ModelError, match=r"finetune\.frozen_layers: .*2 layers \(got 3\); valid: 0 to 2"):
        check(settings, missing)


def test_a_model_pretrained_before_is_checked_too(raw, raw_text, monkeypatch):
    raw.pop("model")
    settings = Settings.parse(raw | raw_text | {"finetune": {"frozen_layers": 3}, "compress": {}})
    made = toy_model_artifact(ArtifactStore(settings.output), "pretrain")
    monkeypatch.setattr(Pipeline, "pretrain", made)  # a real one takes the whole first half of a run
    with pytest.raises(ModelError, match=r"finetune\.frozen_layers: .*2 layers \(got 3\)"):
        check(settings, ("finetune",))
    fine = Settings.parse(raw | raw_text | {"finetune": {"frozen_layers": 2}, "compress": {}})
    check(fine, ("finetune",))
    check(settings, ("documents", "tokenizer"))


def test_sample_before_a_run_says_what_to_run_first(raw, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(raw))
    request = Request(texts=[], file=None, out=None, sample=8, offline=False, url=None)
    with pytest.raises(
        UserError, match=r"stage `base` has not been run yet.*First: lspm run .*mine\.yaml data\.seed=1"
    ):
        predict(file, ["data.seed=1"], request)


@pytest.mark.parametrize("first", ["small", "full", None])
def test_first_names_a_model_that_there_will_be(raw, first):
    assert Settings.parse(raw | {"select": {"first": first}}).select.first == first


def test_first_that_names_none_is_refused(raw):
    with pytest.raises(
        ConfigError, match=r"1 problem.*\n.*select: first: no such variant \(got 'no'\); valid: full, small"
    ):
        Settings.parse(raw | {"select": {"first": "no"}})
    with pytest.raises(ConfigError, match=r"1 problem.*\n.*compress\.variants"):
        Settings.parse(raw | {"select": {"first": "no"}, "compress": {"variants": 1}})


@pytest.fixture
def raw_text(tmp_path):
    """A configuration that pretrains, in which nothing is wrong."""
    (tmp_path / "prose.txt").write_text("Some words of prose.\n\nAnd more of them.")
    return {
        "output": str(tmp_path / "run"),
        "documents": {"source": str(tmp_path / "prose.txt"), "rules": ["lowercase"]},
        "tokenizer": {"algorithm": "bpe", "vocab_size": 1000},
        "blocks": {"length": 64},
        "pretrain": {"objective": "masked_lm", "model": {"size": "toy"}, "epochs": 1},
        "cluster": {"num_cpus": 2, "num_gpus": 0},
    }


def test_what_will_be_pretrained_is_said(raw_text):
    settings = Settings.parse(raw_text)
    assert settings.stages == ("documents", "tokenizer", "blocks", "pretrain", "text_report")
    found = "\n".join(check(settings, settings.stages))
    assert "documents: 1 file(s) (text), 0.0 MB; rules: lowercase" in found
    assert "pretrain: masked_lm, a fresh bert of size toy" in found
    assert "pretrain: 1 training worker(s)" in found


@pytest.mark.parametrize(
    ("section", "changes", "error", "message"),
    [
        ("documents", {"source": "nowhere/*.txt"}, UserError, r"documents\.source: .*nowhere"),
        (
            "documents",
            {"decontaminate": {"quiz": {"source": "nowhere"}}},
            UserError,
            r"documents\.decontaminate.*nowhere",
        ),
        ("documents", {"rules": [{"rule": "language", "languages": ["xx"]}]}, ConfigError, "xx"),
        ("tokenizer", {"algorithm": None, "name": "./nowhere", "vocab_size": None}, UserError, "vocab_size"),
        ("pretrain", {"model": {"size": "huge"}}, ConfigError, r"pretrain\.model\.size.*huge.*toy"),
        ("pretrain", {"model": {"config": {"hiden_size": 3}}}, ConfigError, r"hiden_size.*hidden_size"),
        ("pretrain", {"model": {"name": "./nowhere"}}, ModelError, "nowhere"),
        ("pretrain", {"objective": "causal"}, ConfigError, r"unknown objective.*causal_lm"),
        ("pretrain", {"steps": 3}, ConfigError, "give one of epochs, steps and tokens, not epochs, steps"),
        ("pretrain", {"workers": {"num_workers": 9}}, UserError, r"pretrain\.workers\.num_workers"),
        (
            "pretrain",
            {"model": {"config": {"max_position_embeddings": 32}}},
            ConfigError,
            "64 tokens are longer than the 32",
        ),
        ("pretrain", {"model": {"config": {"vocab_size": 900}}}, ModelError, r"1000.*900"),
    ],
)
def test_mistakes_in_pretraining_are_known_before_it_starts(raw_text, section, changes, error, message):
    with pytest.raises(error, match=message):
        settings = Settings.parse(raw_text | {section: raw_text[section] | changes})
        check(settings, settings.stages)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"blocks": {"length": 65}}, ConfigError, "65 tokens are longer than the 64"),
        ({"tokenizer": {"algorithm": "bpe", "vocab_size": 1000}}, ModelError, "1000 token ids"),
        ({"pretrain": {"objective": "causal_lm", "epochs": 1}}, ModelError, "cannot train an encoder"),
    ],
)
def test_a_model_that_cannot_learn_from_the_blocks_is_known_before(raw_text, tmp_path, changes, error, message):
    model = {"name": str(toy_model_dir(tmp_path / "model"))}
    raw_text.pop("tokenizer")
    fine = raw_text | {"pretrain": {"objective": "masked_lm", "epochs": 1, "model": model}}
    settings = Settings.parse(fine)
    assert any("going on from" in line for line in check(settings, settings.stages))
    wrong = fine | changes
    wrong["pretrain"] |= {"model": model}
    with pytest.raises(error, match=message):
        check(Settings.parse(wrong), settings.stages)


@pytest.mark.parametrize("made", [False, True], ids=["fresh", "tokenizer already in the store"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"size": "toy", "config": {"vocab_size": 100}}}, r"vocab_size: .* {size} token ids, .* knows 100"),
        ({"objective": "span_corruption"}, r"eos_token: the tokenizer has no eos token"),
    ],
)
def test_a_fresh_model_must_fit_the_tokenizer_that_is_named(raw_text, tmp_path, made, changes, message):
    toy_tokenizer().save_pretrained(tmp_path / "tokenizer")
    raw_text["tokenizer"] = {"name": str(tmp_path / "tokenizer")}
    fine = Settings.parse(raw_text)
    done = {"documents", "tokenizer"} if made else set()
    if made:
        take_over(fine.tokenizer, ArtifactStore(fine.output))
    missing = [stage for stage in fine.stages if stage not in done]
    assert "pretrain: masked_lm, a fresh bert of size toy" in check(fine, missing)
    with pytest.raises(ModelError, match=message.replace("{size}", str(len(toy_tokenizer())))):
        check(Settings.parse(raw_text | {"pretrain": raw_text["pretrain"] | changes}), missing)


def test_a_named_tokenizer_that_does_not_load_is_known_before(raw_text, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    settings = Settings.parse(raw_text | {"tokenizer": {"name": str(tmp_path / "tokenizer")}})
    with pytest.raises(ModelError, match=r"tokenizer\.name: the tokenizer does not load"):
        check(settings, settings.stages)


@pytest.mark.parametrize("trained", [False, True], ids=["its tokenizer", "a trained tokenizer"])
def test_documents_that_cannot_be_kept_apart_are_known_before(raw_text, tmp_path, trained):
    from transformers import AutoConfig

    directory = toy_model_dir(tmp_path / "model")
    AutoConfig.for_model("deberta-v2", vocab_size=1000, max_position_embeddings=64).save_pretrained(directory)
    raw_text["pretrain"]["model"] = {"name": str(directory)}
    if not trained:
        raw_text.pop("tokenizer")
    settings = Settings.parse(raw_text)
    assert any("going on from" in line for line in check(settings, settings.stages))
    raw_text["pretrain"]["across_documents"] = False
    settings = Settings.parse(raw_text)
    with pytest.raises(ConfigError, match=r"pretrain\.across_documents: .*deberta-v2 \(got False\)"):
        check(settings, settings.stages)


def test_a_trained_tokenizer_gets_the_sentinels_of_the_objective(raw_text):
    spans = {"objective": "span_corruption", "model": {"size": "toy"}, "epochs": 1}
    assert Settings.parse(raw_text).tokenizer_of_objective.sentinels == 0
    settings = Settings.parse(raw_text | {"pretrain": spans})
    assert settings.tokenizer_of_objective.sentinels == 4
    more = raw_text["tokenizer"] | {"sentinels": 100}
    assert Settings.parse(raw_text | {"pretrain": spans, "tokenizer": more}).tokenizer_of_objective.sentinels == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentinels": 3}, r"tokenizer\.sentinels: the objective needs 4"),
        ({"vocab_size": 264}, r"tokenizer\.sentinels: .*4 sentinels: set vocab_size to 265"),
    ],
)
def test_too_few_sentinels_are_known_before(raw_text, changes, message):
    spans = {"objective": "span_corruption", "model": {"size": "toy"}, "epochs": 1}
    with pytest.raises(ConfigError, match=message):
        Settings.parse(raw_text | {"pretrain": spans, "tokenizer": raw_text["tokenizer"] | changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": None}, r"`documents`.*`data`"),
        ({"tokenizer": None}, "a fresh model needs a `tokenizer`"),
        ({"model": {"name": "a/b"}}, "leave one out"),
    ],
)
def test_sections_must_go_together(raw_text, changes, message):
    with pytest.raises(ConfigError, match=message):
        Settings.parse(raw_text | changes)


def test_the_pretrained_model_must_fit_the_labelled_task(raw, raw_text):
    both = raw | raw_text
    both.pop("model")
    settings = Settings.parse(both)
    pretrained = ("documents", "tokenizer", "blocks", "pretrain", "text_report")
    assert settings.stages[:7] == (*pretrained, "prepare", "finetune")
    check(settings, settings.stages)
    with pytest.raises(ConfigError, match=r"task\.max_length"):
        check(Settings.parse(both | {"task": {"task": "text_classification", "max_length": 65}}), settings.stages)


def test_mlflow_must_be_there_to_be_logged_to(raw_text, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    raw_text["pretrain"]["mlflow"] = "http://127.0.0.1:1"
    settings = Settings.parse(raw_text)
    with pytest.raises(ConfigError, match=r"lspm-ray\[mlflow\]"):
        check(settings, settings.stages)


def test_a_variant_for_gpus_needs_one_to_be_measured_on(raw):
    pytest.importorskip("torchao")
    raw["compress"] = {"variants": {"fp8": {"recipe": [{"method": "torchao", "scheme": "fp8_dynamic"}]}}}
    settings = Settings.parse(raw)
    with pytest.raises(ConfigError, match=r"compress\.variants\.fp8\.recipe\.0: .*runs on GPUs only"):
        check(settings, settings.stages)


def test_what_the_promise_needs_is_said_before_anything_runs(raw):
    raw["select"] = {"alpha": 0.02, "points": []}
    settings = Settings.parse(raw)
    found = next(line for line in check(settings, settings.stages) if line.startswith("select: "))
    assert found.startswith("select: alpha = 0.02: 149 calibration rows (a corpus of 1,490) without a loss;")
