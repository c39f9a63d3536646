"""What a user says about the blocks that a model is pretrained on."""

from typing import Literal

from pydantic import Field

from lspm_ray.config import Config


class BlocksConfig(Config):
    """Fixed-length blocks of tokens.

    Attributes:
        length: tokens of a block, at most the positions of the model.
        packing: `concatenate` cuts documents wherever a block is full, and pads nothing; `best_fit` cuts only documents
            that are longer than a block, and pads what is left over.
        start: every block starts with the tokenizer's class (or beginning-of-sequence) token; None where it has one.
        seed: of the order of the blocks.
    """

    length: int = Field(256, ge=8, le=1 << 17)
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    start: bool | None = None
    seed: int = Field(0, ge=0)
