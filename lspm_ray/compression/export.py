"""Export a model directory to ONNX, and check that it still computes the same.

Nodes are not merged ahead of time by ONNX Runtime's transformer optimiser. What sessions merge when they load is
enough, and faster: on MiniLM-L6 (ONNX Runtime 1.32, AVX-512 with VNNI, 115 tokens, one row at a time) 60 rows per
CPU-second against 54 in float32, 171 against 133 in int8; with all but attention merged it was 53 and 125.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.compression.graph import load, save
from lspm_ray.errors import ModelError
from lspm_ray.inference.runtimes.onnxruntime import ONNX_FILE
from lspm_ray.models.directory import Variant, load_model, load_tokenizer, write_variant
from lspm_ray.models.shape import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OPSET = 17
_TOLERANCE = 1e-3


def check_export(shape: Shape) -> Shape:
    """Refuse a model that has no ONNX form.

    Returns:
        The shape as it was given.

    Raises:
        ModelError: a bag of n-grams, whose embeddings are summed by an operator that ONNX lacks.
    """
    if shape.model_type == "lspm_bag_of_ngrams":
        raise ModelError("a bag of n-grams cannot be exported to ONNX", field="model_type", value=shape.model_type)
    return shape


def export(source: Path, target: Path, precision: str) -> Path:
    """Write `model.onnx` (fp32), configuration and tokenizer.

    Args:
        source: a model directory that torch loads.
        target: the directory to write.
        precision: what `variant.json` shall say.

    Returns:
        The ONNX file.

    Raises:
        ModelError: the exported graph does not reproduce the model's logits.
    """
    # Eager attention and the TorchScript exporter give the plainest graph (torch 2.13).
    model = load_model(source, attn_implementation="eager").eval()
    file = target / ONNX_FILE
    with tempfile.TemporaryDirectory() as temporary:
        # Of a model over 2 GB the exporter writes a file per weight.
        raw = Path(temporary) / ONNX_FILE
        _export(model, raw)
        save(load(raw), file)
    _check(model, file)
    model.config.save_pretrained(target)
    load_tokenizer(source).save_pretrained(target)
    write_variant(target, Variant(runtime="onnxruntime", precision=precision))
    return file


def _export(model: PreTrainedModel, file: Path) -> None:
    import torch

    ids = torch.from_numpy(_ended(np.ones((2, 8), dtype=np.int64), [8, 8], model))
    axes = {0: "batch", 1: "tokens"}
    with _quietly(), torch.no_grad():
        torch.onnx.export(
            _Logits.wrap(model),
            (ids, torch.ones_like(ids)),
            str(file),
            dynamo=False,
            opset_version=_OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": {0: "batch"}},
        )


def _ended(ids: NDArray[np.int64], lengths: list[int], model: PreTrainedModel) -> NDArray[np.int64]:
    """Rows of these lengths: the end token there and nowhere else, then padding, as decoders expect them."""
    end, pad = (getattr(model.config, name, None) for name in ("eos_token_id", "pad_token_id"))
    if not isinstance(end, int):
        return ids
    pad = end if pad is None else pad
    other = next(token for token in range(3) if token not in (end, pad))
    ids = np.where((ids == end) | (ids == pad), other, ids)
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1] = end
        row[length:] = pad
    return ids


def _check(model: PreTrainedModel, file: Path) -> None:
    import onnxruntime as ort
    import torch

    random = np.random.default_rng(0)
    ids = random.integers(1, int(getattr(model.config, "vocab_size", 0) or 1000), (3, 17))
    mask = np.ones_like(ids)
    mask[1, 9:] = 0
    ids = _ended(ids, [17, 9, 17], model)
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
    error = float(np.abs(found - expected).max())
    if not error <= _TOLERANCE:
        raise ModelError(
            f"the ONNX graph differs from the model by {error:.2g} in its logits",
            field="model_type",
            value=model.config.model_type,
        )


class _Logits:
    """A module with plain tensor inputs and output, as the exporter wants it."""

    @staticmethod
    def wrap(model: PreTrainedModel) -> Any:
        import torch

        class Logits(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = self.model(input_ids, attention_mask=attention_mask).logits
                return logits

        return Logits().eval()


class _quietly:  # noqa: N801
    """The exporter and the quantiser warn about what was chosen on purpose here."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)

    def __exit__(self, *error: Any) -> None:
        logging.disable(logging.NOTSET)
        self._warnings.__exit__(*error)
