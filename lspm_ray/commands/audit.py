"""`lspm audit`: how the certificate of a served plan stands against live traffic."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from lspm_ray.audit.hypotheses import hypotheses
from lspm_ray.audit.keeper import Evidence, Place, Status, status
from lspm_ray.audit.ledger import Sample
from lspm_ray.commands.run import settings_from
from lspm_ray.commands.serve import selected
from lspm_ray.errors import UserError
from lspm_ray.report.figures.wealth import save_wealth
from lspm_ray.selection.select import read_plan

PLOTS = (".svg", ".png")
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60


def audit(config: Path, overrides: Sequence[str], *, plot: Path | None, samples: int, as_json: bool) -> bool:
    """Print the state of the audit.

    Args:
        config: YAML file.
        overrides: settings that win over the file.
        plot: file for the evidence over time, `.svg` or `.png`.
        samples: disagreements to show, the latest ones.
        as_json: print everything there is as JSON instead.

    Returns:
        Whether the certificate stands.

    Raises:
        UserError: there is no plan, it has no certificate, nothing was audited yet, or the plot has another format.
    """
    if plot is not None and plot.suffix not in PLOTS:
        raise UserError("the format cannot be told from the file name", field="--plot", value=str(plot), valid=PLOTS)
    settings = settings_from(config, overrides)
    artifact = selected(settings, config, overrides)
    _, certificate = read_plan(artifact)
    if certificate is None:
        raise UserError("the full model serves alone: there is no certificate to audit", field="audit")
    place = Place.of(certificate, artifact)
    ledger = place.load()
    if ledger.rows == 0 and ledger.revoked is None:
        raise UserError(
            "no answer of this plan was audited yet",
            field="audit",
            value=place.uri,
            hint="`lspm serve` audits a share of its answers (serve.audit.share)",
        )
    found = status(ledger, hypotheses(certificate, settings.serve.audit.delta), place.load_reference())
    if plot is not None:
        save_wealth(found, plot)
    print(found.model_dump_json(indent=1) if as_json else "\n".join(describe(found, samples)))
    return found.verdict == "holds"


def describe(found: Status, samples: int) -> list[str]:
    """The state of an audit, line by line.

    Args:
        found: the state.
        samples: disagreements to show.
    """
    totals = found.totals
    lines = [f"certificate {found.certificate_id}: {found.verdict}"]
    if found.revoked is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found.revoked.time))
        lines.append(f"revoked {when}: {found.revoked.sentence()}")
    lines.append(
        f"sampled {found.rows:,} of {totals['answers']:,} answers ({_share(found.rows, totals['answers'])}); "
        f"{totals['shadowed']:,} of them were computed by the full model too, {totals['failed']:,} of these in vain; "
        f"{totals['dropped']:,} were dropped as the queue was full"
    )
    lines.append(f"accepted without the full model: {_share(totals['accepted'], totals['answers'])} of the answers")
    for evidence in found.evidence:
        lines += _evidence(evidence, found)
    if found.drift is not None:
        lines += [f"warning: {warning}" for warning in found.drift.warnings] or ["no drift of scores or inputs"]
    shown = found.samples[:samples]
    if shown:
        lines.append(f"disagreements, the latest {len(shown)} of {len(found.samples)} that are kept:")
        lines += [f"  {_sample(sample)}" for sample in shown]
    return lines


def _evidence(evidence: Evidence, found: Status) -> list[str]:
    values = [point.log_wealth.get(evidence.loss, 0.0) for point in found.points] + [evidence.log_wealth]
    return [
        f"{evidence.loss} at most {evidence.level:.2%}: {evidence.losses} losses "
        f"({_share(evidence.losses, found.rows)}), "
        f"evidence against it {_odds(evidence.log_wealth)}, revokes at {_odds(evidence.limit)}",
        f"  {sparkline(values, evidence.limit)}",
    ]


def sparkline(values: Sequence[float], top: float) -> str:
    """A line of bars: the lowest for no evidence and less, the highest for `top` and more; the largest of each part."""
    size = math.ceil(len(values) / _WIDTH)
    parts = [max(values[start : start + size]) for start in range(0, len(values), size)]
    return "".join(_BARS[int(min(max(part / top, 0.0), 1.0) * (len(_BARS) - 1))] for part in parts)


def _sample(sample: Sample) -> str:
    label = "" if sample.label is None else f", true label {sample.label}{' (regret)' if sample.regret else ''}"
    text = "" if sample.text is None else f": {sample.text[:80]!r}"
    where = f"request {sample.request_id} text {sample.index}, sha256 {sample.text_sha256[:12]}"
    return f"{sample.variant}: {sample.answer}, full: {sample.full}{label}; {where}{text}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "none"


def _odds(log_wealth: float) -> str:
    return f"{math.exp(min(log_wealth, 600)):.3g} to 1"
