from hypothesis import given
from hypothesis import strategies as st

from lspm_ray.page.markup import Html, element, join, name, plain
from tests.report.pages import parse


def test_text_is_escaped_and_html_is_not() -> None:
    made = element("p", "<b>&\"'", element("i", "x"), None, ["a", ("b", None)])
    assert made == "<p>&lt;b&gt;&amp;&quot;&#x27;<i>x</i>ab</p>"


def test_attributes_are_escaped_and_absent_ones_left_out() -> None:
    made = element("a", "x", class_="c", data_x='"><script>', hidden=True, title=None, lang=False)
    assert made == '<a class="c" data-x="&quot;&gt;&lt;script&gt;" hidden>x</a>'


def test_void_elements_are_not_closed() -> None:
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'


@given(st.text())
def test_any_text_comes_back_as_it_was_apart_from_what_html_cannot_hold(text: str) -> None:
    root = parse(element("div", text, title=text))
    node = next(root.all("div"))
    # A parser reads a lone carriage return as a line feed; `plain` replaced it before.
    assert node.text() == plain(text)
    assert node.attributes["title"] == plain(text)


@given(st.text(st.characters()))
def test_plain_text_can_be_encoded_and_is_plain_already(text: str) -> None:
    plain(text).encode()
    assert plain(plain(text)) == plain(text)


def test_controls_surrogates_and_overrides_go() -> None:
    assert plain("a\x00b\x1bc\ud800d\ufffee") == "a\ufffdb\ufffdc\ufffdd\ufffde"
    assert plain("\u202eabc\u2066") == "abc"
    assert plain("Zoë 日本\n😀") == "Zoë 日本\n😀"


def test_names_are_isolated_and_long_ones_keep_their_full_text() -> None:
    assert name("x") == "<bdi>x</bdi>"
    assert name("y" * 61) == f'<bdi title="{"y" * 61}">{"y" * 61}</bdi>'


def test_joining_nothing_is_nothing() -> None:
    assert join(None) == Html("")
