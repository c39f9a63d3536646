"""How many rows of a class it takes to prove that a variant forgets it (`select.constraints.max_recall_drop`).

    python benchmarks/forgetting.py --out forgetting.json

Exact, nothing is drawn: the numbers of lost and gained rows are trinomial, every outcome is judged as `select` does it.
Reported are the rows from which a true drop is called forgotten with a chance of 80 %; about, as that chance goes up in
the teeth of a saw.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scipy.stats import binom

from lspm_ray.evaluation.forgetting import SIGNIFICANCE, verdict

BOUND, GAINED, CHANCE = 0.05, 0.02, 0.8
DROPS, CLASSES = (0.1, 0.15, 0.2, 0.3, 0.5), (2, 10, 60)
_NEGLIGIBLE = 1e-7


def power(rows: int, drop: float, classes: int) -> float:
    """Chance that a class which truly loses `drop` of its recall is called forgotten.

    Args:
        rows: of the class.
        drop: share of its rows that are lost, less `GAINED`, which are gained.
        classes: that the significance is divided among.
    """
    total = 0.0
    for gained in range(rows + 1):
        chance = float(binom.pmf(gained, rows, GAINED))
        if chance > _NEGLIGIBLE:
            needed = fewest_lost(gained, rows, SIGNIFICANCE / classes)
            total += chance * float(binom.sf(needed - 1, rows - gained, (drop + GAINED) / (1 - GAINED)))
    return total


def fewest_lost(gained: int, rows: int, level: float) -> int:
    """Lost rows from which the class is called forgotten; more than there can be where none are enough."""
    low, high = 0, rows - gained + 1
    while low < high:
        middle = (low + high) // 2
        if verdict(middle, gained, rows, BOUND, level) == "forgotten":
            high = middle
        else:
            low = middle + 1
    return low


def rows_needed(drop: float, classes: int) -> int:
    """Rows of a class from which its true drop is found with a chance of `CHANCE`."""
    low, high = 1, 2
    while power(high, drop, classes) < CHANCE:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(middle, drop, classes) < CHANCE else (low, middle)
    return high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("forgetting.json"))
    options = parser.parse_args()
    found = [
        {"drop": drop, "classes": classes, "rows": rows_needed(drop, classes)} for drop in DROPS for classes in CLASSES
    ]
    result = {"bound": BOUND, "gained": GAINED, "significance": SIGNIFICANCE, "chance": CHANCE, "needed": found}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
