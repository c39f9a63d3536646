import pytest

from tests.profiling.toy_table import toy_table


def test_costs_at_each_batch_size_are_relative_to_full_at_the_same() -> None:
    table = toy_table({"full": {1: 100.0, 8: 200.0}, "small": {1: 400.0, 8: 100.0, 32: 100.0}}, encode_ms=2.5)
    assert table.relative_costs("small") == pytest.approx({1: 5 / 12.5, 8: 12.5 / 7.5})
    assert table.relative_costs("full") == {1: 1.0, 8: 1.0}
    row = {r["name"]: r for r in table.to_arrow().to_pylist()}["small"]
    assert row["cost_at_1"] == pytest.approx(0.4) and row["cost_at_8"] == pytest.approx(5 / 3)
