import sys

import pytest

from lspm_ray.documents.rule import Drop, Rule
from lspm_ray.documents.rules import language as module
from lspm_ray.errors import ConfigError

TEXTS = {
    "en": "The old harbour was quiet in the morning, and only a few boats had left before the rain began to fall.",
    "de": "Der alte Hafen war am Morgen still, und nur wenige Boote waren ausgelaufen, bevor der Regen einsetzte.",
    "fr": "Le vieux port était calme ce matin-là, et seuls quelques bateaux étaient partis avant la pluie.",
    "ru": "Старый порт был тих в то утро, и лишь несколько лодок вышли в море до начала дождя.",
    "ja": "その朝、古い港は静かで、雨が降り出す前に出港した船はわずかだった。",
}


def make(*languages, **fields):
    rule = Rule.make({"rule": "language", "languages": languages, **fields})
    rule.prepare()
    return rule


@pytest.mark.parametrize("wanted", TEXTS)
def test_keeps_the_languages_that_are_listed(wanted):
    rule = make(wanted)
    assert {code: rule.apply(text) for code, text in TEXTS.items()} == {
        code: text if code == wanted else Drop("other language") for code, text in TEXTS.items()
    }


def test_several_languages():
    rule = make("fr", "ja")
    assert [code for code, text in TEXTS.items() if rule.apply(text) == text] == ["fr", "ja"]


@pytest.mark.parametrize("text", ["12345 !!!", "ok", "?"])
def test_what_has_no_language_is_unclear(text):
    assert make("en").apply(text) == Drop("language unclear")


def test_confidence_is_that_of_all_listed_languages_together():
    text = "Jeg skal hjem til min mor."
    alone = [make(code, min_confidence=0.9).apply(text) for code in ("nb", "nn", "da")]
    assert alone == [Drop("language unclear")] * 3  # Danish 0.69, Bokmål 0.31
    assert make("nb", "nn", "da", min_confidence=0.9).apply(text) == text


def test_noise_in_the_last_digits_does_not_matter():
    text = TEXTS["en"] + " It was Sunday, and nobody had to work."  # 0.9999999999998647, sometimes 8 at the end
    assert make("en", min_confidence=1).apply(text) == text


def test_only_the_beginning_matters():
    beginning = (TEXTS["en"] + " ") * 30
    assert make("en").apply(beginning + TEXTS["ru"] * 100) == beginning + TEXTS["ru"] * 100


def test_unknown_codes_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"languages: unknown language .got 'english'.; valid: af, .*\ben\b.*\bzu\b"):
        make("en", "english")


def test_says_how_to_install_what_is_missing(monkeypatch):
    module._detector.cache_clear()
    monkeypatch.setitem(sys.modules, "lingua", None)
    rule = Rule.make({"rule": "language", "languages": ["en"]})
    with pytest.raises(ConfigError, match=r"not installed.*pip install 'lspm-ray\[language\]'"):
        rule.prepare()


@pytest.mark.parametrize("fields", [{"languages": []}, {}, {"languages": ["en"], "min_confidence": 0}])
def test_refuses_to_do_nothing(fields):
    with pytest.raises(ConfigError, match=r"languages|min_confidence"):
        Rule.make({"rule": "language", **fields})
