from lspm_ray.serving.cascade import CascadeAnswer
from lspm_ray.serving.metrics import Growth, Metrics


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


def test_growth_is_what_was_added_since_the_last_time() -> None:
    metrics = Metrics()
    growth = Growth(metrics)
    metrics.answered(ANSWERS)
    first = {(name, labels): added for name, labels, added in growth.take()}
    assert first["lspm_answers_total", (("variant", "small"), ("escalated", "false"))] == 2
    assert first["lspm_validator_score_bucket", (("le", "0.7"),)] == 1
    assert first["lspm_validator_score_count", ()] == 2
    assert growth.take() == []
    metrics.answered(ANSWERS[2:])
    assert [(name, added) for name, _, added in growth.take()] == [
        ("lspm_answers_total", 1),
        ("lspm_escalations_total", 1),
    ]


def test_negative_scores_never_shrink_what_is_exported() -> None:
    metrics = Metrics()
    growth = Growth(metrics)
    metrics.answered([answer("small", -0.4, None)])
    grown = growth.take()
    assert ("lspm_validator_score_bucket", (("le", "-0.3"),), 1) in grown
    assert all(added > 0 for _, _, added in grown)
