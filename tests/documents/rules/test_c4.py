import pytest

from lspm_ray.documents.rule import Drop, Rule
from lspm_ray.errors import ConfigError

GOOD = "This line has enough words in it."


def apply(text, **fields):
    return Rule.make({"rule": "c4", **fields}).apply(text)


def test_good_lines_stay_with_the_empty_lines_between_them():
    text = f"{GOOD}\n{GOOD}\n\n{GOOD}"
    assert apply(text) == text


@pytest.mark.parametrize(
    "line",
    [
        "This line has no full stop at all",
        "This line was cut off right here...",
        "This line was cut off right here…",
        "Too few words here.",
        "Please enable JavaScript to see this page properly.",
    ],
)
def test_removes_the_line(line):
    assert apply(f"{GOOD}\n{line}\n{GOOD}\n{GOOD}") == f"{GOOD}\n{GOOD}\n{GOOD}"
    assert apply(f"{GOOD}\n\n{line}\n\n{GOOD}\n{GOOD}") == f"{GOOD}\n\n{GOOD}\n{GOOD}"


@pytest.mark.parametrize("end", list('.!?"”'))
def test_every_terminal_punctuation_mark_counts(end):
    line = f"This line has enough words{end}"
    assert apply(line, min_sentences=0) == line


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{GOOD}\n{GOOD}", "too few sentences"),
        ("nothing here", "too few sentences"),
        (f"{GOOD}\n{GOOD}\n{GOOD}\nLorem Ipsum dolor sit", "lorem ipsum"),
        (f"{GOOD}\n{GOOD}\n{GOOD}\nfunction {{", "curly bracket"),
    ],
)
def test_drops_the_document(text, reason):
    assert apply(text) == Drop(f"c4: {reason}")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is here. Two is here! Is three here? Yes", 4),
        ("She said “stop.” He did not stop.", 2),
        ("It costs 3.50 at example.com today.", 1),
        ("What?! Really... yes indeed.", 3),
        ("第一句。第二句！第三句？", 3),
        ("a title\na second line", 2),
    ],
)
def test_counts_sentences(text, sentences):
    loose = {"terminal_punctuation": False, "min_words_per_line": 0}
    assert apply(text, **loose, min_sentences=sentences) == text
    assert apply(text, **loose, min_sentences=sentences + 1) == Drop("c4: too few sentences")


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("This line has no full stop at all", {"terminal_punctuation": False}),
        ("Too few words here.", {"min_words_per_line": 4}),
        ("A set {1, 2} is written like this.", {"curly_brackets": True}),
    ],
)
def test_each_step_can_be_switched_off(line, fields):
    assert apply(f"{line}\n{GOOD}\n{GOOD}", **fields) == f"{line}\n{GOOD}\n{GOOD}"


def test_nothing_left_is_empty_text_where_no_sentence_is_asked_for():
    assert apply("nothing here", min_sentences=0) == ""


def test_refuses_negative_numbers():
    with pytest.raises(ConfigError, match="min_sentences"):
        apply("", min_sentences=-1)
