"""Learning curves of pretrained models: the numbers as JSON, and a picture of them.

    python benchmarks/curves.py runs/prose-masked runs/prose-causal --out docs/measured/prose

writes prose.json and prose.svg. Each run is the `output` of a configuration with a `pretrain` section.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.training.pretrain import HISTORY_FILE, STAGE

COLOURS = ("#1f6feb", "#bc4c00", "#1a7f37", "#8250df")


def main() -> None:
    """Read the runs; write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="output directories")
    parser.add_argument("--out", type=Path, required=True, help="path of both files, without a suffix")
    arguments = parser.parse_args()
    found = [curve(artifact) for run in arguments.runs for artifact in pretrained(run)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    paint(found, arguments.out.with_suffix(".svg"))


def pretrained(run: str) -> list[Artifact]:
    """The models that were pretrained there.

    Raises:
        SystemExit: there is none.
    """
    found = [artifact for artifact in ArtifactStore(run).artifacts() if artifact.manifest.stage == STAGE]
    if not found:
        raise SystemExit(f"{run}: nothing was pretrained there (`lspm pretrain CONFIG` does it)")
    return found


def curve(artifact: Artifact) -> dict[str, Any]:
    """What a model learnt, by tokens seen."""
    summary, history = artifact.manifest.summary, artifact.read_json(HISTORY_FILE)
    rates = sorted(timing["tokens_per_s"] for timing in summary["timings"])
    return {
        "objective": summary["objective"],
        "parameters": summary["parameters"],
        "perplexity": summary["perplexity"],
        "unigram_perplexity": summary["unigram_perplexity"],
        "seconds": summary["timings"][-1]["seconds"],
        "tokens_per_s_median": rates[len(rates) // 2],
        "hardware": artifact.manifest.hardware,
        "points": [
            {name: point[name] for name in ("step", "tokens", "train_loss", "validation_loss")} for point in history
        ],
    }


def paint(curves: list[dict[str, Any]], file: Path) -> None:
    """Held-out perplexity by tokens; dashed: what knowing only the frequency of each token gives."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    with pyplot.rc_context({"svg.hashsalt": "curves", "font.size": 10}):
        figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
        for found, colour in zip(curves, COLOURS, strict=False):
            tokens = [point["tokens"] / 1e6 for point in found["points"]]
            values = [math.exp(point["validation_loss"]) for point in found["points"]]
            label = f"{found['objective']}, {found['parameters'] / 1e6:.1f} M parameters: {found['perplexity']:.0f}"
            axes.plot(tokens, values, color=colour, marker="o", markersize=4, label=label)
            unigram = found["unigram_perplexity"]
            axes.axhline(
                unigram, color=colour, linestyle="--", linewidth=1, label=f"its unigram baseline: {unigram:.0f}"
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value < 1000 else ""))
        axes.set_xlabel("tokens seen, millions")
        axes.set_ylabel("held-out perplexity (log scale)")
        axes.grid(visible=True, which="both", alpha=0.25)
        axes.legend(frameon=False)
        figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
