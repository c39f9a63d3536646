"""Settings of the stage `tokenizer`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lspm_ray.config import Config
from lspm_ray.models.source import ModelConfig

SPECIAL_TOKENS = 5
"""pad, unk, cls, sep and mask; sentinels come on top."""

_BYTES = 256


class TokenizerConfig(Config):
    """Either a tokenizer that there is (`name`), or one to train (`algorithm`).

    Attributes:
        name: `org/model` on the Hugging Face Hub, a local directory, or `package:NAME/PATH`; weights are not needed.
        revision: commit, tag or branch, for the Hub. Pin a commit: a branch can change under you.
        algorithm: byte-level BPE as in GPT-2, WordPiece as in BERT, Unigram as in T5, or whole words (`word`).
        vocab_size: tokens, the special ones included.
        lowercase: forget case; WordPiece then forgets accents too.
        min_frequency: how often a pair must occur to be merged, or a word to be known; Unigram does without.
        sample_characters: text to train on, at most.
        sentinels: `<extra_id_0>` and so on, which stand for what span corruption cuts out; T5 has 100. None is as many
            as `pretrain.objective` needs for blocks of that length.
    """

    name: str | None = Field(None, min_length=1)
    revision: str | None = None
    algorithm: Literal["bpe", "wordpiece", "unigram", "word"] | None = None
    vocab_size: int = Field(8192, ge=1, le=1_000_000)
    lowercase: bool = False
    min_frequency: int = Field(2, ge=1)
    sample_characters: int = Field(100_000_000, ge=1)
    sentinels: int | None = Field(None, ge=0, le=10_000)

    @property
    def specials(self) -> int:
        """Special tokens that a trained tokenizer has."""
        return SPECIAL_TOKENS + (self.sentinels or 0)

    def with_sentinels(self, needed: int) -> Self:
        """With so many sentinels, unless their number is set.

        Raises:
            ValueError: fewer are set, or the vocabulary cannot hold them.
        """
        if self.name is not None:
            return self
        if self.sentinels is not None:
            if self.sentinels < needed:
                raise ValueError(f"the objective needs {needed} for blocks of this length; leave the setting out")
            return self
        least = self._least(SPECIAL_TOKENS + needed)
        if self.vocab_size < least:
            raise ValueError(f"the objective needs {needed} sentinels: set vocab_size to {least} at least")
        return self.model_copy(update={"sentinels": needed})

    def source(self) -> ModelConfig:
        """Where a tokenizer that is not trained comes from."""
        return ModelConfig(name=self.name or "", revision=self.revision)

    def _least(self, specials: int) -> int:
        return specials + (_BYTES if self.algorithm == "bpe" else 1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.name is None) == (self.algorithm is None):
            raise ValueError("give either `name` (a tokenizer that there is) or `algorithm` (to train one)")
        if self.revision is not None and self.name is None:
            raise ValueError("`revision` goes with `name`")
        unused = sorted(self.model_fields_set - {"name", "revision", "algorithm"})
        if self.name is not None and unused:
            raise ValueError(f"`name` takes a tokenizer as it is: {', '.join(unused)} would change nothing")
        return self

    @model_validator(mode="after")
    def _large_enough(self) -> Self:
        least = self._least(self.specials)
        if self.name is None and self.vocab_size < least:
            what = f"{_BYTES} bytes and {self.specials}" if self.algorithm == "bpe" else f"more than {self.specials}"
            raise ValueError(f"a vocabulary of {self.vocab_size} cannot hold {what} special tokens: at least {least}")
        return self
