from lspm_ray.serving.cascade import CascadeAnswer
from lspm_ray.serving.metrics import Metrics


class Recorder:
    def __init__(self) -> None:
        self.counted: list[tuple[str, dict[str, str], int]] = []
        self.observed: list[tuple[str, float]] = []

    def count(self, name: str, labels: dict[str, str], amount: int) -> None:
        self.counted.append((name, labels, amount))

    def observe(self, name: str, labels: dict[str, str], value: float) -> None:
        self.observed.append((name, value))


def answer(variant: str, score: float | None, reason: str | None) -> CascadeAnswer:
    return CascadeAnswer("yes", 0.9, variant, reason is not None, score, reason)  # type: ignore[arg-type]


ANSWERS = [answer("small", 0.95, None), answer("small", 0.7, None), answer("full", None, "invalid_output")]


def test_answers_escalations_scores_and_responses_are_counted() -> None:
    metrics = Metrics("r1")
    metrics.answered(ANSWERS)
    metrics.answered(ANSWERS)
    metrics.responded("/v1/predict", 200, 0.02)
    lines = metrics.text().splitlines()
    assert 'lspm_answers_total{variant="small",escalated="false",replica="r1"} 4' in lines
    assert 'lspm_answers_total{variant="full",escalated="true",replica="r1"} 2' in lines
    assert 'lspm_escalations_total{reason="invalid_output",replica="r1"} 2' in lines
    assert 'lspm_responses_total{route="/v1/predict",status="200",replica="r1"} 1' in lines
    assert 'lspm_validator_score_bucket{le="0.7",replica="r1"} 2' in lines
    assert 'lspm_validator_score_bucket{le="+Inf",replica="r1"} 4' in lines
    assert 'lspm_validator_score_count{replica="r1"} 4' in lines
    assert 'lspm_request_seconds_bucket{le="0.01",replica="r1"} 0' in lines
    assert 'lspm_request_seconds_bucket{le="0.025",replica="r1"} 1' in lines


def test_every_family_is_described_even_before_anything_happened() -> None:
    text = Metrics().text()
    for name in ("lspm_answers_total", "lspm_escalations_total", "lspm_validator_score", "lspm_request_seconds"):
        assert f"# TYPE {name} " in text


def test_label_values_are_escaped() -> None:
    metrics = Metrics('a"b\\c\nd')
    metrics.responded("/", 200, 0.1)
    assert r'replica="a\"b\\c\nd"' in metrics.text()


def test_the_sink_hears_the_same() -> None:
    sink = Recorder()
    Metrics(sink=sink).answered(ANSWERS)
    assert ("lspm_answers_total", {"variant": "small", "escalated": "false"}, 2) in sink.counted
    assert sink.observed == [("lspm_validator_score", 0.95), ("lspm_validator_score", 0.7)]
