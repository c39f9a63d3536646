from typing import Any

import pytest

from lspm_ray.corpus.config import SPLITS, DataConfig, Splits
from lspm_ray.errors import ConfigError


def make(**changes: Any) -> DataConfig:
    return DataConfig.parse({"source": "x.csv", "text": "text", "label": "label", **changes})


def test_columns_are_text_then_label_then_split() -> None:
    assert make().columns == ["text", "label"]
    assert make(text=["title", "body"], split_column="part").columns == ["title", "body", "label", "part"]


def test_default_shares_sum_to_one() -> None:
    assert sum(Splits().shares().values()) == pytest.approx(1)
    assert tuple(Splits().shares()) == SPLITS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"train": 0.9}}, "must sum to 1, not 1.3"),
        ({"splits": {"train": 0}}, "splits.train"),
        ({"splits": {"dev": 0.1}}, "unknown key"),
        (
            {"splits": {"train": 0.8, "validation": 0, "test": 0}},
            "give splits.validation and splits.test a share above 0",
        ),
        ({"splits": {"train": 0.7, "validation": 0}, "test_source": "y.csv"}, "give splits.validation a share above 0"),
        ({"labels": ["a"]}, "at least two labels"),
        ({"labels": ["a", "a"]}, "listed twice"),
        ({"labels": {0: "same", 1: "same"}}, "at least two labels"),
        ({"labels": [True, False]}, "put such labels in quotes"),
        ({"labels": {"n": False, "y": True}}, "put such names in quotes"),
        ({"labels": ["a", ""]}, "labels"),
        ({"text": []}, "name at least one"),
        ({"text": ["a", "a"]}, "none twice"),
        ({"source": []}, "name at least one"),
        ({"text": ""}, "at least 1 character"),
        ({"format": "xml"}, "'auto', 'parquet', 'csv' or 'jsonl'"),
        ({"csv": {"delimiter": "||"}}, "at most 1 character"),
        ({"csv": {"delimiter": '"'}}, "quote character"),
        ({"csv": {"columns": ["a", "a"]}}, "must be unique"),
        ({"similarity": 0.3}, "greater than or equal to 0.5"),
        ({"min_characters": 50, "max_characters": 20}, "must not be smaller"),
        ({"split_column": "part", "test_source": "y.csv"}, "not both"),
        ({"txt": "a"}, "unknown key"),
    ],
)
def test_bad_settings_are_refused_with_a_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match="problem") as caught:
        make(**changes)
    assert message in str(caught.value)


def test_splits_whose_rows_are_given_need_no_share() -> None:
    assert make(test_source="y.csv", splits={"train": 0.7, "test": 0}).splits.test == 0
    assert make(split_column="part", splits={"train": 1, **dict.fromkeys(SPLITS[1:], 0)}).splits.train == 1


def test_label_values_become_text_whatever_yaml_made_of_them() -> None:
    assert make(labels=[1, 2, 3]).labels == ["1", "2", "3"]
    assert make(labels={0: "no", 1.0: "yes"}).labels == {"0": "no", "1": "yes"}
    assert make(labels={True: "yes", False: "no"}).labels == {"true": "yes", "false": "no"}
    assert make(labels={"a": 1, "b": 2}).labels == {"a": "1", "b": "2"}
