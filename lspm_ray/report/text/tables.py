"""The tables of the page about text and pretraining."""

from __future__ import annotations

from collections.abc import Sequence

from lspm_ray.page.markup import Child, Html, element, name
from lspm_ray.report import words
from lspm_ray.report.grid import TALL_FROM, bar, cell, head, missing, row, share_of, table, text_cell
from lspm_ray.report.text.findings import RARE, Blocks, Cluster, Documents, Pretraining, TextFindings
from lspm_ray.report.text.words import median, passes, share_of_time

_MOST_POINTS = 40


def documents(found: Documents) -> Html:
    """What became of every document."""
    read = found.documents_read
    entries = [("read", "documents found in the sources", read)]
    entries += [("dropped", reason, number) for reason, number in found.losses]
    entries += [("kept", f"for {split}", size.documents) for split, size in found.splits.items()]
    rows = [
        row(what, [text_cell(name(reason)), cell(words.count(number)), cell(share_of(number, read))])
        for what, reason, number in entries
    ]
    rows += [
        row("could not be read", [text_cell(name(reason)), cell(words.count(number)), missing("is no document")])
        for reason, number in sorted(found.quarantined.items(), key=lambda entry: (-entry[1], entry[0]))
    ]
    heads = [head("documents"), head("reason", text=True), head("count"), head("share", "% of those read")]
    caption = "What became of every document, and what could not be read. What was put aside is in quarantine/."
    return table("documents", caption, heads, [element("tbody", rows)])


def lengths(found: Documents) -> Html:
    """Size of each split and of its documents."""
    heads = [
        head("split"),
        head("documents"),
        head("characters"),
        head("size", "MB"),
        head("mean"),
        head("median"),
        head(["95", words.PERCENT, " up to"]),
        head(["99", words.PERCENT, " up to"]),
        head("longest"),
    ]
    rows = []
    for split, size in found.splits.items():
        of = found.characters[split]
        cells = [words.count(size.documents), words.count(of.total), words.significant(size.bytes / 1e6)]
        cells += [words.significant(of.mean), *map(words.count, (of.p50, of.p95, of.p99, of.max))]
        rows.append(row(split, map(cell, cells)))
    small = f"up to 19{words.PERCENT} too small"
    caption = f"Length of a document in characters. Percentiles are where their bin begins, {small}."
    return table("lengths", caption, heads, [element("tbody", rows)])


def clusters(anchor: str, caption: str, what: str, found: Sequence[Cluster]) -> Html:
    """The largest groups of equal documents and how they begin; `what` is counted, as `copies`."""
    heads = [head(what), head("how it begins", text=True)]
    rows = [row(words.count(cluster.documents), [text_cell(_excerpt(cluster))]) for cluster in found]
    return table(anchor, caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def _excerpt(cluster: Cluster) -> Html:
    if not cluster.excerpt:
        return element("span", "not kept itself: a near-equal document stands for it", class_="note")
    return name(cluster.excerpt)


def frequent_words(found: Documents) -> Html:
    """The most frequent words."""
    heads = [head("word"), head("count"), head("share", "%")]
    frequent = found.words.most_frequent
    shares = _shares([number for _, number in frequent], found.words.occurrences)
    rows = [
        row(name(word), [cell(words.count(number)), share])
        for (word, number), share in zip(frequent, shares, strict=True)
    ]
    caption = f"The {len(rows)} most frequent words, case folded. words.parquet has more of them."
    return table("words", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def coverage(found: Documents) -> Html | None:
    """How much of the text a vocabulary of whole words would cover; None for very little text."""
    shares = found.words.coverage
    if not shares:
        return None
    heads = [head("most frequent words"), head("share of all occurrences", "%")]
    rows = [row(words.count(int(size)), [cell([words.percent(share), bar(share)])]) for size, share in shares.items()]
    caption = "How much of the text a vocabulary of whole words would cover."
    return table("coverage", caption, heads, [element("tbody", rows)])


def block_splits(blocks: Blocks) -> Html:
    """Tokens and blocks of each split."""
    heads = [head("split"), *map(head, ("documents", "characters", "tokens", "blocks"))]
    rows = [
        row(split, [cell(words.count(n)) for n in (size.documents, size.characters, size.tokens, size.blocks)])
        for split, size in blocks.splits.items()
    ]
    caption = f"The documents in blocks of {words.count(blocks.length)} tokens."
    return table("blocks", caption, heads, [element("tbody", rows)])


def tokenizer(blocks: Blocks) -> Html:
    """How the tokenizer fits the text."""
    train = blocks.splits["train"]
    characters = blocks.bytes_per_token * train.characters / max(1, train.bytes)
    entries: list[tuple[str, Child, Child]] = [
        ("vocabulary", words.count(blocks.vocabulary), "entries, special ones included"),
        ("bytes per token", words.significant(blocks.bytes_per_token), "more is shorter text for the model"),
        ("characters per token", words.significant(characters), "in the training text"),
        ("in use", words.percents(blocks.vocabulary_used), "of the ordinary entries occur in the training text"),
        (f"rarer than {RARE} times", words.count(blocks.rare), "entries about which next to nothing can be learnt"),
        ("unknown", words.percents(blocks.unknown_share, 3), "of the tokens"),
        ("padding", words.percents(blocks.padding_share, 2), "of the places in training blocks"),
        ("loss of token frequencies", words.significant(blocks.unigram_loss), "nats per token; what a model must beat"),
    ]
    return _facts("tokenizer", "How the tokenizer fits the text.", entries)


def frequent_tokens(blocks: Blocks) -> Html:
    """The most frequent tokens."""
    heads = [head("token"), head("id"), head("count"), head("share", "%")]
    shares = _shares([times for _, _, times in blocks.most_frequent], blocks.splits["train"].tokens)
    rows = [
        row(element("code", name(token)), [cell(str(number)), cell(words.count(times)), share])
        for (number, token, times), share in zip(blocks.most_frequent, shares, strict=True)
    ]
    caption = f"The {len(rows)} most frequent tokens of the training text. tokens.parquet has all."
    return table("tokens", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def training(findings: TextFindings, run: Pretraining) -> Html:
    """The run in few numbers."""
    last, kept, seen = run.last, run.kept, passes(findings)
    entries: list[tuple[str, Child, Child]] = [
        ("objective", run.objective.replace("_", " "), None),
        ("parameters", words.count(run.parameters), None),
        ("steps", words.count(last.step), None),
        ("tokens", words.count(last.tokens), f"{words.significant(seen)} passes over the blocks" if seen else None),
        ("time", words.duration(last.seconds), "of training, without validation"),
        ("throughput", words.significant(median(run.points, lambda p: p.tokens_per_s)), "tokens per second, median"),
        ("MFU", words.percents(median(run.points, lambda p: p.mfu)), "of the peak arithmetic of the hardware, median"),
        ("waiting for data", words.percents(share_of_time(run.points, lambda p: p.data_wait_share)), "of the time"),
        ("checkpoints", words.percents(share_of_time(run.points, lambda p: p.checkpoint_share)), "of the time"),
        ("best after", words.count(kept.tokens), f"tokens; step {words.count(kept.step)}"),
        ("training loss there", f"{kept.train_loss:.4f}", "nats per predicted token"),
        ("validation loss there", f"{kept.validation_loss:.4f}", "nats per predicted token"),
        ("perplexity", words.significant(run.perplexity), "on held-out text, of the weights that are kept"),
        ("of token frequencies", words.significant(run.unigram_perplexity), "perplexity, on the same text"),
    ]
    return _facts("run", "The run in numbers.", entries)


def curve(run: Pretraining) -> Html:
    """The curves as numbers."""
    heads = [
        head("step"),
        head("tokens"),
        head("training loss", "nats"),
        head("validation loss", "nats"),
        head("learning rate"),
        head("gradient norm"),
        head("throughput", "tokens/s"),
        head("MFU", "%"),
        head("time", "s"),
    ]
    rows = []
    for point in run.thinned(_MOST_POINTS):
        label = f"{words.count(point.step)} (kept)" if point is run.kept else words.count(point.step)
        norm = missing("not finite") if point.gradient_norm is None else cell(words.significant(point.gradient_norm))
        losses = [cell(f"{loss:.4f}") for loss in (point.train_loss, point.validation_loss)]
        pace = [words.significant(point.tokens_per_s), words.percent(point.mfu), words.significant(point.seconds)]
        cells = [cell(words.count(point.tokens)), *losses, cell(f"{point.learning_rate:.2e}"), norm, *map(cell, pace)]
        rows.append(row(label, cells, "served" if point is run.kept else None))
    some = "" if len(rows) == len(run.points) else f"{len(rows)} of {len(run.points)} validations; all in report.json. "
    caption = f"{some}The weights with the least validation loss are kept. Gradient norms are before clipping."
    return table("curve", caption, heads, [element("tbody", rows)], tall=len(rows) >= TALL_FROM)


def _facts(anchor: str, caption: str, entries: Sequence[tuple[str, Child, Child]]) -> Html:
    rows = [row(what, [cell(value), text_cell(note)]) for what, value, note in entries]
    return table(anchor, caption, [head("what"), head("value"), head("meaning", text=True)], [element("tbody", rows)])


def _shares(counts: Sequence[int], whole: int) -> list[Html]:
    """Shares of the whole; the bars are relative to the largest, which is small itself."""
    return [cell([words.percent(n / max(1, whole), 2), bar(n / max(1, *counts))]) for n in counts]
