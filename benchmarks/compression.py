"""The compressed variants of a configuration against the same full model in plain torch, and against work by hand.

    python benchmarks/compression.py examples/newsgroups/family.yaml --out compression.json

The variants are those of the configuration's `compress`, made first where they are not there yet. Beside them, from
the same full model, what a user would do by hand:

    eager         transformers' model in float32, one padded batch at a time: what everything is compared with
    onnx-dynamic  exported by torch.onnx, `onnxruntime.quantization.quantize_dynamic`, one padded batch at a time
    torchao-int8  `torchao.quantization.quantize_` with int8 weights and activations, eager
    compiled      (--compile) eager under torch.compile
    torchao-compiled  (--compile) torchao-int8 under torch.compile
    nncf-int8     (where `nncf` is installed) `nncf.quantize` with 300 training rows, run by OpenVINO

Quality is that of all test rows, with a Wilson interval, and its difference from full, paired row by row. Speed: every
contender in a process of its own, one after the other in each round, with random rows of the selection split; medians
over the rounds. Nothing else should run on the machine. Memory is the peak of that process, libraries included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from lspm_ray.artifact import Artifact, ArtifactStore, hardware
from lspm_ray.cluster import connect
from lspm_ray.commands.run import settings_from
from lspm_ray.compression.recipe import FULL
from lspm_ray.evaluation.metrics import compare, proportion
from lspm_ray.evaluation.outputs import outputs, read_outputs
from lspm_ray.inference.batching import pad
from lspm_ray.inference.predictor import Predictor, pad_id_of
from lspm_ray.models.directory import load_model, read_labels
from lspm_ray.pipeline import Pipeline
from lspm_ray.profiling.measure import Candidate
from lspm_ray.profiling.profile import ProfileConfig, examples_of, measure
from lspm_ray.profiling.table import Speed
from lspm_ray.selection.select import inputs_of
from lspm_ray.tasks import Encoded

EAGER = "eager"
POINTS = 0.5
"""A variant at most so much less accurate than full counts as equal, in percentage points."""
TARGETS = {"transformer": 5.0, "bag": 100.0, "int8_size": 0.27}
"""Least throughput of the best transformer that counts as equal, and of a bag, in multiples of eager; largest int8
file, relative to that of full."""
_ROWS_AT_A_TIME = 32
_CALIBRATION_ROWS = 300


class ByHand(Predictor):
    """A padded batch in one go, as in the tutorials.

    Args:
        labels: of the model.
        pad_id: of its tokenizer.
        forward: padded ids and mask, both int64 [rows, tokens], to logits [rows, labels].
    """

    def __init__(self, labels: list[str], pad_id: int, forward: Any) -> None:
        super().__init__(labels)
        self._pad_id, self._forward = pad_id, forward

    def predict(self, batch: Sequence[Encoded]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._forward(*pad(list(batch), self._pad_id))
        return logits


def on_torch(directory: Path, threads: int, quantized: bool, compiled: bool) -> Predictor:
    """The full model on torch."""
    import torch

    torch.set_num_threads(threads)
    model: Any = load_model(directory).eval()
    if quantized:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    if compiled:
        model = torch.compile(model, dynamic=True)

    def forward(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            result: NDArray[np.float32] = model(
                input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
            ).logits.numpy()
        return result

    return ByHand(read_labels(directory), pad_id_of(directory), forward)


def on_onnx(directory: Path, file: Path, threads: int) -> Predictor:
    """The full model as `by_hand` exported it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def forward(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
        return result

    return ByHand(read_labels(directory), pad_id_of(directory), forward)


def by_hand(directory: Path, work: Path) -> tuple[Path, Path]:
    """An exported ONNX file and the quantised one, with the defaults of both tools."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    class Logits(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.model(input_ids=ids, attention_mask=mask).logits

    exported, quantized = work / "exported.onnx", work / "quantized.onnx"
    ids = torch.ones((2, 8), dtype=torch.int64)
    axes = {0: "batch", 1: "tokens"}
    torch.onnx.export(
        Logits(load_model(directory, attn_implementation="eager").eval()),
        (ids, ids),
        str(exported),
        dynamo=False,
        opset_version=17,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": {0: "batch"}},
    )
    quantize_dynamic(exported, quantized, weight_type=QuantType.QInt8)
    return exported, quantized


def on_openvino(directory: Path, file: Path, threads: int) -> Predictor:
    """The full model as `by_nncf` left it."""
    import openvino

    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1})

    def forward(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = compiled({"input_ids": ids, "attention_mask": mask})[0]
        return result

    return ByHand(read_labels(directory), pad_id_of(directory), forward)


def by_nncf(exported: Path, rows: Sequence[Encoded], target: Path) -> Path:
    """The exported model, quantised with scales from these rows; activations and weights int8."""
    import nncf
    import openvino

    def inputs(row: Encoded) -> dict[str, NDArray[np.int64]]:
        ids = np.asarray(row, dtype=np.int64)[None]
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    model = openvino.Core().read_model(exported)
    dataset = nncf.Dataset(list(rows), inputs)
    openvino.save_model(nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER), target)
    return target


def torchao_mb(directory: Path) -> float:
    """Size of what torchao would store: the state of the quantised model as a file."""
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model: Any = load_model(directory)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "state"
        torch.save(model.state_dict(), file)
        return file.stat().st_size / 1e6


def peers(full: Artifact, files: Mapping[str, Path], threads: int, compile_too: bool) -> dict[str, Candidate]:
    """What a user would do by hand with the full model.

    Args:
        full: the model.
        files: of `onnx-dynamic` and, where it was made, `nncf-int8`.
        threads: CPU threads of each.
        compile_too: with those under torch.compile.
    """
    directory = full.local()
    size = (directory / "model.safetensors").stat().st_size / 1e6
    small = torchao_mb(directory)
    found = {
        EAGER: Candidate(partial(on_torch, directory, threads, False, False), size),
        "onnx-dynamic": Candidate(
            partial(on_onnx, directory, files["onnx-dynamic"], threads), _mb(files["onnx-dynamic"])
        ),
        "torchao-int8": Candidate(partial(on_torch, directory, threads, True, False), small),
    }
    if "nncf-int8" in files:
        file = files["nncf-int8"]
        found["nncf-int8"] = Candidate(partial(on_openvino, directory, file, threads), _mb(file.with_suffix(".bin")))
    if compile_too:
        found["compiled"] = Candidate(partial(on_torch, directory, threads, False, True), size)
        found["torchao-compiled"] = Candidate(partial(on_torch, directory, threads, True, True), small)
    return found


def _mb(file: Path) -> float:
    return file.stat().st_size / 1e6


def answers(candidate: Candidate, inputs: Sequence[Encoded]) -> NDArray[np.int64]:
    """Predicted classes [rows], in batches sorted by length."""
    predictor = candidate.load()
    order = np.argsort([len(row) for row in inputs], kind="stable")
    found = np.empty(len(inputs), dtype=np.int64)
    for start in range(0, len(order), _ROWS_AT_A_TIME):
        rows = order[start : start + _ROWS_AT_A_TIME]
        found[rows] = predictor.predict([inputs[row] for row in rows]).argmax(axis=1)
    return found


def quality(predicted: Mapping[str, NDArray[np.int64]], labels: NDArray[np.int64]) -> dict[str, dict[str, Any]]:
    """Accuracy with its interval in per cent, and the difference from full in points."""
    full = predicted[FULL] == labels
    found = {}
    for name, classes in predicted.items():
        right = classes == labels
        against = compare(right, full)
        found[name] = {
            "accuracy": _percent(proportion(int(right.sum()), len(right))),
            "against_full": _percent(against.difference),
            "distinguishable": against.distinguishable,
            "agreement": 100 * float((classes == predicted[FULL]).mean()),
        }
    return found


def _percent(estimate: Any) -> dict[str, float]:
    return {key: 100 * value for key, value in estimate.model_dump().items()}


def figures(speeds: Mapping[str, Speed]) -> dict[str, dict[str, Any]]:
    """Speed, size and memory of each, absolute and relative to eager at the same batch size."""
    eager = speeds[EAGER]
    return {
        name: {
            "p50_ms": speed.p50_ms,
            "p99_ms": speed.p99_ms,
            "rows_per_s": speed.rows_per_s,
            "times_eager": {size: rate / eager.rows_per_s[size] for size, rate in speed.rows_per_s.items()},
            "load_s": speed.load_s,
            "peak_memory_mb": speed.peak_memory_mb,
            "size_mb": speed.size_mb,
            "size_of_full": speed.size_mb / eager.size_mb,
        }
        for name, speed in speeds.items()
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All numbers."""
    began = time.monotonic()
    settings = settings_from(options.config, options.set)
    work = Path(tempfile.mkdtemp())
    try:
        with ArtifactStore(settings.output).exclusive(), connect(settings.cluster, work / "log"):
            found = _run(options, Pipeline(settings, ArtifactStore(settings.output), say), work)
    finally:
        shutil.rmtree(work)
    return found | {"seconds": time.monotonic() - began}


def _run(options: argparse.Namespace, pipeline: Pipeline, work: Path) -> dict[str, Any]:
    models = {
        name: model
        for name, model in pipeline.models.items()
        if name == FULL or not options.variants or name in options.variants
    }
    data, full = pipeline.prepare, models[FULL]
    made = outputs(models, data, pipeline.store, say)
    predicted, labels = _predicted(made, ["test"])
    seen, known = _predicted(made, ["selection", "calibration"])
    exported, quantized = by_hand(full.local(), work)
    files = {"onnx-dynamic": quantized}
    if find_spec("nncf") is not None:
        files["nncf-int8"] = by_nncf(exported, inputs_of(data, "train")[:_CALIBRATION_ROWS], work / "nncf.xml")
    ours = pipeline.chosen.profile.as_served(1, 0).model_copy(
        update={"rounds": options.rounds, "cell_s": options.cell_s, "gpu": False}
    )
    examples, _ = examples_of(ours, pipeline.task, full, data)
    speed = {}
    hand: dict[str, Candidate] = {}
    for threads in options.threads:
        hand = peers(full, files, threads, options.compile)
        contenders = hand | {name: Candidate.of(model, threads, False) for name, model in models.items()}
        speed[threads] = figures(_measured(ours.model_copy(update={"threads": threads}), contenders, examples))
    predicted |= _answers(hand, inputs_of(data, "test"))
    return {
        "config": str(options.config),
        "rows": {"train": data.manifest.summary["rows"]["train"], "test": len(labels)},
        "tokens_per_row": float(np.mean([len(row) for row in examples])),
        "batch_sizes": ours.batch_sizes,
        "rounds": options.rounds,
        "quality": quality(predicted, labels),
        "speed": speed,
        "targets": targets(speed, quality(seen, known), {name: _kind(model) for name, model in models.items()}),
        "wanted": TARGETS,
        "recipes": {name: variant.recipe for name, variant in pipeline.chosen.compress.variants.items()},
        "hardware": hardware(),
    }


def _predicted(
    made: Mapping[str, Artifact], splits: Sequence[str]
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """Predicted classes of each model on these splits together, and the labels; each [rows]."""
    read = {name: [read_outputs(artifact, split) for split in splits] for name, artifact in made.items()}
    predicted = {name: np.concatenate([logits.argmax(axis=1) for *_, logits in parts]) for name, parts in read.items()}
    return predicted, np.concatenate([labels for _, labels, _ in next(iter(read.values()))])


def _measured(config: ProfileConfig, contenders: Mapping[str, Candidate], examples: list[Encoded]) -> dict[str, Speed]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    speeds, _ = measure(config, contenders, examples, say, here)
    return speeds


def _answers(contenders: Mapping[str, Candidate], inputs: Sequence[Encoded]) -> dict[str, NDArray[np.int64]]:
    import ray

    task = ray.remote(num_cpus=1, max_calls=1)(answers)
    shared = ray.put(list(inputs))
    return {name: ray.get(task.remote(candidate, shared)) for name, candidate in contenders.items()}


def _kind(model: Artifact) -> str:
    """The model type of its configuration."""
    return str(json.loads((model.local() / "config.json").read_text(encoding="utf-8"))["model_type"])


def targets(
    speed: Mapping[int, Mapping[str, Any]], found: Mapping[str, Any], kinds: Mapping[str, str]
) -> dict[int, dict[str, Any]]:
    """What is to be compared with `TARGETS`, per number of threads; None where there is no such variant.

    Args:
        speed: per number of threads, the `figures`.
        found: quality on other than test rows, by which the best of several would look better than it is.
        kinds: model type of each variant.
    """
    small = ("lspm_bag_of_ngrams", "lspm_lstm")
    near = [
        name
        for name, kind in kinds.items()
        if name != FULL and kind not in small and found[name]["against_full"]["value"] >= -POINTS
    ]
    bags = [name for name, kind in kinds.items() if kind == small[0]]
    return {
        threads: {
            "transformer": _fastest(near, rows),
            "bag": _fastest(bags, rows),
            "int8_size": rows["int8"]["size_of_full"] if "int8" in rows else None,
        }
        for threads, rows in speed.items()
    }


def _fastest(names: Sequence[str], rows: Mapping[str, Any]) -> dict[str, Any] | None:
    """The one that is fastest over all batch sizes (geometric mean), and its throughput at each."""
    best = max(names, key=lambda name: np.log(list(rows[name]["times_eager"].values())).mean(), default=None)
    return None if best is None else {"variant": best, "times_eager": rows[best]["times_eager"]}


def say(line: str) -> None:
    """Progress."""
    print(line, flush=True)  # stderr goes to the log of the workers


def table(found: Mapping[str, Any]) -> list[str]:
    """Markdown, for a person: one line per contender and number of threads."""
    sizes = found["batch_sizes"]
    lines = []
    for threads, rows in found["speed"].items():
        lines += [
            f"| {threads} thread{'s' if int(threads) > 1 else ''} | accuracy % | against full, points | "
            + " | ".join(f"times eager at {size}" for size in sizes)
            + " | p50 ms | MB | peak MB |",
            "|---" * (6 + len(sizes)) + "|",
        ]
        for name, row in rows.items():
            good = found["quality"][name]
            accuracy, against = good["accuracy"], good["against_full"]
            lines.append(
                f"| {name} | {accuracy['value']:.1f} ({accuracy['low']:.1f} to {accuracy['high']:.1f}) "
                f"| {against['value']:+.1f} ({against['low']:+.1f} to {against['high']:+.1f}) | "
                + " | ".join(f"{row['times_eager'][size]:.2f}" for size in sizes)
                + f" | {row['p50_ms']:.2f} | {row['size_mb']:.1f} | {row['peak_memory_mb']:.0f} |"
            )
        lines.append("")
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("set", nargs="*", help="settings that win over the file's, a.b=value")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--variants", nargs="+", help="only these")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cell-s", type=float, default=0.5, help="seconds per contender, round and batch size")
    parser.add_argument("--compile", action="store_true", help="torch.compile too (minutes per contender to load)")
    return parser.parse_intermixed_args()


def main() -> None:
    """Make, measure, write the file."""
    options = arguments()
    found = run(options)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for line in table(found):
        print(line)


if __name__ == "__main__":
    main()
