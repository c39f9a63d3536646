"""What the audit of a certificate tests, and how often it may be wrong.

A certificate speaks of all answers: P(accepted and loss) <= alpha. So answers are sampled from all of them, by a coin
that knows nothing of the text, and one that the full model gave counts as no loss. The certified level is then the
mean to be tested, without a look at how many answers are accepted.

Certificates of `disagreement` are tested as they are, at level alpha: P(revoked although it holds) <= delta.

Certificates of `regret` are tested twice, each with delta / 2:

-   `regret` at alpha, by the labels that clients send. Those who send labels do not choose at random, and often send
    none. So a sampled answer counts as a loss only once its label is known (wrong, and full right), else as none. That
    makes the mean smaller, never larger: P(revoked although regret <= alpha) <= delta / 2, as long as labels are true.
    A label can only turn a disagreement that was found into regret; it cannot make one up.
-   `disagreement`, which needs no labels. It may be well above alpha while regret holds, so it is tested at the level
    that the calibration rows support: the upper confidence bound in `Certificate.disagreement`, wrong with probability
    at most its `delta` (gamma). Answers above it say that the traffic is not drawn like the calibration rows: the
    assumption the certificate rests on is refuted, if not yet its claim. P(revoked although live answers are drawn
    like the calibration rows) <= gamma + delta.
"""

from __future__ import annotations

from typing import Literal

from lspm_ray.config import Config
from lspm_ray.selection.plan import Certificate

Loss = Literal["disagreement", "regret"]


class Hypothesis(Config):
    """The mean of a loss is at most `level`; rejected at `delta`."""

    loss: Loss
    level: float
    delta: float


def hypotheses(certificate: Certificate, delta: float) -> tuple[Hypothesis, ...]:
    """What is tested; the deltas sum to at most `delta`.

    Args:
        certificate: under audit.
        delta: chance of a false revocation.
    """
    if certificate.risk == "disagreement":
        return (Hypothesis(loss="disagreement", level=certificate.alpha, delta=delta),)
    found = [Hypothesis(loss="regret", level=certificate.alpha, delta=delta / 2)]
    bound = certificate.disagreement
    if bound is not None and bound.level < 1:
        found.insert(0, Hypothesis(loss="disagreement", level=bound.level, delta=delta / 2))
    return tuple(found)
