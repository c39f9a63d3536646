"""How fast the live audit revokes a certificate that no longer holds, and how often it revokes one that does.

    python benchmarks/audit.py --out audit.json

Counted are sampled answers; at `serve.audit.share` = 2 % there are fifty times as many answers.

- False alarms: streams whose loss rate is the certified level itself, or half of it, from the beginning to the end.
- Detection: streams that are clean for some time and then have a higher loss rate.
- Text: two linear models on clothing reviews (examples/data/reviews) stand for the cheap and the full one; the cheap
  one is certified for disagreement as `select` does it, and held-out reviews stream by, first as they are, then
  changed: with typing errors, of other departments than it was trained on, or with more unfavourable ones.

The audit is compared with alarms over a rolling window, which look at the last rows only: "bound" is an exact binomial
test of the level at the same delta, "rate" asks for twice the level. Both are looked at after every row.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import binom

from lspm_ray.artifact import hardware
from lspm_ray.audit.eprocess import BLOCK_ROWS, live_starts, log_evidence, log_wealth
from lspm_ray.selection.risk import fixed_sequence, threshold_grid

LEVEL, DELTA, CLEAN_RATE, WINDOW = 0.01, 0.01, 0.003, 500
SHIFTED = (0.015, 0.02, 0.03, 0.05, 0.1, 0.2)
CLEAN_ROWS = (0, 2_000, 50_000)
TEXT_LEVEL, TEXT_CLEAN_ROWS = 0.03, 5_000
DEPARTMENTS = ("Tops", "Dresses", "Bottoms")
REVIEWS = Path(__file__).parents[1] / "examples/data/reviews/reviews.parquet"

Bools = NDArray[np.bool_]
Alarm = Callable[[Bools, float], int | None]


def audit(lost: Bools, level: float) -> int | None:
    """The row after which the wealth first reaches 1 / DELTA."""
    total = np.concatenate([[0], np.cumsum(lost)])
    for row in np.flatnonzero(lost) + 1:  # the wealth grows at losses alone
        block = (int(row) - 1) // BLOCK_ROWS
        begun = live_starts(block) * BLOCK_ROWS
        if log_wealth(total[row] - total[begun], row - begun, block, level) >= -math.log(DELTA):
            return int(row)
    return None


def from_the_beginning(lost: Bools, level: float) -> int | None:
    """One process only, begun at the first row: what starting anew is for."""
    rows = np.flatnonzero(lost) + 1
    found = np.flatnonzero(log_evidence(np.arange(1, len(rows) + 1), rows, level) >= -math.log(DELTA))
    return int(rows[found[0]]) if len(found) else None


def window_bound(lost: Bools, level: float) -> int | None:
    """The last WINDOW rows reject the level in an exact binomial test."""
    return _window(lost, int(binom.isf(DELTA, WINDOW, level)) + 1)


def window_rate(lost: Bools, level: float) -> int | None:
    """More than twice the level among the last WINDOW rows."""
    return _window(lost, math.floor(2 * level * WINDOW) + 1)


def _window(lost: Bools, losses: int) -> int | None:
    total = np.concatenate([[0], np.cumsum(lost)])
    found = np.flatnonzero(total[WINDOW:] - total[:-WINDOW] >= losses)
    return int(found[0]) + WINDOW if len(found) else None


ALARMS: dict[str, Alarm] = {
    "audit": audit,
    "from the beginning": from_the_beginning,
    "window, bound": window_bound,
    "window, rate": window_rate,
}


def false_alarms(streams: int, rows: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for rate in (LEVEL, LEVEL / 2):
        counts = dict.fromkeys(ALARMS, 0)
        for _ in range(streams):
            lost = rng.random(rows) < rate
            for name, alarm in ALARMS.items():
                counts[name] += alarm(lost, LEVEL) is not None
        yield {"rate": rate, "share_of_streams": {name: count / streams for name, count in counts.items()}}


def detection(streams: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for clean in CLEAN_ROWS:
        for rate in SHIFTED:
            after = 40_000 if rate < 0.03 else 10_000
            lost = [np.concatenate([rng.random(clean) < CLEAN_RATE, rng.random(after) < rate]) for _ in range(streams)]
            yield {"clean_rows": clean, "rate": rate} | delays(lost, clean, LEVEL)


def delays(streams: list[Bools], clean: int, level: float) -> dict[str, Any]:
    """By alarm: rows from the shift to the alarm (median, 90 %), and the streams with a false or without an alarm."""
    found: dict[str, Any] = {}
    for name, alarm in ALARMS.items():
        rows = [alarm(lost, level) for lost in streams]
        late = np.array([math.inf if row is None else row - clean for row in rows if row is None or row > clean])
        quantiles = np.quantile(late, (0.5, 0.9), method="higher") if len(late) else np.full(2, math.nan)
        found[name] = {
            "median": _number(quantiles[0]),
            "p90": _number(quantiles[1]),
            "missed": float(np.isinf(late).sum() / len(streams)),
            "before_the_shift": 1 - len(late) / len(streams),
        }
    return found


def _number(value: float) -> int | None:
    return int(value) if math.isfinite(value) else None


def misspelt(text: str, share: float, rng: np.random.Generator) -> str:
    """With two neighbouring letters swapped in this share of the words of four letters and more."""

    def swap(match: re.Match[str]) -> str:
        word = match[0]
        if rng.random() >= share:
            return word
        at = int(rng.integers(0, len(word) - 1))
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return re.sub(r"[a-zA-Z]{4,}", swap, text)


def text_shifts(streams: int, rng: np.random.Generator) -> dict[str, Any]:
    """Losses of a certified cascade of two linear models under changes of the texts."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    table = pq.read_table(REVIEWS).to_pylist()
    rows = [(f"{r['Title'] or ''} {r['Review Text']}", r["Recommended IND"], r["Department Name"]) for r in table]
    rows = [row for row in rows if len(row[0].split()) > 3]
    home = [row for row in rows if row[2] in DEPARTMENTS]
    home = [home[i] for i in rng.permutation(len(home))]
    train, selection, calibration, held_out = home[:7000], home[7000:9000], home[9000:14000], home[14000:]
    texts, labels = [row[0] for row in train], [row[1] for row in train]
    full = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(C=10, max_iter=500))
    cheap = make_pipeline(
        HashingVectorizer(n_features=4096, alternate_sign=False), LogisticRegression(C=3, max_iter=500)
    )
    full.fit(texts, labels)
    cheap.fit(texts, labels)

    def outputs(of: list[tuple[str, int, str]]) -> tuple[NDArray[np.float64], Bools]:
        probabilities = cheap.predict_proba([row[0] for row in of])
        differs = probabilities.argmax(1) != full.predict_proba([row[0] for row in of]).argmax(1)
        return probabilities.max(1), differs

    grid = threshold_grid(outputs(selection)[0])
    certified = fixed_sequence(*outputs(calibration), grid, TEXT_LEVEL, 0.05).point
    if certified is None:
        raise SystemExit(f"no threshold keeps disagreement below {TEXT_LEVEL:.0%}")

    def losses(of: list[tuple[str, int, str]]) -> Bools:
        scores, differs = outputs(of)
        return (scores >= certified.threshold) & differs

    unfavourable = [row for row in held_out if row[1] == 0]
    favourable = [row for row in held_out if row[1] == 1]
    changed = {
        "none": held_out,
        **{
            f"typing errors in {share:.0%} of the words": [(misspelt(r[0], share, rng), *r[1:]) for r in held_out]
            for share in (0.1, 0.3, 0.6)
        },
        "other departments": [row for row in rows if row[2] not in DEPARTMENTS],
        "60 % unfavourable instead of 18 %": favourable[: len(unfavourable) * 2 // 3] + unfavourable,
        "only unfavourable": unfavourable,
        "the title alone": [(" ".join(r[0].split()[:4]), *r[1:]) for r in held_out],
    }
    clean = losses(held_out)
    found = []
    for name, of in changed.items():
        pool = losses(of)
        made = [np.concatenate([rng.choice(clean, TEXT_CLEAN_ROWS), rng.choice(pool, 15_000)]) for _ in range(streams)]
        found.append(
            {"shift": name, "rows": len(of), "rate": float(pool.mean())} | delays(made, TEXT_CLEAN_ROWS, TEXT_LEVEL)
        )
    return {
        "level": TEXT_LEVEL,
        "clean_rows": TEXT_CLEAN_ROWS,
        "escalation_rate": certified.escalation_rate,
        "calibration_risk": certified.risk,
        "shifts": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=1000, help="for false alarms; a fifth of it for detection")
    parser.add_argument("--rows", type=int, default=100_000, help="of each stream without a shift")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    few = max(1, options.streams // 5)
    result = {
        "level": LEVEL,
        "delta": DELTA,
        "clean_rate": CLEAN_RATE,
        "window": WINDOW,
        "streams": options.streams,
        "rows": options.rows,
        "text": text_shifts(few, rng),
        "detection": list(detection(few, rng)),
        "false_alarms": list(false_alarms(options.streams, options.rows, rng)),
        "hardware": hardware(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
