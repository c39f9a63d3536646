"""`lspm predict`: texts, files or a sample of the test split, to the endpoint or without one."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lspm_ray.cluster import connect
from lspm_ray.commands.console import StageView, table
from lspm_ray.commands.run import settings_from
from lspm_ray.commands.serve import made, selected
from lspm_ray.corpus.shards import labels, read_split
from lspm_ray.errors import ConfigError
from lspm_ray.serving.client import Client
from lspm_ray.serving.config import OfflineConfig
from lspm_ray.serving.deploy import url
from lspm_ray.settings import Settings

if TYPE_CHECKING:
    from lspm_ray.serving.schema import ServedAnswer

_PATIENT_RETRIES = 20
"""Of a file's requests: they come as fast as answers do, so that the endpoint has to slow them down now and then."""
_SHOWN_CHARACTERS = 60
_OVERRIDE = re.compile(rf"(output|({'|'.join(Settings.model_fields)})(\.\w+)+)=")


@dataclass(frozen=True)
class Request:
    """What the user asked for: texts, a sample, or a file; exactly one of them."""

    texts: list[str]
    file: str | None
    out: str | None
    sample: int
    offline: bool
    url: str | None

    def check(self) -> None:
        """Refuse combinations that say nothing or too much.

        Raises:
            ConfigError: names what is missing or in the way.
        """
        given = [bool(self.texts), self.file is not None, self.sample > 0]
        if sum(given) != 1:
            raise ConfigError("give exactly one of them", field="predict", valid=["TEXT...", "--file", "--sample"])
        if (self.file is None) != (self.out is None):
            raise ConfigError("--file and --out belong together", field="predict")
        if self.offline and self.file is None:
            raise ConfigError("--offline works on a --file", field="predict")
        if self.offline and self.url is not None:
            raise ConfigError("--offline asks no endpoint", field="--url", value=self.url)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings (`serve.port=8001`) at the beginning of the arguments, and the texts behind them."""
    count = 0
    while count < len(arguments) and _OVERRIDE.match(arguments[count]):
        count += 1
    return list(arguments[:count]), list(arguments[count:])


def predict(config: Path, overrides: Sequence[str], request: Request) -> None:
    """Answer, and print or write the answers.

    Raises:
        UserError: the request makes no sense, the endpoint cannot be reached or refuses, a file cannot be used.
    """
    request.check()
    settings = settings_from(config, overrides)
    if request.file is not None and request.out is not None:
        _file(settings, config, overrides, request, request.file, request.out)
        return
    truth: list[str] | None = None
    texts = request.texts
    if request.sample:
        texts, truth = _sample(settings, config, overrides, request.sample)
    with Client(request.url or url(settings.serve)) as client:
        answers = [_timed(client, text, settings.predict) for text in texts]
    _print(texts, truth, answers)


def _timed(client: Client, text: str, asked: OfflineConfig) -> tuple[ServedAnswer, float]:
    started = time.perf_counter()
    answer = client.predict([text], max_risk=asked.max_risk, full=asked.full)[0]
    return answer, 1e3 * (time.perf_counter() - started)


def _sample(settings: Settings, config: Path, overrides: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    data = made("prepare", settings, config, overrides)
    rows = read_split(data, "test", ["text", "label"]).slice(0, count)
    names = labels(data)
    return rows["text"].to_pylist(), [names[index] for index in rows["label"].to_pylist()]


def _print(texts: list[str], truth: list[str] | None, answers: list[tuple[ServedAnswer, float]]) -> None:
    if not sys.stdout.isatty() and truth is None:
        for answer, latency_ms in answers:
            print(json.dumps(answer.model_dump(mode="json") | {"latency_ms": round(latency_ms, 3)}))
        return
    columns = ["text", *(["true label"] if truth else []), "answer", "probability", "by", "validated", "score", "ms"]
    rows = []
    for index, (text, (answer, latency_ms)) in enumerate(zip(texts, answers, strict=True)):
        score = "" if answer.validator_score is None else f"{answer.validator_score:.3f}"
        rows.append(
            [
                _short(text),
                *([truth[index]] if truth else []),
                answer.label,
                f"{answer.probability:.3f}",
                answer.variant,
                _validated(answer),
                score,
                f"{latency_ms:.1f}",
            ]
        )
    certificate = answers[0][0].certificate_id
    print(f"answers under certificate {certificate}" if certificate else "answers of the full model")
    table(columns, rows)


def _validated(answer: ServedAnswer) -> str:
    if answer.escalated:
        return f"escalated: {answer.reason}"
    return f"degraded, at {answer.alpha:.2%}" if answer.degraded else "yes"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[: _SHOWN_CHARACTERS - 1]}…"


def _file(
    settings: Settings, config: Path, overrides: Sequence[str], request: Request, source: str, target: str
) -> None:
    from lspm_ray.serving.files import predict_file
    from lspm_ray.serving.offline import predict_offline

    view = StageView()
    columns, csv = settings.labelled.text, settings.labelled.csv
    if request.offline:
        artifact = selected(settings, config, overrides)
        with connect(settings.cluster), view.stage("predict") as finish:
            summary = predict_offline(
                artifact.uri, source, target, columns, config=settings.predict, progress=_rows(view), csv=csv
            )
            finish(str(summary))
    else:
        endpoint, asked = request.url or url(settings.serve), settings.predict
        with Client(endpoint, retries=_PATIENT_RETRIES) as client, view.stage("predict") as finish:
            summary = predict_file(
                client, source, target, columns, _rows(view), csv, max_risk=asked.max_risk, full=asked.full
            )
            finish(str(summary))
    print(f"wrote {target}")


def _rows(view: StageView) -> Callable[[int], None]:
    started = time.monotonic()

    def show(done: int) -> None:
        view(f"{done} rows, {done / max(1e-3, time.monotonic() - started):.0f} rows/s")

    return show
