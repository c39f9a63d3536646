import hashlib
import re
from pathlib import Path

import pyarrow.parquet as pq

REVIEWS = Path(__file__).parents[2] / "examples" / "data" / "reviews"


def test_the_file_is_the_one_described_beside_it() -> None:
    digest = hashlib.sha256((REVIEWS / "reviews.parquet").read_bytes()).hexdigest()
    readme = (REVIEWS / "README.md").read_text(encoding="utf-8")
    assert digest in re.findall(r"[0-9a-f]{64}", readme)
    assert "CC0 1.0" in readme
    for name in pq.read_schema(REVIEWS / "reviews.parquet").names:
        assert f"`{name}`" in readme


def test_rows_without_text_are_left_in_to_be_counted() -> None:
    table = pq.read_table(REVIEWS / "reviews.parquet")
    assert table.num_rows == 23_486
    assert table["Review Text"].null_count == 845
    assert sorted(set(table["Recommended IND"].to_pylist())) == [0, 1]


def test_it_is_small_enough_to_ship() -> None:
    assert (REVIEWS / "reviews.parquet").stat().st_size <= 2.5e6
