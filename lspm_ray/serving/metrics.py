"""What the endpoint counts, and its Prometheus text."""

import math
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence

from lspm_ray.serving.cascade import CascadeAnswer, Cause

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SCORE_BUCKETS = (
    *(-30.0, -10.0, -5.0, -3.0, -2.0, -1.5, -1.0, -0.7, -0.5, -0.3, -0.2, -0.1, -0.05, -0.01, 0.0),
    *(step / 20 for step in range(1, 20)),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0),
)
"""Entropy and distances lie below 0, probabilities and margins between 0 and 1, log odds and energies anywhere."""

FAMILIES = {
    "lspm_answers_total": "Answers by the variant that gave them and whether they were escalated.",
    "lspm_escalations_total": "Escalated answers by reason.",
    "lspm_degraded_total": "Answers accepted under a more lenient point than the request's own, by its alpha.",
    "lspm_refusals_total": "Requests refused for lack of capacity, by what stood in the way.",
    "lspm_responses_total": "HTTP responses by route and status.",
    "lspm_validator_score": "Validator scores of the first variant's answers.",
    "lspm_request_seconds": "Time from a request's headers to its response.",
    "lspm_variant_seconds": "Time of one call of a variant, which computes all texts that wait, as its router sees it.",
    "lspm_audit_total": "Answers by what the audit did with them: sampled, shadowed, disagreed, failed, dropped.",
    "lspm_feedback_total": "Labels that clients sent: right, wrong, or of an unknown answer.",
    "lspm_audit_log_wealth": "Natural logarithm of the evidence against the certificate, by loss, over all routers.",
    "lspm_audit_drift_warnings": "Drift warnings at the moment.",
    "lspm_certificate_revoked": "1 once the audit has revoked the certificate.",
}
COUNTERS = tuple(name for name in FAMILIES if name.endswith("_total"))
GAUGES = ("lspm_audit_log_wealth", "lspm_audit_drift_warnings", "lspm_certificate_revoked")
HISTOGRAMS = {
    "lspm_validator_score": SCORE_BUCKETS,
    "lspm_request_seconds": LATENCY_BUCKETS_S,
    "lspm_variant_seconds": LATENCY_BUCKETS_S,
}
_RECENT = 1000
"""Texts that `Metrics.recent` looks back on."""

Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, Labels, float]
"""Name, labels and value of one line."""


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

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    def quantile(self, q: float) -> float | None:
        """Upper end of the bucket that holds the `q`-quantile, infinity for the last; None without values."""
        below, wanted = 0, q * self.count
        for bound, count in zip([*self.bounds, math.inf], self.counts, strict=True):
            below += count
            if count and below >= wanted:
                return bound
        return None

    def samples(self, name: str, labels: Labels) -> Iterator[Sample]:
        """Cumulative buckets, sum and count."""
        below = 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            below += count
            yield f"{name}_bucket", (*labels, ("le", bound)), below
        yield f"{name}_sum", labels, self.total
        yield f"{name}_count", labels, below


class Metrics:
    """Counters and histograms of one ingress replica.

    Args:
        replica: names this replica in every line, so that the lines of several can be added up.
    """

    def __init__(self, replica: str = "local") -> None:
        self._replica = replica
        self._counters: dict[str, dict[Labels, int]] = {name: defaultdict(int) for name in COUNTERS}
        self._histograms: dict[str, dict[Labels, Histogram]] = {
            name: {} if name == "lspm_variant_seconds" else {(): Histogram(bounds)}
            for name, bounds in HISTOGRAMS.items()
        }
        self._gauges: dict[str, dict[Labels, float]] = {name: {} for name in GAUGES}
        self._escalated: deque[bool] = deque(maxlen=_RECENT)

    def answered(self, answers: Sequence[CascadeAnswer]) -> None:
        """Count the answers of one request."""
        for answer in answers:
            self._escalated.append(answer.escalated)
            escalated = "true" if answer.escalated else "false"
            self._counters["lspm_answers_total"][("variant", answer.variant), ("escalated", escalated)] += 1
            if answer.reason is not None:
                self._counters["lspm_escalations_total"][("reason", answer.reason),] += 1
            if answer.degraded:
                self._counters["lspm_degraded_total"][("alpha", f"{answer.alpha:g}"),] += 1
            if answer.validator_score is not None:
                self.observe("lspm_validator_score", answer.validator_score)

    def refused(self, cause: Cause) -> None:
        """Count a request that was refused for lack of capacity."""
        self._counters["lspm_refusals_total"][("cause", cause),] += 1

    def responded(self, route: str, status: int, seconds: float) -> None:
        """Count one HTTP response."""
        self._counters["lspm_responses_total"][("route", route), ("status", str(status))] += 1
        self.observe("lspm_request_seconds", seconds)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Count one value of a histogram."""
        found = self._histograms[name].setdefault(tuple(labels.items()), Histogram(HISTOGRAMS[name]))
        found.observe(value)

    def total(self, name: str, **labels: str) -> int:
        """A counter, summed over all lines that have these labels."""
        return sum(n for found, n in self.counted(name) if labels.items() <= found.items())

    def counted(self, name: str) -> Iterator[tuple[dict[str, str], int]]:
        """The lines of a counter."""
        for labels, value in sorted(self._counters[name].items()):
            yield dict(labels), value

    def histogram(self, name: str, **labels: str) -> Histogram:
        """A histogram; an empty one where nothing was observed."""
        return self._histograms[name].get(tuple(labels.items())) or Histogram(HISTOGRAMS[name])

    def recent(self) -> tuple[int, int]:
        """How many of the last 1,000 texts there are, and how many of them were escalated."""
        return len(self._escalated), sum(self._escalated)

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter."""
        self._counters[name][tuple(labels.items())] += 1

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._gauges[name][tuple(labels.items())] = value

    def gauges(self) -> Iterator[Sample]:
        """Every line of every gauge that was set."""
        for name, values in self._gauges.items():
            for labels, value in sorted(values.items()):
                yield name, labels, value

    def samples(self) -> Iterator[Sample]:
        """Every line of every counter and histogram; all values only ever grow, but the sum of negative scores."""
        for name, counts in self._counters.items():
            for labels, value in sorted(counts.items()):
                yield name, labels, value
        for name, histograms in self._histograms.items():
            for labels, histogram in sorted(histograms.items()):
                yield from histogram.samples(name, labels)

    def text(self) -> str:
        """Everything in Prometheus' text format, version 0.0.4."""
        lines: list[str] = []
        samples = [*self.samples(), *self.gauges()]
        for family, help_ in FAMILIES.items():
            kind = "counter" if family in COUNTERS else "gauge" if family in GAUGES else "histogram"
            lines += [f"# HELP {family} {help_}", f"# TYPE {family} {kind}"]
            for name, labels, value in samples:
                if name == family or (family in HISTOGRAMS and name.startswith(f"{family}_")):
                    lines.append(f"{name}{self._labels(labels)} {value}")
        return "\n".join(lines) + "\n"

    def _labels(self, labels: Sequence[tuple[str, str]]) -> str:
        pairs = [*labels, ("replica", self._replica)]
        return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in pairs) + "}"


class Growth:
    """What was added since it was last asked: for exporters that count by themselves.

    Args:
        metrics: of this replica.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seen: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def take(self) -> list[Sample]:
        """The samples that have grown, with the amount."""
        grown: list[Sample] = []
        for name, labels, value in self._metrics.samples():
            added = value - self._seen.get((name, labels), 0)
            if added > 0:
                grown.append((name, labels, added))
                self._seen[name, labels] = value
        return grown


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
