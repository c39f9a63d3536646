"""Stage `gain`: what pretraining gave, by fine-tuning the same architecture from fresh weights on the same rows."""

from __future__ import annotations

from typing import Any

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.config import Config
from lspm_ray.corpus.shards import labels
from lspm_ray.evaluation.metrics import Comparison, Metrics, compare, evaluate
from lspm_ray.evaluation.outputs import outputs, read_outputs
from lspm_ray.models.directory import Variant, load_tokenizer, quiet, save_model
from lspm_ray.models.source import read_config
from lspm_ray.progress import Report
from lspm_ray.tasks import Task
from lspm_ray.training.finetune import FinetuneConfig, finetune

STAGE = "gain"
FRESH_STAGE = "fresh"
GAIN_FILE = "gain.json"


class Gain(Config):
    """Test quality of the full model and of its twin from fresh weights.

    Attributes:
        pretrained: fine-tuned from the pretrained weights.
        scratch: fine-tuned from fresh ones, with the same settings, rows and order, all layers trained.
        comparison: pretrained against scratch, on the same rows.
    """

    pretrained: Metrics
    scratch: Metrics
    comparison: Comparison

    @property
    def verdict(self) -> str:
        """In a sentence."""
        return self.comparison.sentence("the model from pretrained weights", "the same from fresh weights")


def gain(
    config: FinetuneConfig,
    task: Task,
    start: Artifact,
    full: Artifact,
    data: Artifact,
    store: ArtifactStore,
    report: Report,
    wait_for_nodes_s: float | None = None,
) -> Artifact:
    """Fine-tune from fresh weights as the full model was from `start`, and compare both on the test split.

    The test split is only reported here: nothing is chosen by it.

    Returns:
        An artifact with `gain.json`.

    Raises:
        ResourceError: the cluster cannot hold the workers.
    """
    parents = {"start": start.digest, "full": full.digest, "data": data.digest}
    what = {"train": config.model_dump(mode="json", exclude={"workers", "compare_scratch"}), "task": task.spec()}

    def build(draft: Draft) -> None:
        report("fine-tuning from fresh weights, to see what pretraining gave")
        # Fresh layers that are frozen would never learn anything.
        whole = config.model_copy(update={"frozen_layers": 0})
        scratch = finetune(whole, task, fresh(start, config.seed, store), data, store, report, wait_for_nodes_s)
        found = outputs({"pretrained": full, "scratch": scratch}, data, store, report, splits=("test",))
        made = _compare(found, labels(data))
        (draft.path / GAIN_FILE).write_text(made.model_dump_json(indent=1) + "\n", encoding="utf-8")
        draft.summary["verdict"] = made.verdict

    return store.make(STAGE, what, parents, build)


def read_gain(artifact: Artifact) -> Gain:
    """What `gain` found."""
    return Gain.parse(artifact.read_json(GAIN_FILE))


def fresh(start: Artifact, seed: int, store: ArtifactStore) -> Artifact:
    """A model directory like `start`, with weights that know nothing."""

    def build(draft: Draft) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        directory = start.local()
        read_config(directory)
        with torch.random.fork_rng(devices=[]), quiet():
            torch.default_generator.manual_seed(seed)
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            model: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        save_model(model, load_tokenizer(directory), draft.path, Variant())

    return store.make(FRESH_STAGE, {"seed": seed}, {"start": start.digest}, build)


def _compare(found: dict[str, Artifact], names: list[str]) -> Gain:
    correct, metrics = {}, {}
    for name, artifact in found.items():
        _, truth, logits = read_outputs(artifact, "test")
        correct[name] = logits.argmax(axis=1) == truth
        metrics[name] = evaluate(logits, truth, names)
    comparison = compare(correct["pretrained"], correct["scratch"])
    return Gain(pretrained=metrics["pretrained"], scratch=metrics["scratch"], comparison=comparison)
