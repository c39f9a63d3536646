"""What was found in text and pretraining, in sentences."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from lspm_ray.report.text.findings import Blocks, Documents, Point, Pretraining, TextFindings
from lspm_ray.report.words import count, counted, large, percents, significant

_MUCH_UNKNOWN = 0.01


def title(findings: TextFindings) -> str:
    """Of the page."""
    if findings.pretraining is not None:
        return "Report: from raw text to a pretrained model"
    return "Report: text to pretrain on"


def headline(findings: TextFindings) -> str:
    """What is left of the text, in one sentence."""
    found, blocks = findings.documents, findings.blocks
    kept = (
        f"{count(found.kept)} of {counted(found.documents_read, 'document')} are kept "
        f"({percents(found.kept / max(1, found.documents_read))})"
    )
    if blocks is None:
        characters = sum(split.total for split in found.characters.values())
        return f"{kept}: {large(characters)} characters."
    return f"{kept}: {large(sum(split.tokens for split in blocks.splits.values()))} tokens."


def verdict(findings: Pretraining) -> tuple[str, bool]:
    """Whether the model learnt more than how frequent tokens are, in a sentence or two, and whether that is so."""
    at = f"at a held-out token it is as unsure as between {significant(findings.perplexity)} equally likely ones"
    alone = f"knowing only how frequent each token is leaves {significant(findings.unigram_perplexity)}"
    if findings.perplexity >= findings.unigram_perplexity:
        return f"Not yet: {at}, and {alone}. More steps or a higher learning rate may help.", False
    return f"Yes: {at}, where {alone}. {_ending(findings)}".rstrip(), True


def _ending(findings: Pretraining) -> str:
    if len(findings.points) == 1:
        return ""
    if findings.kept is findings.last:
        return "It was best at the very end, so longer training may help further."
    rise = findings.last.validation_loss - findings.kept.validation_loss
    return (
        f"It was best after {large(findings.kept.tokens)} of {large(findings.last.tokens)} tokens; "
        f"the loss then rose by {significant(rise)} nats, and the weights from before are kept."
    )


def unknown(blocks: Blocks) -> str | None:
    """A warning where the tokenizer does not know much of the text."""
    if blocks.unknown_share <= _MUCH_UNKNOWN:
        return None
    return f"{percents(blocks.unknown_share)} of the tokens are unknown: the tokenizer was made for other text."


def sources(found: Documents) -> str:
    """What was read."""
    size = f"{significant(found.file_bytes / 1e6)} MB"
    return f"{counted(found.files, 'file')} ({size}) with {large(found.characters_read)} characters of documents."


def passes(findings: TextFindings) -> float | None:
    """How often training saw the training blocks; None without both."""
    if findings.blocks is None or findings.pretraining is None:
        return None
    places = findings.blocks.splits["train"].blocks * findings.blocks.length
    return findings.pretraining.last.tokens / max(1, places)


def median(points: list[Point], value: Callable[[Point], float]) -> float:
    """Of a value between validations; without the first of several, in which everything is set up."""
    return statistics.median(value(point) for point in (points[1:] or points))


def share_of_time(points: list[Point], value: Callable[[Point], float]) -> float:
    """A share that was measured between validations, over the whole run."""
    starts = [0.0, *(point.seconds for point in points)]
    spent = [max(0.0, point.seconds - start) for point, start in zip(points, starts, strict=False)]
    return sum(value(point) * seconds for point, seconds in zip(points, spent, strict=True)) / max(1e-9, sum(spent))
