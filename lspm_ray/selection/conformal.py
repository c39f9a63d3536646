"""Label sets that hold the true label with a stated probability (conformal prediction). Pure.

Every stage's sets are fitted on all calibration rows, at 1 - (1 - coverage) / stages. So whatever decides which stage
answers, the threshold chosen on the same rows, an overload, a withdrawn certificate: the served set misses the label
only if that of one of the stages does, which has probability 1 - coverage at most (union bound).
"""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lspm_ray.config import Config
from lspm_ray.errors import CertificateError
from lspm_ray.evaluation.calibration import Floats, Ints

SetKind = Literal["split", "mondrian", "aps", "raps"]
EVERY_LABEL = float(np.finfo(np.float32).max)
"""A limit that every label keeps: too few calibration rows to leave any out."""


class ConformalConfig(Config):
    """Which label sets answers carry.

    Attributes:
        coverage: least probability that the set holds the true label.
        kind: `split`: labels of at least a certain probability (Sadinle, Lei and Wasserman 2019), the smallest sets;
            `mondrian`: the same with a limit per label, so that the coverage holds within every class (Vovk 2012);
            `aps`: the most probable labels up to a certain sum (Romano, Sesia and Candes, "Classification with Valid
            and Adaptive Coverage", 2020, without randomisation), whose coverage varies less with the difficulty;
            `raps`: the same with a price on every label after the first `free` (Angelopoulos et al., "Uncertainty Sets
            for Image Classifiers using Conformal Prediction", 2021).
        price: of `raps`.
        free: labels that cost nothing in `raps`.
    """

    coverage: float = Field(0.95, gt=0, lt=1)
    kind: SetKind = "split"
    price: float = Field(0.01, ge=0)
    free: int = Field(1, ge=0)


class LabelSets(Config):
    """Gives each row of probabilities its set of labels.

    Attributes:
        config: what was asked for.
        level: coverage of this stage's sets.
        limits: of the nonconformity of each label; a label with more is left out.
        rows: calibration rows.
    """

    config: ConformalConfig
    level: float = Field(gt=0, lt=1)
    limits: tuple[float, ...] = Field(min_length=2)
    rows: int = Field(ge=1)

    @model_validator(mode="after")
    def _one_limit_but_for_mondrian(self) -> Self:
        if self.config.kind != "mondrian" and len(set(self.limits)) > 1:
            raise ValueError("only `mondrian` has a limit per label")
        return self

    def members(self, probabilities: Floats) -> NDArray[np.bool_]:
        """Which labels are in the set of each row, [rows, labels]. The answer always is: that adds coverage only."""
        found: NDArray[np.bool_] = nonconformity(self.config, probabilities) <= np.asarray(self.limits)
        found[np.arange(len(found)), probabilities.argmax(axis=1)] = True
        return found


def stage_level(coverage: float, stages: int) -> float:
    """Coverage of the sets of each of several stages that makes that of the served sets `coverage`."""
    return 1 - (1 - coverage) / stages


def fit_label_sets(config: ConformalConfig, probabilities: Floats, labels: Ints, level: float) -> LabelSets:
    """Limits from calibration rows that calibrator and model have not seen.

    Over such rows and new ones drawn alike, P(the label is in its set) >= level (Vovk, Gammerman and Shafer 2005;
    Lei et al. 2018, theorem 2); for `mondrian` given each label.

    Args:
        config: which sets.
        probabilities: calibrated, [rows, labels].
        labels: the true ones, [rows].
        level: of coverage.

    Raises:
        CertificateError: there are no rows.
    """
    if len(labels) == 0:
        raise CertificateError("label sets need calibration rows", field="select.conformal", value=0)
    own = nonconformity(config, probabilities)[np.arange(len(labels)), labels]
    classes = probabilities.shape[1]
    if config.kind == "mondrian":
        limits = [_limit(own[labels == label], level) for label in range(classes)]
    else:
        limits = [_limit(own, level)] * classes
    return LabelSets(config=config, level=level, limits=tuple(limits), rows=len(labels))


def nonconformity(config: ConformalConfig, probabilities: Floats) -> Floats:
    """How little each label would fit each row, [rows, labels]."""
    if config.kind in ("split", "mondrian"):
        return 1 - probabilities
    order = np.argsort(-probabilities, axis=1, kind="stable")
    rows = np.arange(len(probabilities))[:, None]
    sums, ranks = np.empty_like(probabilities), np.empty_like(probabilities)
    sums[rows, order] = np.cumsum(probabilities[rows, order], axis=1)
    ranks[rows, order] = np.arange(1, probabilities.shape[1] + 1)
    price = config.price if config.kind == "raps" else 0.0
    found: Floats = sums + price * np.maximum(ranks - config.free, 0)
    return found


def coverage(members: NDArray[np.bool_], labels: Ints) -> tuple[float, float]:
    """Share of the rows whose label is in their set, and mean size of the sets."""
    return float(members[np.arange(len(labels)), labels].mean()), float(members.sum(axis=1).mean())


def names(members: NDArray[np.bool_], probabilities: Floats, labels: Sequence[str]) -> list[tuple[str, ...]]:
    """The labels of each set, the most probable first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return [tuple(labels[k] for k in ranked if row[k]) for row, ranked in zip(members, order, strict=True)]


def _limit(own: Floats, level: float) -> float:
    """The ceil((n + 1) * level)-th smallest of n values, `EVERY_LABEL` where there are too few for that."""
    # Rounded first: 20 * 0.95 is a little more than 19 in floating point.
    place = int(np.ceil(np.round((len(own) + 1) * level, 9)))
    return EVERY_LABEL if place > len(own) else float(np.partition(own, place - 1)[place - 1])
