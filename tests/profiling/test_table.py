import pytest

from tests.profiling.toy_table import toy_table


def test_costs_at_each_batch_size_are_relative_to_full_at_the_same() -> None:
    table = toy_table({"full": {1: 100.0, 8: 200.0}, "small": {1: 400.0, 8: 100.0, 32: 100.0}}, encode_ms=2.5)
    assert table.relative_costs("small") == pytest.approx({1: 5 / 12.5, 8: 12.5 / 7.5})
    assert table.relative_costs("full") == {1: 1.0, 8: 1.0}
    row = {r["name"]: r for r in table.to_arrow().to_pylist()}["small"]
    assert row["cost_at_1"] == pytest.approx(0.4) and row["cost_at_8"] == pytest.approx(5 / 3)


def test_what_one_thread_does_has_columns_of_its_own() -> None:
    table = toy_table({"full": {1: 100.0, 8: 200.0}, "small": {1: 400.0, 8: 500.0}})
    assert not [name for name in table.to_arrow().column_names if "one_thread" in name]
    single = toy_table({"full": {1: 60.0, 8: 70.0}, "small": {1: 300.0, 8: 310.0}})
    variants = [
        row.model_copy(update={"speed": row.speed.with_one_thread(other.speed)})
        for row, other in zip(table.variants, single.variants, strict=True)
        if row.speed is not None and other.speed is not None
    ]
    table = table.model_copy(update={"variants": variants})
    flat = {row["name"]: row for row in table.to_arrow().to_pylist()}["small"]
    assert (flat["rows_per_s_8"], flat["one_thread_rows_per_s_8"], flat["one_thread_p50_ms"]) == (500, 310, 1)
    assert type(table).parse(table.model_dump(mode="json")) == table
