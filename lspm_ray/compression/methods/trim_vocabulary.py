"""Token embeddings that the training corpus does not need go; the token ids stay as they are."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lspm_ray.artifact import Artifact
from lspm_ray.compression.method import Context, Method
from lspm_ray.corpus.execute import run_serially
from lspm_ray.corpus.shards import split_files
from lspm_ray.models.directory import Variant, load_model, load_tokenizer, read_variant, save_model
from lspm_ray.models.pruned import PrunedConfig, check_lookup, trim
from lspm_ray.models.shape import Shape
from lspm_ray.training.trainer import file_chunks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CHUNK_ROWS = 4096


class TrimVocabulary(Method):
    """Keep the embeddings of the tokens that are frequent in the training rows (Abdaoui et al. 2020, "Load What You
    Need", section 3), and those of the special tokens.

    Texts of kept tokens only get the same logits as before. The tokenizer is not changed, so that all variants of a
    model are given the same ids.

    Attributes:
        min_count: occurrences in the training rows from which a token keeps its embedding.
        absent: what other tokens are read as: the kept one with the `nearest` embedding by cosine, or the `unknown`
            token; where the tokenizer has none, the mean of what was removed.
    """

    min_count: int = Field(1, ge=1)
    absent: Literal["nearest", "unknown"] = "nearest"

    def check(self, shape: Shape) -> Shape:
        """Fits models that look token embeddings up in one table.

        Raises:
            ModelError: the model's family does not.
        """
        check_lookup(shape.family)
        return replace(shape, model_type=PrunedConfig.model_type, inside=shape.family)

    def apply(self, source: Path, target: Path, context: Context) -> None:
        """Write the model with fewer embeddings."""
        model, tokenizer = load_model(source), load_tokenizer(source)
        total = int(model.config.vocab_size)
        counts = token_counts(context.data, total)
        wanted = counts >= self.min_count
        wanted[_special(model, tokenizer)] = True
        kept = np.flatnonzero(wanted)
        read = counts[kept].sum() / max(1, counts.sum())
        context.report(f"{len(kept):,} of {total:,} token embeddings stay: {read:.2%} of the training rows' tokens")
        unknown = _unknown(model, tokenizer)
        stand_ins = None if unknown is None else [unknown] * (total - len(kept))
        if self.absent == "nearest":
            stand_ins = nearest(model, kept, np.flatnonzero(~wanted), context.threads)
        trimmed = trim(model, kept.tolist(), stand_ins)
        structure = (read_variant(source).structure or {}) | {"vocabulary": [trimmed.config.vocabulary, total]}
        save_model(trimmed, tokenizer, target, Variant(structure=structure))


def token_counts(data: Artifact, total: int) -> NDArray[np.int64]:
    """How often each of `total` token ids occurs in the training rows: [total]."""
    counts = np.zeros(total, dtype=np.int64)
    for chunk in file_chunks(split_files(data, "train", run_serially), ["input_ids"], _CHUNK_ROWS):
        ids = chunk["input_ids"].combine_chunks().flatten().to_numpy()
        counts += np.bincount(ids, minlength=total)
    return counts


def nearest(model: "PreTrainedModel", kept: NDArray[np.int64], removed: NDArray[np.int64], threads: int) -> list[int]:
    """For each removed token the kept one whose embedding has the highest cosine with its own."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    table = model.get_input_embeddings()
    found = []
    with torch.no_grad():
        candidates = F.normalize(table(torch.from_numpy(kept)))
        for part in torch.from_numpy(removed).split(_CHUNK_ROWS):
            found += kept[(F.normalize(table(part)) @ candidates.T).argmax(1).numpy()].tolist()
    return found


def _special(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    named = [getattr(model.config, f"{role}_token_id", None) for role in ("pad", "bos", "eos", "cls", "sep")]
    ids = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values(), *named}
    return sorted(token for token in ids if isinstance(token, int) and 0 <= token < model.config.vocab_size)


def _unknown(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The token that stands for unknown ones, unless it means something else too, as in GPT-2 the end."""
    others = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, model.config.pad_token_id}
    token = tokenizer.unk_token_id
    return None if token in others or token is None or token >= model.config.vocab_size else int(token)
