import functools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import text

from lspm_ray.documents import train_tokenizer
from lspm_ray.documents.tokenizer_config import TokenizerConfig
from lspm_ray.documents.train_tokenizer import train
from lspm_ray.errors import ConfigError, DataError
from lspm_ray.models.directory import load_tokenizer

ALGORITHMS = ("bpe", "wordpiece", "unigram", "word")
ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


def some_texts(count: int = 600, seed: int = 0) -> list[str]:
    """Pseudo-words with frequencies as in a language: many rare ones, so many ties; some capitals, accents, signs."""
    rng = random.Random(seed)
    syllables = ["ka", "lo", "mi", "ter", "an", "né", "so", "zu", "ing", "pre", "日", "er", "Un", "qi", "Th", "x"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(3000)]
    signs = ["", "", "", ",", "."]
    weights = [1 / (rank + 5) for rank in range(len(words))]
    return [" ".join(word + rng.choice(signs) for word in rng.choices(words, weights, k=30)) for _ in range(count)]


@functools.cache
def trained(algorithm: str, **settings):
    config = TokenizerConfig(**{"algorithm": algorithm, "vocab_size": 600, "sentinels": 3, **settings})
    return train(config, iter(some_texts()))[0]


def serialized() -> dict[str, str]:
    return {algorithm: trained(algorithm).backend_tokenizer.to_str() for algorithm in ALGORITHMS}


@pytest.fixture(scope="module")
def in_another_process() -> dict[str, str]:
    """With another order of sets than here, and one thread."""
    root = Path(__file__).parents[2]
    code = "import json; from tests.documents.test_train_tokenizer import serialized; print(json.dumps(serialized()))"
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    env = os.environ | {"PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_texts_give_the_same_bytes(algorithm, in_another_process, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    assert in_another_process[algorithm] == trained.__wrapped__(algorithm).backend_tokenizer.to_str()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_training_is_no_copy(algorithm):
    config = TokenizerConfig(algorithm=algorithm, vocab_size=600, sentinels=3)
    other = train(config, iter(some_texts(seed=1)))[0]
    assert other.backend_tokenizer.to_str() != trained(algorithm).backend_tokenizer.to_str()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_special_tokens_come_first_and_once(algorithm):
    tokenizer = trained(algorithm)
    ids = [getattr(tokenizer, f"{role}_token_id") for role in ROLES]
    assert ids == [0, 1, 2, 3, 4, 2, 3]
    sentinels = tokenizer.convert_tokens_to_ids([f"<extra_id_{n}>" for n in range(3)])
    assert sentinels == [5, 6, 7]
    assert set(tokenizer.all_special_ids) == set(range(8))
    assert len(tokenizer) == 600 == len(set(tokenizer.get_vocab().values()))
    cased = {"wordpiece": "[CLS]"}
    assert tokenizer.cls_token == cased.get(algorithm, "<s>")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_text_and_a_pair_stand_between_cls_and_sep(algorithm):
    tokenizer = trained(algorithm)
    one = tokenizer("kalo", add_special_tokens=False)["input_ids"]
    other = tokenizer("mi zu", add_special_tokens=False)["input_ids"]
    assert one and other and not set(one + other) & set(range(8))
    assert tokenizer("kalo")["input_ids"] == [2, *one, 3]
    pair = tokenizer("kalo", "mi zu")
    assert pair["input_ids"] == [2, *one, 3, *other, 3]
    if algorithm == "wordpiece":
        assert pair["token_type_ids"] == [0] * (len(one) + 2) + [1] * (len(other) + 1)
    else:
        assert "token_type_ids" not in pair


@pytest.mark.parametrize("model_type", [None, "bert", "gpt2", "t5"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_saved_and_loaded(algorithm, model_type, tmp_path):
    tokenizer = train(TokenizerConfig(algorithm=algorithm, vocab_size=600), iter(some_texts()), max_length=77)[0]
    tokenizer.save_pretrained(tmp_path)
    if model_type:  # of the model beside it, whatever its usual tokenizer
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = load_tokenizer(tmp_path)
    texts = [*some_texts(5, seed=3), "Größe naïve  日本 [MASK] <mask> <extra_id_1>\n\tx", ""]
    assert loaded(texts, texts[::-1]) == tokenizer(texts, texts[::-1])
    assert loaded.model_max_length == 77
    for role in ROLES:
        assert getattr(loaded, f"{role}_token_id") == getattr(tokenizer, f"{role}_token_id") is not None
    assert loaded.all_special_ids == tokenizer.all_special_ids
    ids = loaded(texts[0])["input_ids"]
    assert loaded.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special_tokens=True)


def test_without_a_length_there_is_no_limit():
    assert trained("bpe").model_max_length > 10**9


without_specials = text().filter(lambda value: not any(name in value for name in ("<pad>", "<unk>", "<s>", "</s>")))


@given(without_specials)
def test_bytes_come_back_as_they_were(value):
    tokenizer = trained("bpe")
    ids = tokenizer(value)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == value
    assert tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_known_text_comes_back(algorithm):
    tokenizer, value = trained(algorithm), "mi ter Uner an"
    ids = tokenizer(value)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == value


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_case(algorithm):
    kept, lower = trained(algorithm), trained(algorithm, lowercase=True)
    assert kept("Uner")["input_ids"] != kept("uner")["input_ids"]
    assert lower("UNER")["input_ids"] == lower("uner")["input_ids"]
    assert lower.unk_token_id not in lower("UNER")["input_ids"]


def test_wordpiece_keeps_accents_unless_case_is_forgotten():
    kept, lower = trained("wordpiece"), trained("wordpiece", lowercase=True)
    assert kept.tokenize("né") != kept.tokenize("ne")
    assert lower.tokenize("né") == lower.tokenize("ne")


def test_families_have_their_own_pieces():
    assert trained("wordpiece").tokenize("kalomiterx zu")[1].startswith("##")
    assert trained("unigram").tokenize("ka ter")[0].startswith("▁")
    assert "Ġ" in "".join(trained("bpe").tokenize("ka ter"))
    assert trained("wordpiece").tokenize("♜") == ["[UNK]"]
    assert trained("unigram").unk_token_id in trained("unigram")("♜")["input_ids"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_frequency_below_the_least_makes_no_token(algorithm):
    texts = ["rare words here", *["often seen"] * 50]
    config = {"algorithm": algorithm, "vocab_size": 300, "min_frequency": 40}
    tokens = set(_train_small(config, texts).get_vocab())
    if algorithm != "unigram":
        assert not any("rare" in token for token in tokens) and any("often" in token for token in tokens)


def _train_small(config, texts):
    """However small the vocabulary gets."""
    settings = TokenizerConfig(**config)
    return train_tokenizer._wrap(settings, train_tokenizer._TRAINERS[settings.algorithm](settings, texts), None)


class Counting:
    def __init__(self, texts: list[str]) -> None:
        self.texts, self.read = texts, 0

    def __iter__(self) -> Iterator[str]:
        for value in self.texts:
            self.read += 1
            yield value


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_more_is_read_than_asked(algorithm):
    texts = some_texts(60)
    some = sum(len(value) for value in texts[:40])
    for limit, read in ((some, 40), (some + 1, 41)):
        counting = Counting(texts)
        config = TokenizerConfig(algorithm=algorithm, vocab_size=400, sample_characters=limit)
        made = train(config, iter(counting))[0]
        assert counting.read == read
        cut = [*texts[: read - 1], texts[read - 1][: limit - sum(len(value) for value in texts[: read - 1])]]
        whole = train(config, iter(cut))[0]
        assert made.backend_tokenizer.to_str() == whole.backend_tokenizer.to_str()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_too_little_text(algorithm):
    few = ["kalo miter an", "kalo kalo an"] if algorithm != "word" else ["kalo miter an", "the lot once"]
    with pytest.raises(DataError, match=r"mine\.vocab_size: 25 characters give .* \d+ tokens instead of 2000"):
        train(TokenizerConfig(algorithm=algorithm, vocab_size=2000), iter(few), section="mine")
    with pytest.raises(DataError, match="no text"):
        train(TokenizerConfig(algorithm=algorithm), iter([]))
    with pytest.raises(DataError, match="no text"):
        train(TokenizerConfig(algorithm=algorithm), iter(["", ""]))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_vocabulary_that_is_a_little_small_is_a_warning(algorithm):
    texts = some_texts(40)
    most = len(train(TokenizerConfig(algorithm=algorithm, vocab_size=600), iter(texts))[0])
    for asked, warned in ((most * 3 // 2, True), (most, False)):
        tokenizer, warning = train(TokenizerConfig(algorithm=algorithm, vocab_size=asked), iter(texts))
        assert (warning is not None) == warned == (len(tokenizer) < asked)
        assert not warned or f"a vocabulary of {len(tokenizer)} tokens instead of {asked}" in warning


def test_words_are_the_most_frequent_ones_and_signs_stand_alone():
    texts = ["Not bad, not good.", "Not so bad!", "bad once; naïve naïve", "日本 日"]
    tokenizer, _ = train(TokenizerConfig(algorithm="word", vocab_size=8), iter(texts))
    words = tokenizer.convert_ids_to_tokens(range(5, 8))
    # As often: in the order of their characters. "not" and the signs occur once, other words are cut off.
    assert words == ["bad", "Not", "naïve"]
    assert tokenizer.tokenize("Not bad,not naïve") == ["Not", "bad", "<unk>", "<unk>", "naïve"]


def test_few_words_are_all_there_are():
    texts = ["bad bad good good", "once"]
    tokenizer, warning = train(TokenizerConfig(algorithm="word", vocab_size=10_000), iter(texts))
    assert len(tokenizer) == 7
    assert warning == "21 characters give a vocabulary of 7 tokens instead of 10000"


@pytest.mark.parametrize("algorithm", ["wordpiece", "unigram"])
def test_many_characters_leave_room_for_words(algorithm):
    """A quarter of the vocabulary at most is single characters, the most frequent ones."""
    rare = "".join(chr(0x4E00 + n) for n in range(3000))
    tokenizer = _train_small({"algorithm": algorithm, "vocab_size": 400}, [*some_texts(200), rare])
    assert len(tokenizer) == 400
    ideographs = [token for token in tokenizer.get_vocab() if "\u4e00" <= token[-1] <= "\u9fff"]
    assert 0 < len(ideographs) < 200


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(1, 30), max_size=8))
def test_counted_words_are_repeated_as_often_as_counted(words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_tokenizer, "_REPEATS", 7)
        parts = [part.split("\n") for part in train_tokenizer._repeated(words) if part]
    assert Counter(word for part in parts for word in part) == words
    assert all(len(part) <= 7 for part in parts)


def test_errors_while_reading_arrive():
    def texts():
        yield "some text"
        raise DataError("the shard is damaged")

    for algorithm in ALGORITHMS:
        with pytest.raises(DataError, match="shard is damaged"):
            train(TokenizerConfig(algorithm=algorithm), texts())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either `name`"),
        ({"name": "a/b", "algorithm": "bpe"}, "give either `name`"),
        ({"algorithm": "bpe", "revision": "main"}, "`revision` goes with `name`"),
        ({"name": "a/b", "vocab_size": 500, "sentinels": 2}, "sentinels, vocab_size would change nothing"),
        ({"algorithm": "bpe", "vocab_size": 260}, "260 cannot hold 256 bytes and 5 special tokens: at least 261"),
        ({"algorithm": "bpe", "vocab_size": 300, "sentinels": 100}, "at least 361"),
        ({"algorithm": "unigram", "vocab_size": 105, "sentinels": 100}, "at least 106"),
        ({"algorithm": "char"}, "algorithm"),
    ],
)
def test_config(settings, message):
    with pytest.raises(ConfigError, match=message):
        TokenizerConfig.parse(settings)


def test_the_smallest_vocabulary_is_bytes_and_special_tokens():
    tokenizer, warning = train(TokenizerConfig.parse({"algorithm": "bpe", "vocab_size": 261}), iter(["ab"]))
    assert len(tokenizer) == 261 and warning is None
    assert TokenizerConfig.parse({"name": "a/b", "revision": "c"}).source().revision == "c"
