"""A tokenizer of some words, blocks of them, and toy models for it."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.models.presets import build_config, build_model
from lspm_ray.training.objective import Objective, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROLES = {
    "pad": "<pad>",
    "mask": "<mask>",
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "cls": "<cls>",
    "sep": "<sep>",
}
WORDS = [f"w{number}" for number in range(40)]
SENTINELS = 32
LENGTH = 48
TRAINED_BY = {"bert": "masked_lm", "gpt2": "causal_lm", "llama": "causal_lm", "t5": "span_corruption"}


def toy_tokenizer(without: str | None = None, sentinels: int = SENTINELS) -> "PreTrainedTokenizerBase":
    """Words at spaces; special tokens of all roles but one, first in the vocabulary; sentinels last."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    roles = {role: token for role, token in ROLES.items() if role != without}
    vocabulary = [*roles.values(), *WORDS]
    rust = Tokenizer(WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token=ROLES["unk"]))
    rust.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=rust,
        additional_special_tokens=[f"<extra_id_{number}>" for number in range(sentinels)],
        **{f"{role}_token": token for role, token in roles.items()},
    )


def toy_vocabulary() -> Vocabulary:
    return Vocabulary.of(toy_tokenizer())


def toy_blocks(
    count: int, length: int = LENGTH, seed: int = 0, full: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """Blocks of words with some special tokens, tokens of each, keys."""
    random, vocabulary = np.random.default_rng(seed), toy_vocabulary()
    ordinary = np.flatnonzero(~vocabulary.special)
    blocks = random.choice(ordinary, (count, length))
    blocks[random.random(blocks.shape) < 0.1] = vocabulary.id("eos")
    tokens = np.full(count, length) if full else random.integers(0, length + 1, count)
    blocks[np.arange(length) >= tokens[:, None]] = vocabulary.id("pad")
    return blocks, tokens, random.integers(0, 2**64, count, dtype=np.uint64)


def toy_pretrainable(architecture: str, length: int = LENGTH, **overrides: Any) -> "PreTrainedModel":
    """A toy model whose logits differ clearly from token to token."""
    import torch

    vocabulary = toy_vocabulary()
    config = build_config(
        architecture, "toy", vocab_size=vocabulary.size, length=length, ids=vocabulary.ids, overrides=overrides
    )
    model = build_model(Objective.find(TRAINED_BY[architecture]).auto_class, config, seed=0)
    widen = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2, generator=widen)
    return model.eval()


def as_tensors(batch: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(values) for name, values in batch.items()}
