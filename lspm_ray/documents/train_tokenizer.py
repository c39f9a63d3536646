"""Train a tokenizer with the `tokenizers` library: byte-level BPE, WordPiece, Unigram or words, in Hugging Face layout.

Every tokenizer has the special tokens of all objectives, so that one serves masked, causal and span-corruption
pretraining, and fine-tuning as a classifier.

The same texts give the same bytes. Of the library's trainers only that of BPE does so by itself. WordPiece numbers the
characters inside words in the order of a randomly seeded hash map, with one thread too, and breaks ties by number: here
they are numbered beforehand. Unigram adds floating-point numbers up in such an order: its scores are rounded, and the
pieces sorted anew. Words need no trainer: they are counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from lspm_ray.documents.tokenizer_config import TokenizerConfig
from lspm_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CHARACTERS_SHARE = 4
"""At most one in so many tokens is a single character; the rarest characters are unknown to WordPiece and Unigram."""

_REPEATS = 10_000
"""Words that are handed to a trainer at once."""

_LADDER_STEP, _SCORE_DIGITS = 1e-4, 5
"""Between scores that Unigram's trainer makes up for characters; digits that do not depend on the order of a sum."""


class Names(NamedTuple):
    """Special tokens of a family, in the order of their ids."""

    pad: str
    unk: str
    cls: str
    sep: str
    mask: str


_BERT = Names("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA = Names("<pad>", "<unk>", "<s>", "</s>", "<mask>")


def names(config: TokenizerConfig) -> Names:
    """The special tokens; cls is bos too, and sep is eos."""
    return _BERT if config.algorithm == "wordpiece" else _ROBERTA


def sentinels(config: TokenizerConfig) -> list[str]:
    """T5's names for what stands for a cut-out span."""
    return [f"<extra_id_{number}>" for number in range(config.sentinels or 0)]


def train(
    config: TokenizerConfig, texts: Iterator[str], max_length: int | None = None, section: str = "tokenizer"
) -> tuple[PreTrainedTokenizerFast, str | None]:
    """Train a tokenizer on the first `sample_characters` characters of some texts.

    Args:
        config: with `algorithm`.
        texts: in random order, if they are more than that; what is not needed is not read.
        max_length: most tokens that a model will take, for those who use the tokenizer later.
        section: of the settings, for messages.

    Returns:
        The tokenizer, and a warning if its vocabulary is smaller than asked.

    Raises:
        DataError: no text, or too little: for half of the vocabulary, or for a single word.
    """
    sample = _Sample(texts, config.sample_characters)
    trained = _TRAINERS[str(config.algorithm)](config, sample)
    size = trained.get_vocab_size()
    if not sample.characters:
        raise DataError("there is no text to train a tokenizer on", field=section)
    said = f"{sample.characters:,} characters give a vocabulary of {size} tokens instead of {config.vocab_size}"
    # Words are what they are: a small vocabulary holds all of them. One of pieces would hold whole texts.
    least = config.specials + 1 if config.algorithm == "word" else config.vocab_size / 2
    if size < least:
        raise DataError(said, field=f"{section}.vocab_size", hint="Take a smaller vocabulary, or more text")
    return _wrap(config, trained, max_length), said if size < config.vocab_size else None


class _Sample:
    """The first characters of some texts. Nothing is read from `texts` beyond them.

    Attributes:
        characters: given out so far.
    """

    def __init__(self, texts: Iterator[str], limit: int) -> None:
        self._texts, self._limit = texts, limit
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        while self.characters < self._limit and (text := next(self._texts, None)) is not None:
            text = text[: self._limit - self.characters]
            self.characters += len(text)
            yield text


def _bpe(config: TokenizerConfig, sample: Iterable[str]) -> Any:
    """Byte-level BPE (Radford et al. 2019, section 2.2): nothing is unknown, and decoding gives back the text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    if config.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=_specials(config),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(sample), trainer)
    return tokenizer


def _wordpiece(config: TokenizerConfig, sample: Iterable[str]) -> Any:
    """WordPiece with BERT's rules for words (Devlin et al. 2019)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = _count_words(sample, normalizer, pre_tokenizer)
    alphabet = _alphabet(config, words)
    inside = {f"##{character}" for word in words for character in word[1:]}
    # What the trainer takes for special tokens are the first ids of its vocabulary, in the order given here.
    first = [*_specials(config), *sorted(inside & {f"##{character}" for character in alphabet})]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    model: Any = models.WordPiece
    scratch = _train_on_words(model(unk_token=_BERT.unk), trainer, words)
    tokenizer: Any = Tokenizer(model(scratch.get_vocab(), unk_token=_BERT.unk))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _unigram(config: TokenizerConfig, sample: Iterable[str]) -> Any:
    """Unigram language model (Kudo 2018, section 3.2) with SentencePiece's rules for white space."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    case = [normalizers.Lowercase()] if config.lowercase else []
    normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), *case, normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    )
    pre_tokenizer = pre_tokenizers.Metaspace()
    words = _count_words(sample, normalizer, pre_tokenizer)
    alphabet = set(_alphabet(config, words))
    known = {word: count for word, count in words.items() if alphabet.issuperset(word)}
    specials = _specials(config)
    trainer = trainers.UnigramTrainer(
        vocab_size=config.vocab_size, special_tokens=specials, unk_token=_ROBERTA.unk, show_progress=False
    )
    pieces: list[tuple[str, float]] = []
    if known:
        pieces = _pieces(_train_on_words(models.Unigram(), trainer, known), set(specials))
    vocabulary = [*((token, 0.0) for token in specials), *pieces]
    tokenizer: Any = Tokenizer(models.Unigram(vocabulary, unk_id=_ROBERTA.index(_ROBERTA.unk)))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _word(config: TokenizerConfig, sample: Iterable[str]) -> Any:
    """The most frequent words and signs of punctuation; all others are unknown."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(lowercase=config.lowercase, strip_accents=False)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = _specials(config)
    words = _count_words(sample, normalizer, pre_tokenizer)
    known = [word for word, count in words.items() if count >= config.min_frequency and word not in specials]
    known.sort(key=lambda word: (-words[word], word))
    vocabulary = [*specials, *known[: config.vocab_size - len(specials)]]
    model: Any = models.WordLevel
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer: Any = Tokenizer(model(ids, unk_token=_ROBERTA.unk))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    return tokenizer


_TRAINERS = {"bpe": _bpe, "wordpiece": _wordpiece, "unigram": _unigram, "word": _word}


def _specials(config: TokenizerConfig) -> list[str]:
    return [*names(config), *sentinels(config)]


def _count_words(sample: Iterable[str], normalizer: Any, pre_tokenizer: Any) -> Counter[str]:
    words: Counter[str] = Counter()
    for text in sample:
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    return words


def _alphabet(config: TokenizerConfig, words: Mapping[str, int]) -> list[str]:
    """The most frequent characters, sorted."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    most = max(1, (config.vocab_size - config.specials) // _CHARACTERS_SHARE)
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[:most])


def _train_on_words(model: Any, trainer: Any, words: Mapping[str, int]) -> Any:
    """Train on counted words; the trainers take text only, so each is repeated."""
    from tokenizers import Tokenizer, pre_tokenizers

    scratch: Any = Tokenizer(model)
    scratch.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")
    scratch.train_from_iterator(_repeated(words), trainer)
    return scratch


def _repeated(words: Mapping[str, int]) -> Iterator[str]:
    batch: list[str] = []
    for word, count in words.items():
        while count:
            part = min(count, _REPEATS - len(batch))
            batch += [word] * part
            count -= part
            if len(batch) == _REPEATS:
                yield "\n".join(batch)
                batch = []
    yield "\n".join(batch)


def _pieces(trained: Any, specials: set[str]) -> list[tuple[str, float]]:
    """Pieces and scores of a trained Unigram model, in an order and to a precision that do not change from run to run.

    The trainer gives the characters that it had dropped, and must put back, scores in steps upwards from the lowest,
    in the order of a hash map: here all of them get the lowest.
    """
    found = {piece: score for piece, score in json.loads(trained.to_str())["model"]["vocab"] if piece not in specials}
    lowest = min(found.values(), default=0.0)
    for piece, score in found.items():
        steps = (score - lowest) / _LADDER_STEP
        made_up = len(piece) == 1 and steps < len(found) and abs(steps - round(steps)) < 1e-5
        found[piece] = round(lowest if made_up else score, _SCORE_DIGITS)
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))


def _wrap(config: TokenizerConfig, trained: Any, max_length: int | None) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    token, extra = names(config), sentinels(config)
    trained.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _specials(config)])
    trained.post_processor = processors.TemplateProcessing(
        single=f"{token.cls} $A {token.sep}",
        pair=f"{token.cls} $A {token.sep} $B:1 {token.sep}:1",
        special_tokens=[(name, trained.token_to_id(name)) for name in (token.cls, token.sep)],
    )
    wrapped: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        pad_token=token.pad,
        unk_token=token.unk,
        cls_token=token.cls,
        bos_token=token.cls,
        sep_token=token.sep,
        eos_token=token.sep,
        mask_token=token.mask,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"][:: 1 if token is _BERT else 2],
        **({"extra_special_tokens": extra} if extra else {}),
        **({"model_max_length": max_length} if max_length is not None else {}),
    )
    return wrapped
