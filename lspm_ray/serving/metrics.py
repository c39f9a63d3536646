"""What the endpoint counts, and its Prometheus text."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from lspm_ray.serving.cascade import CascadeAnswer

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SCORE_BUCKETS = (
    *(-3.0, -2.0, -1.5, -1.0, -0.7, -0.5, -0.3, -0.2, -0.1, -0.05, -0.01, 0.0),
    *(step / 20 for step in range(1, 20)),
)
"""Entropy scores lie below 0, probabilities and margins between 0 and 1."""

NAMES = {
    "lspm_answers_total": "Answers by the variant that gave them and whether they were escalated.",
    "lspm_escalations_total": "Escalated answers by reason.",
    "lspm_responses_total": "HTTP responses by route and status.",
    "lspm_validator_score": "Validator scores of the first variant's answers.",
    "lspm_request_seconds": "Time from a request's headers to its response.",
}


class Sink(Protocol):
    """Somewhere else that the same numbers go, e.g. Ray's own metrics."""

    def count(self, name: str, labels: dict[str, str], amount: int) -> None:
        """Add to a counter."""

    def observe(self, name: str, labels: dict[str, str], value: float) -> None:
        """Add to a histogram."""


class Histogram:
    """Counts per bucket; a bucket holds what is <= its bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics:
    """Counters and histograms of one ingress replica.

    Args:
        replica: names this replica in every line, so that the lines of several can be added up.
        sink: also told everything.
    """

    def __init__(self, replica: str = "local", sink: Sink | None = None) -> None:
        self._replica = replica
        self._sink = sink
        self._counters: dict[tuple[str, tuple[tuple[str, str], ...]], int] = defaultdict(int)
        self._scores = Histogram(SCORE_BUCKETS)
        self._seconds = Histogram(LATENCY_BUCKETS_S)

    def answered(self, answers: Sequence[CascadeAnswer]) -> None:
        """Count the answers of one request."""
        groups: dict[tuple[str, bool], int] = defaultdict(int)
        reasons: dict[str, int] = defaultdict(int)
        for answer in answers:
            groups[answer.variant, answer.escalated] += 1
            if answer.reason is not None:
                reasons[answer.reason] += 1
            if answer.validator_score is not None:
                self._observe("lspm_validator_score", self._scores, answer.validator_score)
        for (variant, escalated), amount in groups.items():
            self._count("lspm_answers_total", {"variant": variant, "escalated": str(escalated).lower()}, amount)
        for reason, amount in reasons.items():
            self._count("lspm_escalations_total", {"reason": reason}, amount)

    def responded(self, route: str, status: int, seconds: float) -> None:
        """Count one HTTP response."""
        self._count("lspm_responses_total", {"route": route, "status": str(status)}, 1)
        self._observe("lspm_request_seconds", self._seconds, seconds)

    def _count(self, name: str, labels: dict[str, str], amount: int) -> None:
        self._counters[name, tuple(labels.items())] += amount
        if self._sink is not None:
            self._sink.count(name, labels, amount)

    def _observe(self, name: str, histogram: Histogram, value: float) -> None:
        histogram.observe(value)
        if self._sink is not None:
            self._sink.observe(name, {}, value)

    def text(self) -> str:
        """Everything in Prometheus' text format, version 0.0.4."""
        lines: list[str] = []
        for name in ("lspm_answers_total", "lspm_escalations_total", "lspm_responses_total"):
            lines += [f"# HELP {name} {NAMES[name]}", f"# TYPE {name} counter"]
            for (counter, labels), value in sorted(self._counters.items()):
                if counter == name:
                    lines.append(f"{name}{self._labels(labels)} {value}")
        for name, histogram in (("lspm_validator_score", self._scores), ("lspm_request_seconds", self._seconds)):
            lines += [f"# HELP {name} {NAMES[name]}", f"# TYPE {name} histogram", *self._histogram(name, histogram)]
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str, histogram: Histogram) -> list[str]:
        lines, below = [], 0
        for bound, count in zip([*map(str, histogram.bounds), "+Inf"], histogram.counts, strict=True):
            below += count
            lines.append(f"{name}_bucket{self._labels((('le', bound),))} {below}")
        lines.append(f"{name}_sum{self._labels(())} {histogram.total}")
        lines.append(f"{name}_count{self._labels(())} {below}")
        return lines

    def _labels(self, labels: Sequence[tuple[str, str]]) -> str:
        pairs = [*labels, ("replica", self._replica)]
        return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in pairs) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
