from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.page.theme import DARK, LIGHT
from lspm_ray.report.canvas import Caption, draw, fitted, log_ticks
from tests.report.pages import parse


def _drawing(anchor: str, text: str = "x", colour: str = LIGHT["accent"]) -> str:
    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.plot([1, 2, 3], [1, 4, 2], "o-", color=colour)
        axes.set_xlabel(text)

    return draw(paint, 3, 2, Caption(anchor, "Title <1>", "What & why"))


def test_the_same_drawing_is_the_same_bytes() -> None:
    assert _drawing("a") == _drawing("a")


def test_ids_of_two_drawings_never_meet() -> None:
    ids = [{n.attributes["id"] for n in parse(_drawing(a)).every() if "id" in n.attributes} for a in ("a", "b")]
    assert len(ids[0]) >= 3
    assert not ids[0] & ids[1]


def test_a_drawing_is_one_element_without_addresses_dates_or_style_sheets() -> None:
    drawn = _drawing("a")
    root = parse(drawn)
    assert [node.tag for node in root.children if not isinstance(node, str)] == ["svg"]
    assert "http" not in drawn
    assert not list(root.all("style"))
    assert not list(root.all("metadata"))


def test_it_carries_its_title_and_text() -> None:
    root = parse(_drawing("a"))
    assert root.by_id("a-title").text() == "Title <1>"
    assert root.by_id("a-desc").text() == "What & why"


def test_colours_follow_the_page() -> None:
    drawn = _drawing("a")
    assert f"var(--accent,{LIGHT['accent']})" in drawn
    assert "#000000" not in drawn


@pytest.mark.parametrize("text", ["$a_b$", "日本語", "<b>", "😀", "$", r"\frac{1}{2}"])
def test_text_is_drawn_as_it_stands(text: str) -> None:
    assert text in [node.text() for node in parse(_drawing("a", text)).all("text")]


def test_the_settings_of_the_process_are_left_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    _drawing("a")
    assert dict(matplotlib.rcParams) == before


def test_settings_of_the_user_change_nothing() -> None:
    import matplotlib

    plainly = _drawing("a")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert _drawing("a") == plainly


def test_light_and_dark_name_the_same_colours_and_no_light_one_twice() -> None:
    assert list(LIGHT) == list(DARK)
    assert len(set(LIGHT.values())) == len(LIGHT)


@given(st.text(max_size=80), st.integers(5, 40))
def test_fitted_names_fit(text: str, limit: int) -> None:
    assert len(fitted(text, limit)) <= limit
    assert "\n" not in fitted(text, limit)


def test_fitted_names_keep_both_ends() -> None:
    assert fitted("short name", 20) == "short name"
    assert fitted("transfer of money to accounts abroad", 20) == "transfer of…abroad"


@given(st.floats(1e-6, 1e6), st.floats(1.1, 1e8))
def test_log_ticks_lie_inside_and_are_few(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert len(ticks) <= 9
    assert all(low * (1 - 1e-6) <= tick <= low * factor * (1 + 1e-6) for tick in ticks)
    assert ticks == sorted(ticks)


def test_log_ticks_are_round() -> None:
    assert log_ticks(0.012, 1.5) == [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    assert log_ticks(3, 4_000_000) == [10, 100, 1000, 10_000, 100_000, 1_000_000]
