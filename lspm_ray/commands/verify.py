"""`lspm verify`: is what a plan and its certificate say true?"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lspm_ray.artifact import Artifact, open_artifact
from lspm_ray.commands.console import StageView, table
from lspm_ray.commands.run import settings_from
from lspm_ray.errors import ConfigError
from lspm_ray.pipeline import NotMadeError, Pipeline, ReadOnlyStore
from lspm_ray.selection.check import Check
from lspm_ray.selection.resample import Resampled
from lspm_ray.selection.verify import Verdict, resample_task, verify

_WIDTH = 48
_DIGEST = re.compile("[0-9a-f]{64}")
_PROMISES = ("point ", "calibration rows")


def verify_command(what: str, overrides: Sequence[str], *, runs: int, every: bool, as_json: bool) -> int:
    """Verify the plan of a configuration, or the one at a path or URI, and print what was found.

    Args:
        what: configuration file, or directory or URI of a select artifact.
        overrides: of the configuration.
        runs: rounds of resampling; 0 for none.
        every: show all checks, not only those of the promises and those that fail.
        as_json: print JSON instead of words.

    Returns:
        0 if everything holds, else 1.

    Raises:
        UserError: something cannot be read.
    """
    artifact = _find(what, overrides)
    verdict = verify(artifact)
    found = resample_task(artifact, runs, StageView(quiet=as_json)) if runs and verdict.ok else None
    ok = verdict.ok and (found is None or found.ok)
    if as_json:
        print(json.dumps(_document(verdict, found, ok), indent=1))
    else:
        _show(verdict, found, every=every)
    return 0 if ok else 1


def _find(what: str, overrides: Sequence[str]) -> Artifact:
    if not Path(what).is_file():
        if overrides:
            raise ConfigError("settings go with a configuration file", field="a.b=value", value=list(overrides))
        return open_artifact(what)
    settings = settings_from(Path(what), overrides)
    try:
        return Pipeline(settings, ReadOnlyStore(settings.output), lambda _: None).select
    except NotMadeError as missing:
        raise ConfigError(
            "nothing to verify yet", field="CONFIG", value=what, hint=f"Missing is {missing}; run `lspm select {what}`"
        ) from None


def _document(verdict: Verdict, found: Resampled | None, ok: bool) -> dict[str, Any]:
    resampled = None if found is None else found.model_dump(mode="json") | {"ok": found.ok}
    return verdict.model_dump(mode="json") | {"ok": ok, "resampled": resampled}


def _show(verdict: Verdict, found: Resampled | None, *, every: bool) -> None:
    print(verdict.uri)
    shown = [check for check in verdict.checks if every or not check.ok or check.what.startswith(_PROMISES)]
    table(["check", "found", "stated", ""], [_row(check) for check in shown])
    if others := len(verdict.checks) - len(shown):
        print(f"and {others} more: files and their digests, splits, outputs, the plan's numbers (--all shows them)")
    if not verdict.same_hardware:
        print(
            "this is other hardware than the plan's: its latencies and costs say nothing here; the bound holds as far"
        )
        print("as the models' answers are the same")
    if found is not None:
        for line in in_words(found):
            print(line)
    failed = [check for check in verdict.checks if not check.ok]
    if failed:
        print(f"FAILED: {len(failed)} of {len(verdict.checks)} checks; the first: {failed[0].what}")
    elif verdict.certificate_id is None:
        print(f"ok: {len(verdict.checks)} checks; the full model serves alone, nothing is promised")
    else:
        print(f"ok: {len(verdict.checks)} checks; certificate {verdict.certificate_id} holds")


def in_words(found: Resampled) -> list[str]:
    """What resampling found, and what it cannot find."""
    drawn, split, verdict = found.drawn, found.split, "ok" if found.ok else "FAILED"
    return [
        f"procedure repeated {drawn.runs} times on rows drawn from {found.rows:,} held-out rows: some promise was "
        f"false in {drawn.wrong} ({drawn.rate:.1%}, 95 % interval {drawn.low:.1%} to {drawn.high:.1%}; that of the "
        f"default point in {drawn.default_wrong}); at most {found.delta:.0%} are allowed: {verdict}",
        f"a certificate was issued in {found.issued:.0%}, escalating {found.escalation_rate:.1%} on average",
        f"on random splits the risk measured on the rest was above the promise in {split.rate:.1%}; the rest is small, "
        "so this is more than the true rate",
        "it cannot show: traffic unlike these rows, training rows among them, or luck in the choice among variants",
    ]


def _row(check: Check) -> list[str]:
    return [check.what, _short(check.found), _short(check.stated), "ok" if check.ok else "FAILED"]


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if _DIGEST.fullmatch(text):
        return text[:12]
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."
