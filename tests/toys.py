"""Toy models that are real: they are built, saved, loaded and run as any other, only very small.

`from tests.toys import toy_plan`. Nothing here downloads anything or touches the global random state.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lspm_ray.artifact import Artifact, ArtifactStore, hardware
from lspm_ray.selection.plan import (
    CERTIFICATE_FILE,
    PLAN_FILE,
    Certificate,
    MiddleStage,
    ModelRef,
    OperatingPoint,
    Plan,
    PlanStage,
)
from lspm_ray.selection.risk import p_value, upper_bound
from lspm_ray.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["bert", "bag", "lstm"]

LABELS = ("no", "yes")
MAX_LENGTH = 32
# fmt: off
WORDS = [
    "a", "and", "are", "bad", "but", "cheap", "color", "cut", "dress", "ever", "fabric", "fit", "fits", "good",
    "great", "i", "in", "is", "it", "itchy", "lovely", "love", "nice", "not", "of", "poor", "quality",
    "returned", "shirt", "size", "small", "so", "soft", "terrible", "the", "this", "too", "very", "was", "wear",
    "well", "while", "would",
]
# fmt: on
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@functools.cache
def toy_tokenizer() -> "PreTrainedTokenizerBase":
    """A lower-casing WordPiece tokenizer: some words whole, everything else in ASCII letters, digits, signs."""
    from transformers import BertTokenizer

    signs = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    vocabulary = [*SPECIAL, *signs, *[f"##{sign}" for sign in signs], *[w for w in WORDS if len(w) > 1]]
    tokenizer: PreTrainedTokenizerBase = BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)})
    return tokenizer


def toy_model(kind: Kind = "bert", labels: Sequence[str] = LABELS, seed: int = 0) -> "PreTrainedModel":
    """An untrained classifier in evaluation mode whose logits differ clearly from text to text.

    `bert`: 2 layers x 32 hidden. `bag`: a bag of token n-grams. `lstm`: 8 units.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from lspm_ray.models.bag_of_ngrams import BagOfNgramsConfig, BagOfNgramsForSequenceClassification
    from lspm_ray.models.lstm import LstmConfig, LstmForSequenceClassification

    names: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    vocab_size = len(toy_tokenizer())
    model: PreTrainedModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "bag":
            model = BagOfNgramsForSequenceClassification(
                BagOfNgramsConfig(vocab_size=vocab_size, buckets=256, embedding_size=8, **names)
            )
        elif kind == "lstm":
            model = LstmForSequenceClassification(
                LstmConfig(vocab_size=vocab_size, embedding_size=8, hidden_size=8, **names)
            )
        else:
            model = BertForSequenceClassification(
                BertConfig(
                    vocab_size=vocab_size,
                    hidden_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    intermediate_size=64,
                    max_position_embeddings=64,
                    **names,
                )
            )
        with torch.no_grad():
            for parameter in model.parameters():
                # Fresh weights give nearly equal logits for all texts; these are far enough apart to tell them.
                if parameter.dim() > 1:
                    parameter.normal_(std=1.0 if kind == "bag" else 0.35)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def toy_model_dir(path: Path, kind: Kind = "bert", labels: Sequence[str] = LABELS, seed: int = 0) -> Path:
    """Write a complete model directory and return it."""
    from lspm_ray.models.directory import save_model

    save_model(toy_model(kind, labels, seed), toy_tokenizer(), path)
    return path


def toy_model_artifact(
    store: ArtifactStore, name: str, kind: Kind = "bert", labels: Sequence[str] = LABELS, seed: int = 0
) -> Artifact:
    """A model artifact: the artifact's directory is the model directory."""
    config = {"kind": kind, "labels": list(labels), "seed": seed}

    def build(draft: Any) -> None:
        toy_model_dir(draft.path, kind, labels, seed)

    # Once for all plans in a store: made again, it may have other bytes, and plans name it by digest.
    return store.make(name, config, {}, build)


def toy_outputs(store: ArtifactStore) -> Artifact:
    """A stand-in for the artifacts that a certificate names as its evidence."""
    key = store.key("profile", {}, {})
    with store.create("profile", {}, {}) as draft:
        (draft.path / "note.txt").write_text("per-example outputs stand here\n", encoding="utf-8")
    made = store.find("profile", key)
    assert made is not None
    return made


def toy_plan(
    store: ArtifactStore,
    *,
    threshold: float | None = 0.75,
    temperature: float = 1.0,
    validator: str | dict[str, Any] = "max_probability",
    labels: Sequence[str] = LABELS,
    first_latency_ms: float = 0.2,
    first: Kind = "bag",
    seed: int = 0,
    middle: float | None = None,
) -> Artifact:
    """A select artifact (plan.json, certificate.json) with its model artifacts, all in `store`.

    Args:
        store: where everything is written.
        threshold: of the first variant; None serves it alone, certified.
        temperature: of the first variant.
        validator: a validator's name or YAML form.
        labels: label names.
        first_latency_ms: the plan's `batch_1_latency_ms` of the first stage (decides where it is loaded).
        first: architecture of the first variant; the full model is a `bert` with other weights.
        seed: of all weights.
        middle: threshold of another `bag` between the two; None for none.
    """
    from lspm_ray.validators import Validator

    small = _ref("variant-toy", toy_model_artifact(store, "variant-toy", first, labels, seed))
    full = _ref("full", toy_model_artifact(store, "finetune", "bert", labels, seed + 1))
    spec = Validator.make(validator).spec()
    between = []
    if middle is not None:
        model = _ref("middle-toy", toy_model_artifact(store, "middle-toy", "bag", labels, seed + 2))
        between = [
            PlanStage(model=model, temperature=1.5, threshold=middle, batch_1_latency_ms=2.0, cost=0.2),
        ]
    certificate = _certificate(store, small, between, full, spec, temperature, threshold)
    last = PlanStage(model=full, temperature=1.0, threshold=None, batch_1_latency_ms=5.0, cost=1.0)
    head = PlanStage(
        model=small, temperature=temperature, threshold=threshold, batch_1_latency_ms=first_latency_ms, cost=0.02
    )
    plan = Plan(
        labels=list(labels),
        task=Task.make({"task": "text_classification", "max_length": MAX_LENGTH}).spec(),
        validator=spec,
        stages=[head] if threshold is None else [head, *between, last],
        points=certificate.points,
        certificate_id=certificate.id,
        expected={"escalation_rate": 0.3, "cost": 0.32, "accuracy": 0.9, "full_accuracy": 0.9},
        reasons={},
    )
    return write_plan(store, plan, certificate)


def _certificate(
    store: ArtifactStore,
    small: ModelRef,
    between: Sequence[PlanStage],
    full: ModelRef,
    validator: dict[str, Any],
    temperature: float,
    threshold: float | None,
) -> Certificate:
    evidence = toy_outputs(store)
    limits = {
        "middle_thresholds": [stage.threshold for stage in between],
        "middle_escalation_rates": [0.1] * len(between),
    }
    return Certificate(
        delta=0.05,
        risk="regret",
        points=[toy_point(threshold).model_copy(update=limits)],
        first=small,
        middle=[MiddleStage(model=stage.model, temperature=stage.temperature) for stage in between],
        last=None if threshold is None else full,
        full=full,
        validator=validator,
        temperature=temperature,
        calibration_rows=1000,
        outputs={"variant-toy": _ref("variant-toy", evidence), "full": _ref("full", evidence)},
        data=_ref("prepare", evidence),
        hardware=hardware(),
    )


def toy_point(
    threshold: float | None, alpha: float = 0.01, *, default: bool = True, rows: int = 1000
) -> OperatingPoint:
    """A point with two losses in `rows` rows that escalates 30 % (nothing without a threshold)."""
    return OperatingPoint(
        alpha=alpha,
        level=0.05,
        threshold=threshold,
        losses=2,
        p_value=p_value(2, 1000, alpha),
        upper_bound=upper_bound(2, 1000, 0.05),
        escalation_rate=0.0 if threshold is None else 0.3,
        default=default,
    )


def write_plan(store: ArtifactStore, plan: Plan, certificate: Certificate | None) -> Artifact:
    """A select artifact of these documents, consistent or not."""
    documents = {PLAN_FILE: plan, CERTIFICATE_FILE: certificate}
    config = {name: document.model_dump(mode="json") for name, document in documents.items() if document}
    parents = {stage.model.name: stage.model.digest for stage in plan.stages}
    key = store.key("select", config, parents)
    with store.create("select", config, parents) as draft:
        for name, document in documents.items():
            if document:
                (draft.path / name).write_text(document.model_dump_json(indent=1) + "\n", encoding="utf-8")
    made = store.find("select", key)
    assert made is not None
    return made


def toy_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 3 to 20 words, all different in all likelihood."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(3, 21))) for _ in range(count)]


def _ref(name: str, artifact: Artifact) -> ModelRef:
    return ModelRef(name=name, uri=artifact.uri, digest=artifact.digest)
