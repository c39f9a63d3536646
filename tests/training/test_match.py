"""Inner states: what is matched is what the papers say, and a student that matches learns from its teacher."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from lspm_ray.artifact import ArtifactStore
from lspm_ray.compression.methods.distill_layers import keep_layers
from lspm_ray.errors import ModelError
from lspm_ray.evaluation.outputs import logits_array
from lspm_ray.models.directory import save_model
from lspm_ray.models.shape import Shape
from lspm_ray.training import loop
from lspm_ray.training.checkpoint import CheckpointStore
from lspm_ray.training.config import DistillConfig, TrainConfig
from lspm_ray.training.loop import TrainJob
from lspm_ray.training.match import Student, Teacher, Watch, check_match, layer_map, match_loss
from lspm_ray.training.trainer import fit_here
from tests.toys import LABELS, toy_model, toy_tokenizer
from tests.training.test_loop import KilledError, shards

IDS = torch.tensor([[2, 40, 41, 3, 0], [2, 30, 31, 32, 3]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
REAL = MASK.bool()


def eager(model):
    model.set_attn_implementation("eager")
    return model(IDS, attention_mask=MASK, output_hidden_states=True, output_attentions=True)


def states(model):
    watch = Watch(model)
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
    return watch.take()


def narrow(layers=2, width=16, heads=4):
    torch.manual_seed(5)
    config = toy_model().config.to_dict()
    fields = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 24}
    return BertForSequenceClassification(BertConfig(**{**config, **fields})).eval()


@pytest.mark.parametrize(("student", "expected"), [(1, [5]), (2, [2, 5]), (3, [1, 3, 5]), (4, [1, 2, 4, 5])])
def test_layers_are_mapped_evenly(student, expected):
    assert layer_map(student, 6) == expected


def test_watched_states_are_those_that_transformers_reports():
    model = toy_model()
    found, told = states(model), eager(model)
    for mine, theirs in zip(found.hidden, told.hidden_states, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    assert found.heads == [2, 2]
    scores = found.queries[1].unflatten(-1, (2, 16)).transpose(1, 2) @ found.keys[1].unflatten(-1, (2, 16)).permute(
        0, 2, 3, 1
    )
    attention = (scores / 4).masked_fill(~REAL[:, None, None], float("-inf")).softmax(-1)
    assert torch.allclose(attention[0, :, :4], told.attentions[1][0, :, :4], atol=1e-5)


def test_matching_oneself_costs_nothing_and_padding_does_not_count():
    mine, other = states(toy_model()), states(toy_model())
    for part in (other.hidden, other.queries, other.keys, other.values):
        for tensor in part:
            tensor[~REAL] += 7
    for term in ("hidden", "attention", "relations"):
        assert float(match_loss(DistillConfig(**{term: 1}), mine, other, MASK)) == pytest.approx(0, abs=1e-5)
        assert float(match_loss(DistillConfig(**{term: 1}), mine, states(toy_model(seed=1)), MASK)) > 0.01


def test_hidden_and_attention_are_mean_squared_errors():
    one, other = toy_model(), toy_model(seed=1)
    mine, theirs = states(one), states(other)
    hidden = [F.mse_loss(a[REAL], b[REAL]) for a, b in zip(mine.hidden, theirs.hidden, strict=True)]
    assert match_loss(DistillConfig(hidden=2), mine, theirs, MASK).item() == pytest.approx(2 * float(sum(hidden)) / 3)
    errors = []
    for layer in range(2):
        a, b = (
            [
                [s.queries[layer][row, :n, h : h + 16] @ s.keys[layer][row, :n, h : h + 16].T / 4 for h in (0, 16)]
                for row, n in ((0, 4), (1, 5))
            ]
            for s in (mine, theirs)
        )
        wrong = [(x - y).square().flatten() for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)]
        errors.append(torch.cat(wrong).mean())
    found = match_loss(DistillConfig(attention=1), mine, theirs, MASK)
    assert found.item() == pytest.approx(float(sum(errors)) / 2, rel=1e-5)


def test_query_key_relations_are_the_attention_distributions():
    one, other = toy_model(), toy_model(seed=1)
    mine, theirs = states(one), states(other)
    a, b = (eager(model).attentions[-1].detach() for model in (one, other))
    per_row = (torch.special.xlogy(b, b) - torch.special.xlogy(b, a)).sum(-1)
    expected = per_row.transpose(1, 2)[REAL].mean()
    found = match_loss(DistillConfig(relations=1, relation_pairs=["qk"]), mine, theirs, MASK)
    assert found.item() == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("heads", "valid"), [(None, True), (1, True), (8, True), (3, False)])
def test_relations_work_with_other_heads_and_widths(heads, valid):
    mine, theirs = states(narrow()), states(toy_model())
    config = DistillConfig(relations=1, relation_heads=heads)
    if valid:
        assert float(match_loss(config, mine, theirs, MASK)) > 0
    else:
        with pytest.raises(ModelError, match=r"relation_heads: a width of 16 .*got 3\); valid: 1, 2, 4, 8, 16"):
            match_loss(config, mine, theirs, MASK)


def test_a_shallower_student_learns_from_evenly_spaced_layers():
    model = toy_model()
    teacher = Teacher(model, DistillConfig(hidden=1), layers=1)
    found = teacher.states(IDS, MASK)
    told = eager(model).hidden_states
    assert torch.allclose(found.hidden[0], told[0], atol=1e-5) and torch.allclose(found.hidden[1], told[2], atol=1e-5)
    assert not any(tensor.requires_grad for tensor in found.hidden)
    mine = Student(keep_layers(toy_model(), 1), width=32)(IDS, MASK).states
    assert len(mine.hidden) == 2 and mine.hidden[1].requires_grad


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "camembert", "xlm-roberta"])
def test_all_families_that_are_accepted_work(family):
    from transformers import AutoConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model(family, vocab_size=50, pad_token_id=0, **sizes)
    found = states(AutoModelForSequenceClassification.from_config(config).eval())
    assert [tuple(h.shape) for h in found.hidden] == [(2, 5, 16)] * 3
    shape = Shape(family, 2, 64, heads=2)
    check_match(DistillConfig(hidden=1, attention=1, relations=1), shape, shape, "x")


BERT = Shape("bert", 2, 64, hidden=12, heads=3)
PRUNED = Shape("lspm_pruned", 2, 64, inside="bert", hidden=12, heads=3)


@pytest.mark.parametrize(
    ("config", "student", "message"),
    [
        ({"hidden": 1}, Shape("distilbert", 2, 64), r"f\.hidden: inner states of a distilbert model.*valid: 0.*bert"),
        ({"hidden": 1}, Shape("lspm_pruned", 2, 64, inside="gpt2"), r"f\.hidden: inner states of a gpt2 model"),
        ({"relations": 1}, Shape("lspm_lstm", 0, 64, inside="bert"), r"f\.relations: .*lspm_lstm"),
        ({"attention": 1}, PRUNED, r"f\.attention: .*pruned.*Use `relations`"),
        ({"attention": 1}, replace(BERT, heads=2), r"f\.attention: .*of 2 and 3 heads"),
        ({"relations": 1, "relation_heads": 5}, BERT, r"f\.relation_heads.*got 5\); valid: 1, 2, 3, 4, 6, 12"),
        ({"relations": 1, "relation_heads": 4}, replace(BERT, hidden=6), r"f\.relation_heads.*got 4\); valid: 1, 2, 3"),
    ],
)
def test_what_cannot_be_matched_is_refused(config, student, message):
    with pytest.raises(ModelError, match=message):
        check_match(DistillConfig(**config), student, BERT, "f")


def test_pruned_students_have_hidden_states_and_relations():
    check_match(DistillConfig(hidden=1, relations=1, relation_heads=5), PRUNED, replace(BERT, hidden=10), "f")


def test_other_heads_that_were_not_known_before_are_refused():
    mine, theirs = states(narrow()), states(toy_model())
    with pytest.raises(ModelError, match=r"layers of \[4, 4\] and \[2, 2\] heads cannot be matched"):
        match_loss(DistillConfig(attention=1), mine, theirs, MASK)


@pytest.fixture
def job(tmp_path):
    """A student that is narrower than its teacher, so that there are projections."""
    store = ArtifactStore(str(tmp_path / "store"))

    def put(stage, model):
        return store.make(stage, {}, {}, lambda draft: save_model(model, toy_tokenizer(), draft.path)).uri

    files = shards(tmp_path, "train", 96, 3, seed=0)
    for file in files:
        table = pq.read_table(file)
        logits = np.zeros((table.num_rows, 2), np.float32)
        pq.write_table(table.append_column("teacher_logits", logits_array(logits)), file)

    def make(work, student=None):
        settings = {"epochs": 2, "batch_size": 8, "learning_rate": 2e-3, "precision": "fp32", "patience": 9}
        return TrainJob(
            model_uri=put("student", student or narrow()),
            labels=list(LABELS),
            task={"task": "text_classification"},
            train_files=files,
            validation_files=shards(tmp_path, "validation", 40, 1, seed=1),
            train_rows=96,
            class_counts=[48, 48],
            config=TrainConfig.parse(settings | {"checkpoint_every_steps": 3}),
            distill=DistillConfig.parse({"weight": 0, "hidden": 1.0, "relations": 1.0}),
            teacher_uri=put("teacher", toy_model()),
            work_uri=str(tmp_path / work),
        )

    return make


def train(job):
    best, history = fit_here(job, threads=1, report=lambda _: None)
    return load_file(best.local() / "model.safetensors"), history


@pytest.mark.parametrize("term", ["hidden", "attention", "relations"])
def test_a_student_comes_closer_to_what_it_matches(job, term):
    student, teacher = narrow(width=32, heads=2), states(toy_model())
    only = DistillConfig.parse({"weight": 0, "hidden": 0, term: 5.0})
    begun = job("a", student)
    faster = begun.config.model_copy(update={"learning_rate": 2e-2, "epochs": 1, "warmup_fraction": 0.0})
    begun = begun.model_copy(update={"distill": only, "config": faster})
    best, _ = fit_here(begun, threads=1, report=lambda _: None)
    learnt = AutoModelForSequenceClassification.from_pretrained(best.local())
    before, after = (float(match_loss(only, states(model), teacher, MASK)) for model in (student, learnt))
    assert after < 0.8 * before


def test_projections_are_no_part_of_the_result(job):
    weights, _ = train(job("a"))
    assert weights.keys() == narrow().state_dict().keys()


@pytest.mark.parametrize("kill_at", [2, 8, 16])
def test_killed_and_resumed_equals_uninterrupted(job, monkeypatch, kill_at):
    expected, history = train(job("whole"))
    step, calls = loop._Run._step, []

    def dying(self, batch):
        calls.append(1)
        if len(calls) == kill_at:
            raise KilledError
        step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", dying)
        with pytest.raises(KilledError):
            train(job("broken"))
    resumed, again = train(job("broken"))
    assert [e["train_loss"] for e in again] == [e["train_loss"] for e in history]
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_projections_are_trained(job):
    begun = job("a")
    train(begun)
    saved = CheckpointStore(begun.work_uri).latest().tensors
    learnt = [tensor for name, tensor in saved.items() if name.startswith("projections.")]
    torch.manual_seed(begun.config.seed)
    fresh = [torch.nn.Linear(16, 32, bias=False).weight for _ in range(2)]
    assert [tuple(t.shape) for t in learnt] == [(32, 16)] * 2
    assert all(not torch.equal(a, b) for a, b in zip(learnt, fresh, strict=True))


def test_a_job_without_a_teacher_to_match_is_refused(job):
    with pytest.raises(ValueError, match="no teacher to match the hidden, relations of"):
        train(job("a").model_copy(update={"teacher_uri": None}))
