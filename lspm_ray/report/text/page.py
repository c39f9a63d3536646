"""The page about text and pretraining: sections of words, tables and figures."""

from __future__ import annotations

from lspm_ray.page.frame import Section, figure, numbers_in, page, tiles, verdict
from lspm_ray.page.markup import Child, Html, element
from lspm_ray.report.figures.characters import character_lengths
from lspm_ray.report.figures.kept import kept
from lspm_ray.report.figures.pretraining import loss_curves, pace, rates
from lspm_ray.report.tables import lineage
from lspm_ray.report.text import tables, words
from lspm_ray.report.text.findings import Blocks, Documents, Pretraining, TextFindings
from lspm_ray.report.words import (
    PERCENT,
    count,
    counted,
    duration,
    hardware,
    large,
    moment,
    percents,
    settings,
    significant,
)


def render(findings: TextFindings) -> str:
    """The whole page; equal findings give equal bytes."""
    found, blocks, run = findings.documents, findings.blocks, findings.pretraining
    sections = [
        Section("documents", "Documents", _documents(found)),
        Section("lengths", "Lengths", _lengths(found)),
        Section("duplicates", "Duplicates", _duplicates(found)),
        Section("words", "Words", _words(found)),
    ]
    sections += [] if blocks is None else [Section("tokens", "Tokens", _tokens(blocks))]
    sections += [] if run is None else [Section("pretraining", "Pretraining", _pretraining(findings, run))]
    sections.append(Section("lineage", "Lineage", lineage(findings.lineage)))
    return page(words.title(findings), _header(findings), sections, numbers_in(findings.code_version))


def _header(findings: TextFindings) -> Child:
    run = findings.pretraining
    answer, good = words.verdict(run) if run is not None else ("", True)
    return [
        element("p", f"{moment(findings.date)} UTC. {words.sources(findings.documents)}", class_="note"),
        element("p", words.headline(findings), class_="lead"),
        verdict("Has the model learnt anything?", answer, good=good) if run is not None else None,
        _tiles(findings),
    ]


def _tiles(findings: TextFindings) -> Html:
    found, blocks, run = findings.documents, findings.blocks, findings.pretraining
    dropped = sum(found.dropped.values())
    shown: list[tuple[str, Child, Child]] = [
        ("documents kept", count(found.kept), f"{percents(dropped / max(1, found.documents_read))} dropped"),
        ("words", large(found.words.occurrences), f"{count(found.words.different)} different"),
    ]
    if blocks is not None:
        tokens = sum(split.tokens for split in blocks.splits.values())
        shown.append(("tokens", large(tokens), f"{significant(blocks.bytes_per_token)} bytes each"))
    if run is not None:
        shown += [
            ("parameters", large(run.parameters), run.objective.replace("_", " ")),
            ("perplexity", significant(run.perplexity), f"token frequencies: {significant(run.unigram_perplexity)}"),
            ("time to train", duration(run.last.seconds), f"{large(run.last.tokens)} tokens"),
        ]
    return tiles(shown)


def _documents(found: Documents) -> Child:
    unread = sum(found.quarantined.values())
    note = "What each reason takes off the documents that were read, the most frequent first, and what is left." + (
        f" Not drawn: {count(unread)} that could not be read." if unread else ""
    )
    return [
        figure(kept(found, anchor="kept"), note),
        tables.documents(found),
        element("p", f"Settings: {settings(found.settings)}.", class_="note"),
    ]


def _lengths(found: Documents) -> Child:
    note = "All splits together. Each bar is a quarter of a doubling wide."
    return [figure(character_lengths(found, anchor="characters"), note), tables.lengths(found)]


def _duplicates(found: Documents) -> Child:
    shown: list[Child] = []
    if found.exact:
        caption = "Documents that came most often, equal to the character once they are cleaned."
        shown.append(tables.clusters("exact", caption, "times", found.exact))
    if found.near:
        caption = f"The largest of {counted(found.near_clusters, 'group')} of near-equal documents."
        shown.append(tables.clusters("near", caption, "documents", found.near))
    if not shown:
        return element("p", "No document came twice.")
    note = "Of each group one document is kept, or none where another document is nearly equal to it."
    return [element("p", note), shown]


def _words(found: Documents) -> Child:
    both = (tables.frequent_words(found), tables.coverage(found))
    text = (
        f"{count(found.words.occurrences)} words are in the documents kept, {count(found.words.different)} different."
    )
    return [element("p", text), element("div", (element("div", each) for each in both if each), class_="pair")]


def _tokens(blocks: Blocks) -> Child:
    warning = words.unknown(blocks)
    return [
        verdict("Does the tokenizer fit?", warning, good=False) if warning else None,
        tables.tokenizer(blocks),
        tables.block_splits(blocks),
        tables.frequent_tokens(blocks),
        element("p", f"Settings: {settings(blocks.settings)}.", class_="note"),
    ]


def _pretraining(findings: TextFindings, run: Pretraining) -> Child:
    machine = (
        f"Started on {hardware(run.hardware)}. MFU is the arithmetic that the model itself needs, as a share of what "
        f"the hardware can do at most; 100{PERCENT} is out of reach."
    )
    return [
        figure(
            loss_curves(run, anchor="loss"),
            "On tokens that the model has to predict. Below the dashed line it knows more than how frequent each is.",
        ),
        tables.training(findings, run),
        element("h3", "Learning rate and gradient"),
        figure(rates(run, anchor="rates")),
        element("h3", "Pace"),
        figure(pace(run, anchor="pace"), machine),
        tables.curve(run),
        element("p", f"Settings: {settings(run.settings)}.", class_="note"),
    ]
