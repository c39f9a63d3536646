import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.errors import ConfigError, DataError, ModelError, ResourceError, TrainingError
from lspm_ray.training.checkpoint import CheckpointStore
from lspm_ray.training.pretrain import check_share
from lspm_ray.training.pretrain_config import PretrainConfig
from lspm_ray.training.pretrain_loop import PretrainJob, PretrainWorker, _Run, make_model, pretrain_model
from tests.small_disk import fill, small_disk
from tests.toy_blocks import toy_blocks
from tests.toys import toy_model_artifact
from tests.training.toy_runs import Job, KilledError, alone, weights, without_timings


@pytest.mark.parametrize(("objective", "killed_at"), [("masked_lm", 6), ("causal_lm", 2), ("causal_lm", 11)])
def test_a_killed_run_ends_with_the_same_weights(job: Job, killed_at: int, objective: str) -> None:
    whole = job("whole", objective=objective)
    expected = pretrain_model(whole, alone())

    def kill(values: dict[str, Any]) -> None:
        if values.get("step", 0) >= killed_at:
            raise KilledError

    broken = job("broken", objective=objective)
    with pytest.raises(KilledError):
        pretrain_model(broken, alone(kill))
    notes: list[str] = []
    history = pretrain_model(broken, alone(lambda values: notes.append(values.get("note", ""))))
    assert weights(broken) == weights(whole)
    assert without_timings(history) == without_timings(expected)
    if killed_at > 4:
        assert any("resumed at step" in note for note in notes)


def test_the_micro_batch_changes_nothing_but_rounding(job: Job) -> None:
    small = {"size": "toy", "config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}
    losses = [
        pretrain_model(job(f"m{size}", steps=4, micro_batch_size=size, model=small), alone())[-1]["validation_loss"]
        for size in (8, 3, 1)
    ]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-4)


def test_it_learns(job: Job) -> None:
    lines: list[dict[str, Any]] = []
    config = {"steps": 60, "learning_rate": 5e-3, "validate_every_steps": 10}
    history = pretrain_model(job(objective="causal_lm", **config), alone(lines.append))
    losses = [entry["validation_loss"] for entry in history]
    assert losses[-1] < losses[0] - 0.02
    assert [entry["step"] for entry in history] == [10, 20, 30, 40, 50, 60]
    assert history[-1]["tokens"] == 60 * 8 * 16
    said = next(line for line in lines if "loss" in line)
    assert {"loss", "tokens_per_s", "mfu", "learning_rate", "gradient_norm", "data_wait_share"} <= set(said)


def test_documents_apart_give_another_loss(job: Job) -> None:
    together, apart = (
        pretrain_model(job(f"a{across}", objective="causal_lm", across_documents=across), alone())[-1]
        for across in (True, False)
    )
    assert together["validation_loss"] != apart["validation_loss"]


def test_the_best_model_is_kept(job: Job) -> None:
    made = job(steps=30, learning_rate=0.05, validate_every_steps=5)
    history = pretrain_model(made, alone())
    best = min(history, key=lambda entry: entry["validation_loss"])
    directory = CheckpointStore(made.work_uri).best()
    assert directory.uri.endswith(f"{int(best['step']):09d}")
    assert json.loads((directory.local() / "config.json").read_text())["model_type"] == "bert"


def test_no_checkpoint_holds_what_is_no_number(job: Job) -> None:
    made = job(learning_rate=1e30, steps=40, warmup_fraction=0, log_every_steps=1000, checkpoint_every_steps=1)
    with pytest.raises(TrainingError, match=r"is (nan|inf) at step"):
        pretrain_model(made, alone())
    last = CheckpointStore(made.work_uri).latest()
    assert last is None or all(tensor.isfinite().all() for tensor in last.tensors.values())


def test_all_workers_go_on_from_the_checkpoint_that_the_first_one_found(job: Job) -> None:
    made = job(steps=8)
    pretrain_model(made, alone())
    sums = 0

    def add(tensor: torch.Tensor) -> None:
        nonlocal sums
        sums += 1
        if sums == 1:  # the first worker found the one of step 8 damaged
            tensor += 4

    second = PretrainWorker(1, 1, torch.device("cpu"), add, lambda values: None)
    run = _Run(made, second)
    assert run.state.step == 4


def test_more_workers_than_blocks_are_refused() -> None:
    check_share(3, 3)
    with pytest.raises(
        ConfigError, match=r"4 workers cannot share 3.*pretrain\.batch_size|pretrain\.batch_size.*4 workers"
    ):
        check_share(3, 4)


def test_an_infinite_loss_ends_the_run(job: Job) -> None:
    with pytest.raises(TrainingError, match=r"pretrain\.learning_rate.*1e\+30"):
        pretrain_model(job(learning_rate=1e30, steps=40, warmup_fraction=0), alone())


def test_a_batch_larger_than_the_data_is_refused(job: Job) -> None:
    with pytest.raises(DataError, match=r"240.*1000"):
        pretrain_model(job(batch_size=1000), alone())


def test_what_does_not_fit_is_refused(job: Job, blocks: Artifact) -> None:
    with pytest.raises(ModelError, match="vocabulary does not fit"):
        make_model(job(model={"size": "toy", "config": {"vocab_size": 20}}))
    with pytest.raises(ConfigError, match="longer than the 8 positions"):
        make_model(job(model={"size": "toy", "config": {"max_position_embeddings": 8}}))


def test_curves_go_to_tensorboard(job: Job) -> None:
    made = job()
    pretrain_model(made, alone())
    (file,) = Path(made.log_uri).iterdir()
    content = file.read_bytes()
    assert all(name in content for name in (b"loss", b"tokens_per_s", b"mfu", b"validation_loss", b"gradient_norm"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("log_every_steps", [1, 10])
@pytest.mark.parametrize("failing", ["step", "best"])
def test_a_full_disk_is_an_error_that_says_what_is_missing(
    job: Job, tmp_path: Path, log_every_steps: int, failing: str
) -> None:
    with small_disk(tmp_path / "small", kilobytes=2048) as disk:
        every = {"checkpoint_every_steps": 15, "validate_every_steps": 60 if failing == "step" else 25}
        made = job("small/run", steps=60, log_every_steps=log_every_steps, **every)

        def fill_up(values: dict[str, Any]) -> None:
            if values.get("step", 0) > 15 and "loss" in values and not (disk / "filler").exists():
                while not (disk / "run/step-000000015").exists():
                    time.sleep(0.01)
                fill(disk)

        place = rf"small/run/\.partial/{failing}-0+{30 if failing == 'step' else 25}"
        with pytest.raises(ResourceError, match=rf"{place}: no room to save: [1-9][\d,]+ bytes needed, "):
            pretrain_model(made, alone(fill_up))
        assert CheckpointStore(made.work_uri).at(15).state["step"] == 15


def test_every_family_learns_from_a_trained_tokenizer(store: ArtifactStore, tmp_path: Path) -> None:
    from lspm_ray.documents.tokenizer_config import TokenizerConfig
    from lspm_ray.documents.train_tokenizer import train
    from tests.documents.conftest import sentences

    made, _ = train(TokenizerConfig(algorithm="bpe", vocab_size=400, sentinels=20), iter(sentences(300)))

    def build(draft: Draft) -> None:
        made.save_pretrained(draft.path)

    tokenizer = store.make("tokenizer", {"sentinels": 20}, {}, build)
    rows = {"train": [64], "validation": [16]}
    # Ordinary tokens only: the special ones and the sentinels come first.
    blocks = toy_blocks(
        store, rows, length=32, vocabulary=len(made), counting=True, lowest=30, pad_id=made.pad_token_id
    )
    for objective, architecture in (
        ("masked_lm", "bert"),
        ("causal_lm", "gpt2"),
        ("causal_lm", "llama"),
        ("span_corruption", "t5"),
    ):
        config = {
            "objective": objective,
            "model": {"architecture": architecture, "size": "toy"},
            "steps": 40,
            "batch_size": 16,
            "micro_batch_size": 16,
            "learning_rate": 1e-2,
            "validate_every_steps": 20,
            "precision": "fp32",
        }
        job = PretrainJob(
            blocks_uri=blocks.uri,
            tokenizer_uri=tokenizer.uri,
            base_uri=None,
            config=PretrainConfig.parse(config),
            work_uri=str(tmp_path / architecture),
            log_uri=str(tmp_path / f"{architecture}-log"),
        )
        first, last = pretrain_model(job, alone())
        assert last["validation_loss"] < first["validation_loss"], architecture


def test_it_goes_on_from_a_pretrained_model(job: Job, store: ArtifactStore, tokenizer: Artifact) -> None:
    before = job("before", objective="causal_lm", steps=60, learning_rate=1e-2)
    losses = [entry["validation_loss"] for entry in pretrain_model(before, alone())]
    reached = min(losses)
    assert reached < losses[0] - 0.2

    def build(draft: Draft) -> None:
        for source in (CheckpointStore(before.work_uri).best().local(), tokenizer.local()):
            for file in source.iterdir():
                if file.name != "manifest.json":
                    shutil.copyfile(file, draft.path / file.name)

    base = store.make("base", {"of": before.work_uri}, {}, build)
    after = job("after", objective="causal_lm", steps=2, learning_rate=1e-6).model_copy(update={"base_uri": base.uri})
    assert pretrain_model(after, alone())[0]["validation_loss"] == pytest.approx(reached, abs=0.02)
    for objective in ("masked_lm", "span_corruption"):
        other = job("other", objective=objective).model_copy(update={"base_uri": base.uri})
        with pytest.raises(ModelError, match=f"{objective} cannot train a decoder.*causal_lm"):
            make_model(other)


def test_an_encoder_learns_no_causal_objective(job: Job, store: ArtifactStore) -> None:
    encoder = toy_model_artifact(store, "encoder")
    refused = job(objective="causal_lm").model_copy(update={"base_uri": encoder.uri})
    with pytest.raises(ModelError, match=r"causal_lm cannot train an encoder.*masked_lm"):
        make_model(refused)
    with pytest.raises(ModelError, match="does not load for span_corruption"):
        make_model(job(objective="span_corruption").model_copy(update={"base_uri": encoder.uri}))


def test_weights_that_a_pretrained_model_lacks_are_the_same_on_every_worker(job: Job, store: ArtifactStore) -> None:
    classifier = toy_model_artifact(store, "classifier")  # has no head for masked tokens
    made = job(objective="masked_lm").model_copy(update={"base_uri": classifier.uri})
    said: list[str] = []
    first, _ = make_model(made, said.append)
    torch.rand(1)
    second, _ = make_model(made)
    assert all(torch.equal(left, second.state_dict()[name]) for name, left in first.state_dict().items())
    assert len(said) == 1 and "cls.predictions" in said[0] and "start at random" in said[0]
